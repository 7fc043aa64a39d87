//! Accepts connections: HTTP/1 and HTTP/2, limits on their number, in total and for each address, time limits for
//! request headers and for clients that read nothing or send no request, and a drain at shutdown. `axum::serve` has
//! none of these limits, so hyper is driven directly.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::progress::{Progress, Socket};
use super::slots::{Sizes, Slots};
use crate::config::ServerConfig;
use crate::http::peer::Peer;
use crate::service::Services;

/// Connections that may wait to be admitted; more stay in the kernel's backlog.
const MAX_WAITING: usize = 256;
/// The response to a client that has waited in vain to be admitted.
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\
                          connection: close\r\n\r\n";

/// Time limits of every connection.
#[derive(Clone, Copy)]
struct Times {
    header: Duration,
    /// Longest time for which a client may not read its response.
    write: Duration,
    /// Longest time without a request.
    idle: Duration,
    streams: u32,
}

/// Serves until shutdown, then waits for running requests up to the drain timeout.
pub async fn serve(listener: TcpListener, router: Router, config: &ServerConfig, services: Arc<Services>) {
    let slots = Slots::new(Sizes {
        all: config.max_connections,
        // Behind a proxy every connection has the proxy's address.
        per_address: if config.client_address_header.is_some() { 0 } else { config.connections_per_address },
        reserve: config.reserved_connections,
    });
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let times = Times {
        header: Duration::from_secs(config.header_timeout_seconds),
        write: Duration::from_secs(config.write_timeout_seconds),
        idle: Duration::from_secs(config.idle_timeout_seconds),
        streams: config.http2_streams,
    };
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let waits = waiting.clone().acquire_owned().await;
                (waits, listener.accept().await)
            } => accepted,
            () = services.shutdown.cancelled() => break,
        };
        let (waits, stream, peer) = match accepted {
            (Ok(waits), Ok((stream, peer))) => (waits, stream, Peer(peer.ip())),
            (_, Err(error)) => {
                // Usually out of file descriptors: give others time to close.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let (router, watcher, slots) = (router.clone(), graceful.watcher(), slots.clone());
        tokio::spawn(async move {
            let progress = Progress::new();
            let Some(slot) = slots.take(peer.0, &progress, times.header).await else {
                // The client may be gone: one attempt to write is enough.
                let _ = stream.try_write(UNAVAILABLE);
                return;
            };
            drop(waits);
            tokio::select! {
                () = one(stream, peer, router, times, &progress, watcher) => {}
                () = slot.close.cancelled() => tracing::debug!("an idle connection was closed to admit another"),
                () = overdue(&progress, times) => tracing::debug!("a connection was idle or blocked for too long"),
            }
        });
    }
    drop(listener);
    let deadline = Duration::from_secs(config.drain_timeout_seconds);
    let drained = async {
        if let Ok(engine) = services.engine() {
            engine.drain(deadline).await;
        }
        graceful.shutdown().await;
    };
    if tokio::time::timeout(deadline + Duration::from_secs(1), drained).await.is_err() {
        tracing::warn!("some requests were still running at the end of the drain");
    }
}

/// Raises the limit of open files so that `connections` fit, as far as the system allows; logs a warning otherwise.
pub fn make_room(connections: usize) {
    // Models, the database, jobs and logs.
    const OTHERS: u64 = 128;
    let wanted = connections as u64 + MAX_WAITING as u64 + OTHERS;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a valid structure of our own.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 || limit.rlim_cur >= wanted {
        return;
    }
    let raised = libc::rlimit { rlim_cur: wanted.min(limit.rlim_max), rlim_max: limit.rlim_max };
    // SAFETY: the pointer is to a valid structure of our own.
    let failed = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } != 0;
    if failed || raised.rlim_cur < wanted {
        tracing::warn!(
            limit = if failed { limit.rlim_cur } else { raised.rlim_cur },
            wanted,
            "server.max_connections exceeds the number of files that this process may open: raise `ulimit -n`, or lower the setting"
        );
    }
}

/// Resolves when the client has read nothing, or sent no request, for too long.
async fn overdue(progress: &Progress, times: Times) {
    let look = (times.write.min(times.idle) / 8).max(Duration::from_millis(50));
    loop {
        tokio::time::sleep(look).await;
        let stalled = progress.stalled().is_some_and(|time| time >= times.write);
        if stalled || progress.idle().is_some_and(|time| time >= times.idle) {
            return;
        }
    }
}

async fn one(stream: TcpStream, peer: Peer, router: Router, times: Times, progress: &Arc<Progress>, watcher: Watcher) {
    let _ = stream.set_nodelay(true);
    // The first bytes, which tell the protocol, have a time limit too.
    let Ok(Some(protocol)) = tokio::time::timeout(times.header, protocol(&stream)).await else { return };
    let requests = progress.clone();
    let service = tower::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        let (open, router) = (requests.request(), router.clone());
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, std::convert::Infallible>(response.map(|body| open.watch(body)))
        }
    });
    let service = TowerToHyperService::new(service);
    let io = TokioIo::new(Socket::new(stream, progress.clone()));
    let ended = match protocol {
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(times.header)
                .serve_connection(io, service);
            watcher.watch(connection).await
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
                .max_concurrent_streams(times.streams)
                .serve_connection(io, service);
            watcher.watch(connection).await
        }
    };
    if let Err(error) = ended {
        // A client that disconnects is not an error of the server.
        tracing::debug!(%error, "a connection ended early");
    }
}

enum Protocol {
    Http1,
    Http2,
}

/// HTTP/2 with prior knowledge begins with `PRI `; no HTTP/1 method does. `None` = closed before four bytes.
async fn protocol(stream: &TcpStream) -> Option<Protocol> {
    let mut start = [0; 4];
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return None,
            Ok(4) => return Some(if &start == b"PRI " { Protocol::Http2 } else { Protocol::Http1 }),
            // Without a pause the same bytes would be peeked at again at once.
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
