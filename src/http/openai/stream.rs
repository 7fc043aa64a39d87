//! Follows generations into server-sent events: one task per request, which ends with the client.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::usage;
use crate::engine::{FinishReason, GenEvent, TokenLogprob};
use crate::http::error::{ApiError, ApiResult};
use crate::service::complete::Running;

/// Chunks a slow client may lag behind before its task waits.
const BUFFER: usize = 64;

/// One step of one sample.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    /// Before anything is drawn; with the prompt's log-probs where they were asked for.
    Start {
        prompt: &'a [TokenLogprob],
    },
    Delta {
        text: &'a str,
        tokens: &'a [TokenLogprob],
    },
    Finish(FinishReason),
}

/// How pieces become chunks.
pub trait Format: Send + Sync + 'static {
    /// `run` is the index of the prompt, `index` that of its sample.
    fn chunk(
        &self,
        running: &Running,
        run: usize,
        index: usize,
        piece: Piece<'_>,
    ) -> impl Future<Output = ApiResult<Vec<Value>>> + Send;

    /// The last chunk, with token counts; `None` unless asked for.
    fn usage(&self, usage: Value) -> Option<Value>;
}

/// The client is gone, or the generation failed.
enum End {
    Left,
    Failed(ApiError),
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// The response; dropping it (the client leaves) drops the generations within one step.
pub fn respond(mut runs: Vec<Running>, format: impl Format) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(BUFFER);
    tokio::spawn(async move {
        let followed =
            futures::future::try_join_all(runs.iter_mut().enumerate().map(|(i, r)| follow(r, i, &format, &sender)));
        let outcome = followed.await.map(drop);
        let last = match outcome {
            Ok(()) => format.usage(usage(&runs)),
            Err(End::Left) => return,
            Err(End::Failed(error)) => Some(error.body()),
        };
        if let Some(chunk) = last {
            let _ = sender.send(Ok(event(&chunk))).await;
        }
        let _ = sender.send(Ok(Event::default().data("[DONE]"))).await;
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response()
}

fn event(chunk: &Value) -> Event {
    Event::default().data(chunk.to_string())
}

async fn follow(
    running: &mut Running,
    run: usize,
    format: &impl Format,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) -> Result<(), End> {
    let send = async |chunks: Vec<Value>| {
        for chunk in chunks {
            sender.send(Ok(event(&chunk))).await.map_err(|_| End::Left)?;
        }
        Ok::<(), End>(())
    };
    let mut started = false;
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Err(End::Left),
            next = running.next() => next.map_err(ApiError::from)?,
        };
        let Some(next) = next else { return Ok(()) };
        if !std::mem::replace(&mut started, true) {
            let prompt = std::mem::take(&mut running.prompt);
            for index in 0..running.samples.len() {
                send(format.chunk(running, run, index, Piece::Start { prompt: &prompt }).await?).await?;
            }
        }
        match next {
            GenEvent::Delta { index, text, tokens } => {
                let piece = Piece::Delta { text: &text, tokens: &tokens };
                send(format.chunk(running, run, index, piece).await?).await?;
            }
            GenEvent::Finish { index, reason } => {
                if running.finished() {
                    // Stored before the client can act on it.
                    running.store(|_| true).await.map_err(ApiError::from)?;
                }
                send(format.chunk(running, run, index, Piece::Finish(reason)).await?).await?;
            }
            GenEvent::Prompt { .. } | GenEvent::Usage { .. } | GenEvent::Failed { .. } => {}
        }
    }
}
