//! A generator that asks other OpenAI-compatible servers (vLLM, SGLang, llama.cpp, instructd): the model that they were
//! started with, and versions that are loaded there ([`push`]). Token ids, log-probs and tokenizing are refused.

mod breaker;
mod fleet;
mod http;
pub mod push;
mod rollout;
mod sse;
mod switch;
pub mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_util::sync::CancellationToken;

use self::breaker::Pass;
use self::fleet::{Calls, Fleet, Opened, Seat};
use self::http::{Failure, Http};
use self::push::{Loader, PushOptions, Target};
use self::switch::{Known, Switch};
use self::wire::{Chunk, Kind, Usage};
use super::rewards::RewardModels;
use super::{
    EngineError, EngineStats, FinishReason, GenEvent, GenerateRequest, Generation, Generator, ModelFiles, RewardScorer,
    ServedModel, TextPrompt,
};
use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore, STAGE_UPSTREAM};
use crate::model::adapters::peft;

/// Addresses of the upstream servers, and limits of calls.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// Base addresses of the replicas as OpenAI clients take them, with `/v1`; at least one.
    pub urls: Vec<String>,
    pub kind: Kind,
    pub api_key: Option<String>,
    pub connect_timeout: Duration,
    /// Longest silence: until the answer begins, and between its pieces.
    pub response_timeout: Duration,
    /// Further attempts of calls that a server has not begun to answer.
    pub retries: usize,
    /// Most samples that run at a time; more are refused with `Overloaded`.
    pub max_running: usize,
    /// Failures in a row that open the circuit breaker, and for how long.
    pub breaker_failures: u32,
    pub breaker_pause: Duration,
    /// Interval at which each of several replicas is asked whether it has the model; zero = never.
    pub health_period: Duration,
    pub jitter_seed: u64,
    /// How versions of this server are loaded there; `None` = they are not.
    pub push: Option<PushOptions>,
    /// Where the files of versions are: reward models are scored here, policies are loaded at the upstream servers.
    pub files: Arc<dyn ModelFiles>,
}

/// What the upstream server says of the model it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovered {
    pub model: String,
    pub max_context: Option<usize>,
    /// Where its weights are for the server, if they can be replaced there and it says so.
    pub path: Option<String>,
}

/// The connection before its model is known.
pub struct Upstream {
    options: UpstreamOptions,
    fleet: Fleet,
}

/// Why no model can be served.
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
        let mut found = self.fleet.discover(wanted).await?;
        if let Some(push) = &self.options.push {
            for replica in &self.fleet.replicas {
                if found.path.is_none()
                    && let Ok(path) = push.model_path(&replica.http).await
                {
                    found.path = path;
                }
            }
        }
        Ok(found)
    }

    /// Serves `version`, which stands for the upstream's `model`.
    pub async fn serve(self, version: ModelVersion, discovered: Discovered) -> Arc<UpstreamEngine> {
        let Self { options, fleet } = self;
        let target = Target {
            version: version.id.clone(),
            version_name: version.name.clone(),
            model: discovered.model.clone(),
            path: discovered.path.unwrap_or_default(),
            is_base: true,
        };
        let served = Arc::new(ServedModel {
            version,
            vocab_size: 0,
            max_context: discovered.max_context.unwrap_or(usize::MAX),
            takes_text: true,
            eos_ids: Vec::new(),
            weights: "upstream".into(),
            parameters: 0,
            has_chat_template: true,
            before_text: Vec::new(),
        });
        let base = Known { served, target };
        let switch = Arc::new(Switch::new(fleet, options.push.clone(), base.clone()).await);
        if (options.urls.len() > 1 || options.push.is_some()) && !options.health_period.is_zero() {
            let watch = Switch::watch(Arc::downgrade(&switch), discovered.model, options.health_period);
            tokio::spawn(watch);
        }
        Arc::new(UpstreamEngine {
            shared: Arc::new(Shared {
                switch,
                running: AtomicUsize::new(0),
                prompt_tokens: AtomicU64::new(0),
                generated: AtomicU64::new(0),
                stop: CancellationToken::new(),
            }),
            rewards: RewardModels::new(),
            base,
            draining: AtomicBool::new(false),
            options,
        })
    }
}

struct Shared {
    switch: Arc<Switch>,
    running: AtomicUsize,
    prompt_tokens: AtomicU64,
    generated: AtomicU64,
    /// Cancelled when the deadline of the drain has passed.
    stop: CancellationToken,
}

/// The client of one upstream server as a generator.
pub struct UpstreamEngine {
    shared: Arc<Shared>,
    rewards: RewardModels,
    /// The model that the servers were started with.
    base: Known,
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
    fn find(&self, version: Option<&ModelVersionId>) -> Result<Known, EngineError> {
        match version {
            Some(id) => self.shared.switch.known(id).ok_or_else(|| EngineError::UnknownModel(id.to_string())),
            None => Ok(self.shared.switch.active()),
        }
    }

    /// The version as the upstream servers are told of it.
    ///
    /// # Errors
    /// `BadRequest` for versions that cannot be loaded there, `Failed` when the files are missing or damaged.
    async fn known(&self, version: &ModelVersion) -> Result<Known, EngineError> {
        if let Some(known) = self.shared.switch.known(&version.id) {
            return Ok(known);
        }
        let refused = |message| EngineError::BadRequest { param: "model", message };
        let Some(push) = self.options.push.as_ref().filter(|_| version.stage != STAGE_UPSTREAM) else {
            return Err(refused(format!(
                "this server's text comes from an upstream server: '{}' cannot be served here; set upstream.push so \
                 that versions are loaded there, or start a server with its weights, without [upstream]",
                version.name
            )));
        };
        let mut path = self.options.files.path(version).await.map_err(EngineError::Failed)?;
        let mut model = self.base.target.model.clone();
        if push.loader == Loader::Vllm {
            // A version trained with LoRA has its adapter beside the merged weights.
            path = adapter(&path).ok_or_else(|| {
                refused(format!("'{}' has no LoRA adapter, and vLLM is only told to load adapters", version.name))
            })?;
            model = format!("{}-{}", version.name, version.id);
        }
        let path = push.path.replace("{path}", &path.to_string_lossy());
        let target = Target {
            version: version.id.clone(),
            version_name: version.name.clone(),
            model,
            path: path.replace("{id}", version.id.as_str()).replace("{name}", &version.name),
            is_base: false,
        };
        let served = ServedModel { version: version.clone(), ..(*self.base.served).clone() };
        Ok(Known { served: Arc::new(served), target })
    }

    /// Opens the streams of all samples; the first refusal refuses the request.
    async fn open(
        &self,
        known: &Known,
        request: &GenerateRequest,
        prompt: &TextPrompt,
    ) -> Result<(Vec<Stream>, Seat), EngineError> {
        let kind = self.options.kind;
        let parts: Vec<(usize, usize)> =
            if kind.takes_n() { vec![(0, request.n)] } else { (0..request.n).map(|i| (i, 1)).collect() };
        let blame = if matches!(prompt, TextPrompt::Raw(_)) { "prompt" } else { "messages" };
        let calls = parts
            .iter()
            .map(|(first, n)| wire::call(kind, &known.target.model, request, prompt, *first, *n))
            .collect::<Result<Vec<_>, EngineError>>()?;
        let calls = Calls { calls: &calls, samples: request.n, version: &known.target.version, blame };
        let opened = self.shared.switch.fleet.open(&calls).await;
        let Opened { responses, seat } = opened.map_err(|failure| failure.error)?;
        let streams = parts.into_iter().zip(responses).map(|((first, n), response)| Stream { response, first, n });
        Ok((streams.collect(), seat))
    }
}

/// Runs a change of the servers in its own task, so that a client that leaves does not stop it halfway.
async fn completely<T: Send + 'static>(
    change: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::spawn(change).await.map_err(|e| EngineError::Failed(format!("the change of the upstream servers: {e}")))?
}

/// The directory of a version's LoRA adapter, if it has one.
fn adapter(path: &Path) -> Option<std::path::PathBuf> {
    [path.join(peft::FOLDER), path.to_owned()].into_iter().find(|dir| dir.join("adapter_config.json").is_file())
}

fn resting(left: Duration) -> EngineError {
    let message =
        "the upstream server of this model failed several times in a row; no requests are sent to it for a while"
            .to_owned();
    EngineError::Unavailable { message, retry_after_s: left.as_secs() + 1 }
}

/// Records whether a call failed by the server's fault. A refusal of the request is no such failure.
fn record_outcome(pass: Pass, broken: bool) {
    let outcome = if broken { "failed" } else { "answered" };
    metrics::counter!("instructd_upstream_calls_total", "outcome" => outcome).increment(1);
    if broken { pass.failed(Instant::now()) } else { pass.succeeded() }
}

impl Shared {
    /// Forwards the streams' text until they end, the client leaves, or the deadline of the drain passes.
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

#[async_trait]
impl Generator for UpstreamEngine {
    async fn generate(&self, _: GenerateRequest) -> Result<Generation, EngineError> {
        no_ids("prompt")
    }

    async fn generate_text(&self, request: GenerateRequest, prompt: TextPrompt) -> Result<Generation, EngineError> {
        if self.draining.load(SeqCst) {
            return Err(EngineError::Draining);
        }
        let known = self.find(request.version.as_ref())?;
        let slot = Slot(self.shared.clone(), request.n);
        if self.shared.running.fetch_add(request.n, SeqCst) + request.n > self.options.max_running {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        }
        let (streams, seat) = self.open(&known, &request, &prompt).await?;
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            slot.0.follow(streams, seat, &sender).await;
        });
        Ok(Generation { version: known.served, prompt_tokens: 0, events })
    }

    fn ready(&self) -> Result<(), EngineError> {
        self.shared.switch.fleet.ready().map_err(resting)
    }

    fn active(&self) -> Option<Arc<ServedModel>> {
        Some(self.shared.switch.active().served)
    }

    fn loaded(&self) -> Vec<Arc<ServedModel>> {
        self.shared.switch.loaded()
    }

    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError> {
        let known = self.known(version).await?;
        if self.shared.switch.push().is_none() {
            return Ok(known.served);
        }
        let switch = self.shared.switch.clone();
        completely(async move { switch.load(known).await }).await
    }

    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError> {
        let (switch, version) = (self.shared.switch.clone(), version.clone());
        completely(async move { switch.activate(&version).await }).await
    }

    async fn release(&self, version: &ModelVersionId) {
        let (switch, version) = (self.shared.switch.clone(), version.clone());
        let released = completely(async move {
            switch.release(&version).await;
            Ok(())
        });
        if let Err(error) = released.await {
            tracing::warn!(%error, "a version is not released at the upstream servers");
        }
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
