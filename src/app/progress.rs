//! Progress of a connection: how much its client reads, and since when it has been idle. Connections that are admitted
//! and not used are closed.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A client that reads less than this (bytes) within the time limit counts as one that reads nothing.
const LEAST_BYTES: u64 = 16 << 10;
/// Responses are sent in pieces of this size (bytes), each within the time limit.
const PIECE: usize = 64 << 10;
/// Stands for no time: not idle, or not blocked.
const NEVER: u64 = u64::MAX;

/// Facts about one connection, updated by its socket and its responses.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// Number of requests whose responses are not finished.
    open: AtomicUsize,
    /// When the last response ended, or the connection began (ms).
    idle_since: AtomicU64,
    /// When the socket accepted no more data, and how many bytes it had accepted until then.
    blocked_since: AtomicU64,
    written: AtomicU64,
    written_when_blocked: AtomicU64,
    /// (id, ms) of each response's latest piece, until the next one is polled.
    handed_out: Mutex<Vec<(usize, u64)>>,
    answers: AtomicUsize,
}

impl Progress {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            open: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            written: AtomicU64::new(0),
            written_when_blocked: AtomicU64::new(0),
            handed_out: Mutex::new(Vec::new()),
            answers: AtomicUsize::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    fn handed_out(&self) -> std::sync::MutexGuard<'_, Vec<(usize, u64)>> {
        self.handed_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since the client last read, while data is waiting for it.
    pub fn stalled(&self) -> Option<Duration> {
        let handed_out = self.handed_out().iter().map(|(_, since)| *since).min();
        let since = handed_out.unwrap_or(NEVER).min(self.blocked_since.load(Relaxed));
        (since != NEVER).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// How long no request has been open.
    pub fn idle(&self) -> Option<Duration> {
        let since = self.idle_since.load(Relaxed);
        (self.open.load(Relaxed) == 0).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// How long the connection has been idle or blocked.
    pub fn inactive(&self) -> Option<Duration> {
        self.stalled().max(self.idle())
    }

    fn wrote(&self, bytes: usize) {
        let written = self.written.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        if self.blocked_since.load(Relaxed) != NEVER && written - self.written_when_blocked.load(Relaxed) >= LEAST_BYTES
        {
            self.blocked_since.store(self.now(), Relaxed);
            self.written_when_blocked.store(written, Relaxed);
        }
    }

    fn blocked(&self) {
        if self.blocked_since.load(Relaxed) == NEVER {
            self.written_when_blocked.store(self.written.load(Relaxed), Relaxed);
            self.blocked_since.store(self.now(), Relaxed);
        }
    }

    fn flushed(&self) {
        self.blocked_since.store(NEVER, Relaxed);
    }

    /// Registers a request; dropping the result ends it.
    pub fn request(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        Open { progress: self.clone(), id: self.answers.fetch_add(1, Relaxed) }
    }
}

/// One request until the end of its answer.
#[derive(Debug)]
pub struct Open {
    progress: Arc<Progress>,
    id: usize,
}

impl Open {
    fn hand_out(&self) {
        let now = self.progress.now();
        self.progress.handed_out().push((self.id, now));
    }

    fn taken(&self) {
        self.progress.handed_out().retain(|(id, _)| *id != self.id);
    }

    /// The response's body, observed until its end.
    pub fn watch(self, inner: Body) -> Body {
        Body::new(Watched { inner, rest: Bytes::new(), open: self })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.taken();
        self.progress.idle_since.store(self.progress.now(), Relaxed);
        self.progress.open.fetch_sub(1, Relaxed);
    }
}

struct Watched {
    inner: Body,
    /// The rest of a large piece.
    rest: Bytes,
    open: Open,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // A poll for more shows that the previous piece was read.
        self.open.taken();
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.open.hand_out();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        let (lower, upper) = (hint.lower() + rest, hint.upper().map(|u| u + rest));
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint.set_lower(lower);
        hint
    }
}

/// A socket that records how much data it accepts.
pub struct Socket<S> {
    inner: S,
    progress: Arc<Progress>,
}

impl<S> Socket<S> {
    pub fn new(inner: S, progress: Arc<Progress>) -> Self {
        Self { inner, progress }
    }

    fn note(&self, polled: &Poll<std::io::Result<usize>>) {
        match polled {
            Poll::Ready(Ok(bytes)) => self.progress.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.progress.blocked(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Only called when nothing is left to be written.
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        if polled.is_ready() {
            self.progress.flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
