//! Reads the streamed text of OpenAI-compatible servers.

use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc::UnboundedSender;

use super::breaker::Pass;
use super::fleet::Seat;
use super::http::{Failure, Http};
use super::wire::{self, Chunk, Usage};
use super::{Shared, sse};
use crate::engine::{EngineError, FinishReason, GenEvent};

/// One streamed answer: samples `first..first + n`.
pub struct Stream {
    pub response: reqwest::Response,
    pub first: usize,
    pub n: usize,
}

impl Shared {
    /// Forwards the streams' text until they end, the client leaves, or the deadline of the drain passes.
    pub(super) async fn follow(&self, streams: Vec<Stream>, seat: Seat, events: &UnboundedSender<GenEvent>) {
        let following = streams.into_iter().map(|s| follow_one(seat.http(), s, &seat.pass, events));
        let all = futures::future::try_join_all(following);
        let ended = tokio::select! {
            // Dropping the responses closes the connections: the upstream server sees its client leave.
            () = events.closed() => return,
            () = self.stop.cancelled() => {
                events.send(GenEvent::Failed { error: EngineError::Draining }).ok();
                return;
            }
            ended = all => ended,
        };
        seat.settle(ended.is_err());
        let ended = ended.map_err(|failure| failure.error);
        match ended {
            Err(error) => drop(events.send(GenEvent::Failed { error })),
            Ok(ends) => {
                let (usages, finishes): (Vec<Option<Usage>>, Vec<_>) = ends.into_iter().unzip();
                let usages: Vec<Usage> = usages.into_iter().flatten().collect();
                if let Some(first) = usages.first() {
                    // Samples that are requested one by one share their prompt.
                    let prompt_tokens = first.prompt_tokens;
                    let completion_tokens = usages.iter().map(|u| u.completion_tokens).sum::<usize>();
                    self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
                    self.generated.fetch_add(completion_tokens as u64, Relaxed);
                    events.send(GenEvent::Usage { prompt_tokens, completion_tokens }).ok();
                }
                for (index, reason) in finishes.into_iter().flatten() {
                    events.send(GenEvent::Finish { index, reason }).ok();
                }
            }
        }
    }
}

/// Forwards the text of one stream as it arrives. Returns its token counts and the finish reason of each sample.
async fn follow_one(
    http: &Http,
    stream: Stream,
    pass: &Pass,
    events: &UnboundedSender<GenEvent>,
) -> Result<(Option<Usage>, Vec<(usize, FinishReason)>), Failure> {
    let Stream { mut response, first, n } = stream;
    let mut parser = sse::Events::default();
    let mut finishes: Vec<Option<FinishReason>> = vec![None; n];
    let mut usage = None;
    'stream: while let Some(piece) = http.piece(&mut response).await? {
        pass.answered();
        for data in parser.push(&piece).map_err(Failure::broken)? {
            if data == "[DONE]" {
                break 'stream;
            }
            let chunk: Chunk = serde_json::from_str(&data).map_err(|e| Failure::broken(format!("a chunk: {e}")))?;
            if let Some(error) = chunk.error.filter(|e| !e.is_null()) {
                return Err(Failure::broken(format!("an error in the stream: {error}")));
            }
            usage = chunk.usage.or(usage);
            for mut choice in chunk.choices {
                let Some(finish) = finishes.get_mut(choice.index) else {
                    return Err(Failure::broken(format!("choice {} of {n} requested ones", choice.index)));
                };
                let (index, text) = (first + choice.index, choice.take_text());
                if !text.is_empty() {
                    events.send(GenEvent::Delta { index, text, tokens: Vec::new() }).ok();
                }
                if let Some(reason) = &choice.finish_reason {
                    *finish = Some(wire::finish(reason));
                }
            }
        }
    }
    let ended: Option<Vec<FinishReason>> = finishes.into_iter().collect();
    let ended = ended.ok_or_else(|| Failure::broken("the stream ended before its samples"))?;
    Ok((usage, ended.into_iter().enumerate().map(|(i, reason)| (first + i, reason)).collect()))
}
