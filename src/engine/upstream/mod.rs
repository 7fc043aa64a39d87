//! A generator that asks other OpenAI-compatible servers (vLLM, SGLang, llama.cpp, instructd): one model,
//! named in the configuration, at one server or at several replicas. What it cannot do (token ids, log-probs, tokenizing) it refuses.

mod breaker;
mod fleet;
mod http;
mod sse;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_util::sync::CancellationToken;

use self::breaker::Pass;
use self::fleet::{Fleet, Opened, Seat};
use self::http::{Failure, Http};
use self::wire::{Chunk, Kind, Usage};
use super::rewards::RewardModels;
use super::{
    EngineError, EngineStats, FinishReason, GenEvent, GenerateRequest, Generation, Generator, ModelFiles, RewardScorer,
    ServedModel, TextPrompt,
};
use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// Base addresses of the replicas as OpenAI clients take them, with `/v1`; at least one.
    pub urls: Vec<String>,
    pub kind: Kind,
    pub api_key: Option<String>,
    pub connect_timeout: Duration,
    /// Longest silence: until the answer begins, and between its pieces.
    pub response_timeout: Duration,
    /// Further attempts where nothing was begun.
    pub retries: usize,
    /// Requests under way; more are refused with `Overloaded`.
    pub max_running: usize,
    /// Failures in a row that open the circuit breaker, and for how long.
    pub breaker_failures: u32,
    pub breaker_pause: Duration,
    /// How often each of several replicas is asked whether it has the model; zero = never.
    pub health_period: Duration,
    pub jitter_seed: u64,
    /// Where reward models are, which are scored here.
    pub files: Arc<dyn ModelFiles>,
}

/// What the upstream server says of the model it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovered {
    pub model: String,
    pub max_context: Option<usize>,
}

/// The connection before its model is known.
pub struct Upstream {
    options: UpstreamOptions,
    fleet: Fleet,
}

/// Why the server's models are no use.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error(transparent)]
    Away(EngineError),
    #[error("the upstream server has no model '{wanted}'; it has {known}")]
    NoSuchModel { wanted: String, known: String },
    #[error("the upstream server has no model")]
    NoModel,
}

impl Upstream {
    /// # Errors
    /// When an address or the key cannot be used.
    pub fn new(options: UpstreamOptions) -> Result<Self, String> {
        Ok(Self { fleet: Fleet::new(&options)?, options })
    }

    /// The wanted model, or the server's first.
    ///
    /// # Errors
    /// `Away` when asking again later may help.
    pub async fn discover(&self, wanted: Option<&str>) -> Result<Discovered, DiscoverError> {
        self.fleet.discover(wanted).await
    }

    /// Serves `version`, which stands for the upstream's `model`.
    pub fn serve(self, version: ModelVersion, discovered: Discovered) -> Arc<UpstreamEngine> {
        let Self { options, fleet } = self;
        let fleet = Arc::new(fleet);
        if options.urls.len() > 1 && !options.health_period.is_zero() {
            let (model, weak) = (discovered.model.clone(), Arc::downgrade(&fleet));
            tokio::spawn(Fleet::watch(weak, model, options.health_period));
        }
        let served = ServedModel {
            version,
            vocab_size: 0,
            max_context: discovered.max_context.unwrap_or(usize::MAX),
            takes_text: true,
            eos_ids: Vec::new(),
            weights: "upstream".into(),
            parameters: 0,
            has_chat_template: true,
            before_text: Vec::new(),
        };
        Arc::new(UpstreamEngine {
            shared: Arc::new(Shared {
                fleet,
                running: AtomicUsize::new(0),
                prompt_tokens: AtomicU64::new(0),
                generated: AtomicU64::new(0),
                stop: CancellationToken::new(),
            }),
            rewards: RewardModels::new(),
            served: Arc::new(served),
            model: discovered.model,
            draining: AtomicBool::new(false),
            options,
        })
    }
}

struct Shared {
    fleet: Arc<Fleet>,
    running: AtomicUsize,
    prompt_tokens: AtomicU64,
    generated: AtomicU64,
    /// The drain's deadline has passed.
    stop: CancellationToken,
}

/// The client of one upstream server as a generator.
pub struct UpstreamEngine {
    shared: Arc<Shared>,
    rewards: RewardModels,
    served: Arc<ServedModel>,
    /// The model's name there.
    model: String,
    draining: AtomicBool,
    options: UpstreamOptions,
}

/// Counts samples as running until it is dropped.
struct Slot(Arc<Shared>, usize);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.running.fetch_sub(self.1, SeqCst);
    }
}

/// One streamed answer: samples `first..first + n`.
struct Stream {
    response: reqwest::Response,
    first: usize,
    n: usize,
}

fn no_ids<T>(param: &'static str) -> Result<T, EngineError> {
    let message = "this model is served by an upstream server: its token ids are not known here".to_owned();
    Err(EngineError::BadRequest { param, message })
}

impl UpstreamEngine {
    fn find(&self, version: Option<&ModelVersionId>) -> Result<(), EngineError> {
        match version {
            Some(id) if *id != self.served.version.id => Err(EngineError::UnknownModel(id.to_string())),
            _ => Ok(()),
        }
    }

    /// Opens the streams of all samples; the first refusal refuses the request.
    async fn open(&self, request: &GenerateRequest, prompt: &TextPrompt) -> Result<(Vec<Stream>, Seat), EngineError> {
        let kind = self.options.kind;
        let parts: Vec<(usize, usize)> =
            if kind.takes_n() { vec![(0, request.n)] } else { (0..request.n).map(|i| (i, 1)).collect() };
        let blame = if matches!(prompt, TextPrompt::Raw(_)) { "prompt" } else { "messages" };
        let calls = parts
            .iter()
            .map(|(first, n)| wire::call(kind, &self.model, request, prompt, *first, *n))
            .collect::<Result<Vec<_>, EngineError>>()?;
        let opened = self.shared.fleet.open(&calls, request.n, blame).await;
        let Opened { responses, seat } = opened.map_err(|failure| failure.error)?;
        let streams = parts.into_iter().zip(responses).map(|((first, n), response)| Stream { response, first, n });
        Ok((streams.collect(), seat))
    }
}

fn resting(left: Duration) -> EngineError {
    let message = "the upstream server of this model failed several times; it is given a pause".to_owned();
    EngineError::Unavailable { message, retry_after_s: left.as_secs() + 1 }
}

/// A refusal shows that the server works.
fn record_outcome(pass: Pass, broken: bool) {
    let outcome = if broken { "failed" } else { "answered" };
    metrics::counter!("instructd_upstream_calls_total", "outcome" => outcome).increment(1);
    if broken { pass.failed(Instant::now()) } else { pass.succeeded() }
}

impl Shared {
    /// Passes on what the streams say until they end, the client leaves, or the drain's deadline passes.
    async fn follow(&self, streams: Vec<Stream>, seat: Seat, events: &UnboundedSender<GenEvent>) {
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
                    // Samples asked for one by one share their prompt.
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

/// Counts and ends of one stream; its deltas are sent as they come.
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
                return Err(Failure::broken(format!("in mid-stream: {error}")));
            }
            usage = chunk.usage.or(usage);
            for mut choice in chunk.choices {
                let Some(finish) = finishes.get_mut(choice.index) else {
                    return Err(Failure::broken(format!("a choice {} that nobody asked for", choice.index)));
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
    let ended = ended.ok_or_else(|| Failure::broken("the stream ended before its text"))?;
    Ok((usage, ended.into_iter().enumerate().map(|(i, reason)| (first + i, reason)).collect()))
}

#[async_trait]
impl Generator for UpstreamEngine {
    async fn generate(&self, _: GenerateRequest) -> Result<Generation, EngineError> {
        no_ids("prompt")
    }

    async fn generate_text(&self, request: GenerateRequest, prompt: TextPrompt) -> Result<Generation, EngineError> {
        if self.draining.load(SeqCst) {
            return Err(EngineError::Draining);
        }
        self.find(request.version.as_ref())?;
        let slot = Slot(self.shared.clone(), request.n);
        if self.shared.running.fetch_add(request.n, SeqCst) + request.n > self.options.max_running {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        }
        let (streams, seat) = self.open(&request, &prompt).await?;
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            slot.0.follow(streams, seat, &sender).await;
        });
        Ok(Generation { version: self.served.clone(), prompt_tokens: 0, events })
    }

    fn ready(&self) -> Result<(), EngineError> {
        self.shared.fleet.ready().map_err(resting)
    }

    fn active(&self) -> Option<Arc<ServedModel>> {
        Some(self.served.clone())
    }

    fn loaded(&self) -> Vec<Arc<ServedModel>> {
        vec![self.served.clone()]
    }

    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError> {
        if version.id == self.served.version.id {
            return Ok(self.served.clone());
        }
        let message = format!(
            "this server's text comes from an upstream server: '{}' cannot be served here; start one with \
             its weights, without [upstream]",
            version.name
        );
        Err(EngineError::BadRequest { param: "model", message })
    }

    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError> {
        self.find(Some(version))
    }

    fn rewards(&self) -> Option<&dyn RewardScorer> {
        Some(self)
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.shared.running.load(Relaxed),
            prompt_tokens: self.shared.prompt_tokens.load(Relaxed),
            tokens_generated: self.shared.generated.load(Relaxed),
            ..EngineStats::default()
        }
    }

    async fn drain(&self, deadline: Duration) {
        self.draining.store(true, SeqCst);
        let idle = async {
            while self.shared.running.load(SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(deadline, idle).await.is_err() {
            self.shared.stop.cancel();
        }
    }
}

#[async_trait]
impl RewardScorer for UpstreamEngine {
    async fn reward_scores(
        &self,
        version: &ModelVersion,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError> {
        self.rewards.score(version, &self.options.files, prompt, answers).await
    }
}
