//! A generator that asks other servers (vLLM, SGLang, llama.cpp, other OpenAI-compatible ones): the model that they were
//! started with, and versions that are loaded there ([`push`]). It works on token ids where the servers report them and
//! have the tokenizer of the local model ([`tokens`]), else on text.

mod address;
mod breaker;
mod fleet;
mod follow;
mod http;
pub mod push;
mod rollout;
mod sse;
mod switch;
pub mod tokens;
pub mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::breaker::Pass;
use self::fleet::{Calls, Fleet, Opened, Seat};
use self::follow::Stream;
use self::push::{Loader, PushOptions, Target};
use self::switch::{Known, Switch};
use self::tokens::verify::Verifier;
use self::tokens::{LocalBase, TokenApi, TokenMode};
use self::wire::Kind;
use super::rewards::RewardModels;
use super::tokenizing::Tokenizing;
use super::{
    EngineError, EngineStats, GenerateRequest, Generation, Generator, ModelFiles, RewardScorer, ServedModel,
    TextPrompt, Tokens,
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
    /// The local model whose token ids the servers may have; `None` = completions are text only.
    pub base: Option<LocalBase>,
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
        let Self { options, mut fleet } = self;
        let mode = token_mode(&options, &mut fleet, &discovered.model).await;
        if let Err(why) = &mode {
            tracing::info!(%why, "completions of the upstream servers have no token ids");
        }
        let target = Target {
            version: version.id.clone(),
            version_name: version.name.clone(),
            model: discovered.model.clone(),
            path: discovered.path.unwrap_or_default(),
            is_base: true,
        };
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
        let served = match mode.as_deref() {
            Err(_) => served,
            Ok(TokenMode { base, .. }) => ServedModel {
                vocab_size: base.vocab_size,
                max_context: served.max_context.min(base.max_context),
                takes_text: false,
                eos_ids: base.eos_ids.clone(),
                has_chat_template: base.text.has_template(),
                before_text: base.text.before_text(),
                ..served
            },
        };
        let base = Known { served: Arc::new(served), target };
        let switch = Arc::new(Switch::new(fleet, options.push.clone(), base.clone()).await);
        let is_watched = options.urls.len() > 1 || options.push.is_some() || mode.is_ok();
        if is_watched && !options.health_period.is_zero() {
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
            rewards: RewardModels::new(None),
            mode,
            base,
            draining: AtomicBool::new(false),
            options,
        })
    }
}

/// Finds out whether the token ids of the servers can be used.
///
/// # Errors
/// Why they cannot.
async fn token_mode(options: &UpstreamOptions, fleet: &mut Fleet, model: &str) -> Result<Arc<TokenMode>, String> {
    let api = TokenApi::of(options.kind).ok_or("servers of this kind report no token ids (upstream.kind)")?;
    let base = options.base.clone().ok_or("no local model is known with whose tokenizer theirs can be compared")?;
    let verifier = Verifier { api, base: base.clone(), model: model.to_owned(), timeout: options.response_timeout };
    fleet.verify_tokens(verifier).await?;
    Ok(Arc::new(TokenMode { api, base, tokenizing: Tokenizing::new() }))
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
    /// How token ids are used, or why they are not.
    mode: Result<Arc<TokenMode>, String>,
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

impl UpstreamEngine {
    /// Why the token ids of the servers are not used; `None` if they are.
    pub fn why_no_ids(&self) -> Option<&str> {
        self.mode.as_ref().err().map(String::as_str)
    }

    /// Loads a version, without making it active, at every server that takes it: one server that is away does not
    /// prevent it.
    ///
    /// # Errors
    /// `Failed` with the reasons of all servers, if none takes it; `UnknownModel` where a server serves one version only.
    pub async fn load_where_possible(&self, version: &ModelVersion) -> Result<(), EngineError> {
        let (switch, known) = (self.shared.switch.clone(), self.known(version).await?);
        completely(async move { switch.load_where_possible(known).await }).await
    }

    fn find(&self, version: Option<&ModelVersionId>) -> Result<Known, EngineError> {
        match version {
            Some(id) => self.shared.switch.known(id).ok_or_else(|| EngineError::UnknownModel(id.to_string())),
            None => Ok(self.shared.switch.active()),
        }
    }

    /// The version that a request is for, and its place among the running samples.
    fn admit(&self, request: &GenerateRequest) -> Result<(Known, Slot), EngineError> {
        if self.draining.load(SeqCst) {
            return Err(EngineError::Draining);
        }
        let known = self.find(request.version.as_ref())?;
        let slot = Slot(self.shared.clone(), request.n);
        if self.shared.running.fetch_add(request.n, SeqCst) + request.n > self.options.max_running {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        }
        Ok((known, slot))
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
        let mut path = self.options.files.path(version).await?;
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

#[async_trait]
impl Generator for UpstreamEngine {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        let (known, slot) = self.admit(&request)?;
        self.generate_ids(request, known, slot).await
    }

    async fn generate_text(&self, request: GenerateRequest, prompt: TextPrompt) -> Result<Generation, EngineError> {
        let (known, slot) = self.admit(&request)?;
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

    fn tokens(&self) -> Option<&dyn Tokens> {
        self.mode.is_ok().then_some(self)
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
