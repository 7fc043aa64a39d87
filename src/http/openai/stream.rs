//! Streams generations as server-sent events: one task for each request, which ends when the client disconnects.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{TokenUsage, usage};
use crate::engine::{FinishReason, GenEvent, TokenLogprob};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::service::complete::Running;

/// Chunks that are buffered for a slow client before its task waits.
const BUFFER: usize = 64;

/// One event of one sample.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    /// Before the first token; with the prompt's log-probs if they were requested.
    Start {
        prompt: &'a [TokenLogprob],
    },
    Delta {
        text: &'a str,
        tokens: &'a [TokenLogprob],
    },
    Finish(FinishReason),
}

/// One event of a streamed generation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{C}Event")]
pub struct Streamed<C> {
    /// `error` when the key or session of the stream has ended; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<&'static str>,
    pub data: StreamedData<C>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{C}EventData")]
#[serde(untagged)]
pub enum StreamedData<C> {
    Chunk(C),
    /// The generation failed.
    Error(ErrorBody),
    End(End),
}

/// The last event.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EndOfStream")]
pub enum End {
    #[serde(rename = "[DONE]")]
    Done,
}

impl<C: Serialize> StreamedData<C> {
    fn sse(&self) -> Event {
        let text = match self {
            Self::End(End::Done) => "[DONE]".to_owned(),
            written => serde_json::to_string(written).unwrap_or_default(),
        };
        Event::default().data(text)
    }
}

/// How pieces become chunks.
pub trait Format: Send + Sync + 'static {
    type Chunk: Serialize + Send;

    /// `run` is the index of the prompt, `index` that of its sample.
    fn chunk(
        &self,
        running: &Running,
        run: usize,
        index: usize,
        piece: Piece<'_>,
    ) -> impl Future<Output = ApiResult<Vec<Self::Chunk>>> + Send;

    /// The last chunk, with token counts; `None` unless asked for.
    fn usage(&self, usage: TokenUsage) -> Option<Self::Chunk>;
}

/// Why a stream ends early.
enum Ended {
    Left,
    Failed(ApiError),
}

impl From<ApiError> for Ended {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// The response; dropping it (when the client disconnects) ends the generations within one step.
pub fn respond<F: Format>(mut runs: Vec<Running>, format: F) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(BUFFER);
    tokio::spawn(async move {
        let followed =
            futures::future::try_join_all(runs.iter_mut().enumerate().map(|(i, r)| follow(r, i, &format, &sender)));
        let outcome = followed.await.map(drop);
        let last = match outcome {
            Ok(()) => format.usage(usage(&runs)).map(StreamedData::Chunk),
            Err(Ended::Left) => return,
            Err(Ended::Failed(error)) => Some(StreamedData::Error(error.body())),
        };
        for data in last.into_iter().chain([StreamedData::End(End::Done)]) {
            let _ = sender.send(Ok(data.sse())).await;
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response()
}

async fn follow<F: Format>(
    running: &mut Running,
    run: usize,
    format: &F,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) -> Result<(), Ended> {
    let send = async |chunks: Vec<F::Chunk>| {
        for chunk in chunks {
            sender.send(Ok(StreamedData::Chunk(chunk).sse())).await.map_err(|_| Ended::Left)?;
        }
        Ok::<(), Ended>(())
    };
    let mut started = false;
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Err(Ended::Left),
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
