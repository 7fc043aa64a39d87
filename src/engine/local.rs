//! The built-in engine: one OS thread owns the running batches; callers talk to it through a channel.

mod capabilities;
mod versions;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::encoders::Encoders;
use super::limits::Limits;
use super::loaded::LoadedModel;
use super::rewards::RewardModels;
use super::scheduler::Scheduler;
use super::sequence::{QueueWait, RunningRequest};
use super::soft_prompts::SoftPromptCache;
use super::stats::StatCounters;
use super::tokenizing::Tokenizing;
use super::{
    BlockingPool, DataDir, DeviceMemory, EncoderModels, EngineError, EngineStats, GenerateRequest, Generation,
    Generator, Inspection, ModelFiles, RewardScorer, ServedModel, SoftPrompts, Tokens,
};
use crate::domain::{ModelVersion, ModelVersionId};
use crate::model::SoftPrompt;
use crate::ops::kv_blocks::KvFormat;
use crate::ops::linear::WeightFormat;

/// Maximum number of concurrent tasks of each kind on blocking threads, and of tasks of a kind that wait.
const MAX_INSPECTING: usize = 1;
const MAX_COMPILING: usize = 2;
const MAX_WAITING: usize = 64;

/// Settings of the engine, from the configuration.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The directory to which artifact paths of model versions are relative.
    pub data_dir: PathBuf,
    pub weights: WeightFormat,
    /// See `device::open`.
    pub device: String,
    pub max_running: usize,
    /// Maximum number of waiting requests; more are refused with `Overloaded`.
    pub max_waiting: usize,
    pub prefill_tokens: usize,
    /// Size of each version's cache in tokens; 0 means `max_running` full contexts, at most 2 GiB.
    pub kv_tokens: usize,
    /// How the cache stores keys and values. CPU only.
    pub kv_format: KvFormat,
    /// Finds versions that are not under `data_dir`.
    pub files: Option<Arc<dyn ModelFiles>>,
    /// LoRA versions share the weights of the model from which they were trained, instead of being loaded merged.
    pub share_base: bool,
    /// Maximum number of tokens drafted for each sample and step, from the text so far or by the draft model
    /// ([`LocalEngine::load_draft_model`]); 0 turns drafting off. CPU only.
    pub draft_tokens: usize,
    /// Maximum number of versions in memory. Beyond it, the least recently activated ones are unloaded once idle.
    pub max_loaded: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            weights: WeightFormat::F32,
            device: "cpu".to_owned(),
            max_running: 64,
            max_waiting: 256,
            prefill_tokens: 512,
            kv_tokens: 0,
            kv_format: KvFormat::F32,
            max_loaded: 3,
            files: None,
            share_base: false,
            draft_tokens: 0,
        }
    }
}

impl EngineOptions {
    fn limits(&self) -> Limits {
        Limits {
            max_running: self.max_running,
            draft_tokens: self.draft_tokens,
            prefill_tokens: self.prefill_tokens,
            kv_tokens: self.kv_tokens,
            kv_format: self.kv_format,
        }
    }
}

enum Command {
    Submit(Arc<RunningRequest>),
    /// Ends all requests with `Draining`.
    Abort,
}

/// What the engine thread and the callers share.
struct EngineState {
    models: RwLock<HashMap<ModelVersionId, Arc<LoadedModel>>>,
    /// Activated versions, the active one last.
    activations: RwLock<Vec<ModelVersionId>>,
    /// Drafts tokens for the served versions.
    draft_model: OnceLock<Arc<LoadedModel>>,
    stats: StatCounters,
    draining: AtomicBool,
}

/// The engine of this process.
pub struct LocalEngine {
    options: EngineOptions,
    state: Arc<EngineState>,
    commands: Sender<Command>,
    files: Arc<dyn ModelFiles>,
    rewards: RewardModels,
    soft_prompts: SoftPromptCache,
    encoders: Encoders,
    tokenizing: Tokenizing,
    /// Attention maps.
    inspecting: BlockingPool,
    /// Constraints.
    compiling: BlockingPool,
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl LocalEngine {
    /// Starts the engine thread, without any model.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(options: EngineOptions) -> Result<Arc<Self>, EngineError> {
        let state = Arc::new(EngineState {
            models: RwLock::default(),
            activations: RwLock::default(),
            draft_model: OnceLock::new(),
            stats: StatCounters::default(),
            draining: AtomicBool::new(false),
        });
        let (commands, inbox) = channel();
        let limits = options.limits();
        let thread_state = state.clone();
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || engine_thread(&inbox, &thread_state, limits))
            .map_err(|e| EngineError::Failed(format!("the engine thread did not start: {e}")))?;
        let here = || Arc::new(DataDir(options.data_dir.clone())) as Arc<dyn ModelFiles>;
        Ok(Arc::new(Self {
            files: options.files.clone().unwrap_or_else(here),
            rewards: RewardModels::new(),
            soft_prompts: SoftPromptCache::new(),
            encoders: Encoders::new(),
            tokenizing: Tokenizing::new(),
            inspecting: BlockingPool::new(MAX_INSPECTING, MAX_WAITING),
            compiling: BlockingPool::new(MAX_COMPILING, MAX_WAITING),
            options,
            state,
            commands,
        }))
    }

    fn find(&self, version: Option<&ModelVersionId>) -> Result<Arc<LoadedModel>, EngineError> {
        let id = match version {
            Some(id) => id.clone(),
            None => read(&self.state.activations).last().cloned().ok_or(EngineError::NotReady)?,
        };
        read(&self.state.models).get(&id).cloned().ok_or_else(|| EngineError::UnknownModel(id.to_string()))
    }

    fn check(model: &LoadedModel, request: &GenerateRequest, soft: Option<&SoftPrompt>) -> Result<(), EngineError> {
        let bad = |param, message: String| Err(EngineError::BadRequest { param, message });
        let (facts, prompt) = (&model.served, &request.prompt_ids);
        if prompt.is_empty() {
            return bad("prompt", "the prompt has no tokens".into());
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= facts.vocab_size) {
            return bad("prompt", format!("token id {id} is outside the vocabulary of {}", facts.vocab_size));
        }
        if let Some((id, _)) = request.params.warpers.logit_bias.iter().find(|(id, _)| *id as usize >= facts.vocab_size)
        {
            return bad("logit_bias", format!("token id {id} is outside the vocabulary of {}", facts.vocab_size));
        }
        if let Some(id) = request.params.stop_token_ids.iter().find(|id| **id as usize >= facts.vocab_size) {
            return bad("stop_token_ids", format!("token id {id} is outside the vocabulary of {}", facts.vocab_size));
        }
        if request.n == 0 {
            return bad("n", "at least one sample is needed".into());
        }
        if soft.is_some_and(|soft| soft.check(&model.decoder.config).is_err()) {
            return bad("prompt_adapter", "the soft prompt was tuned for another model".into());
        }
        let needed = soft.map_or(0, |s| s.info.n_tokens) + prompt.len() + request.params.max_tokens;
        if needed > facts.max_context {
            let message = format!(
                "the prompt has {} tokens and max_tokens is {}, together over the model's context of {}",
                prompt.len(),
                request.params.max_tokens,
                facts.max_context
            );
            return Err(EngineError::TooLong { param: "max_tokens", message });
        }
        Ok(())
    }

    /// `None` if no model is on a device.
    fn device_memory(&self) -> Option<DeviceMemory> {
        let models = read(&self.state.models);
        let held = models.values().filter_map(|model| model.device.as_ref()).map(|device| device.memory);
        held.fold(None, |sum: Option<DeviceMemory>, (used, total)| {
            let sum = sum.unwrap_or_default();
            Some(DeviceMemory { used: sum.used + used, total: sum.total + total })
        })
    }

    fn unload_surplus(&self) {
        let activations = read(&self.state.activations).clone();
        let recent: Vec<_> = activations.iter().rev().take(self.options.max_loaded).collect();
        write(&self.state.models)
            .retain(|id, model| recent.contains(&id) || !activations.contains(id) || Arc::strong_count(model) > 1);
    }
}

#[async_trait]
impl Generator for LocalEngine {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        if self.state.draining.load(SeqCst) {
            return Err(EngineError::Draining);
        }
        let model = self.find(request.version.as_ref())?;
        let soft = request.soft_prompt.as_ref().map(|id| self.soft_prompts.get(id)).transpose()?;
        Self::check(&model, &request, soft.as_deref())?;
        let guide = match request.params.constraint.clone() {
            None => None,
            Some(constraint) => {
                let (model, prompt) = (model.clone(), request.prompt_ids.clone());
                Some(self.compiling.run(move |_| model.guide(&constraint, &prompt)).await?)
            }
        };
        let stats = &self.state.stats;
        if stats.queued.load(SeqCst) + stats.waiting.load(SeqCst) >= self.options.max_waiting {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        }
        stats.queued.fetch_add(1, SeqCst);
        let (events, receiver) = mpsc::unbounded_channel();
        let (prompt_tokens, version) = (request.prompt_ids.len(), model.served.clone());
        let mut end_ids = request.params.stop_token_ids.clone();
        if !request.params.ignore_eos {
            end_ids.extend_from_slice(&model.served.eos_ids);
        }
        let queued = QueueWait::since(Instant::now());
        let shared = Arc::new(RunningRequest { request, events, end_ids, soft, queued, guide, model });
        if self.commands.send(Command::Submit(shared)).is_err() {
            return Err(EngineError::Failed("the engine thread has ended".into()));
        }
        Ok(Generation { version, prompt_tokens, events: receiver })
    }

    fn active(&self) -> Option<Arc<ServedModel>> {
        self.find(None).ok().map(|m| m.served.clone())
    }

    fn loaded(&self) -> Vec<Arc<ServedModel>> {
        let mut all: Vec<_> = read(&self.state.models).values().map(|m| m.served.clone()).collect();
        all.sort_by(|a, b| a.version.id.cmp(&b.version.id));
        all
    }

    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError> {
        if let Some(model) = read(&self.state.models).get(&version.id) {
            return Ok(model.served.clone());
        }
        if self.options.share_base
            && let Some(parent) = self.files.parent(version).await
            && let Some(model) = self.load_lora(version, &parent).await?
        {
            return Ok(self.insert(model).served.clone());
        }
        Ok(self.load_whole(version).await?.served.clone())
    }

    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError> {
        self.find(Some(version))?;
        let mut activations = write(&self.state.activations);
        activations.retain(|id| id != version);
        activations.push(version.clone());
        drop(activations);
        self.unload_surplus();
        Ok(())
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        Some(self)
    }

    fn rewards(&self) -> Option<&dyn RewardScorer> {
        Some(self)
    }

    fn soft_prompts(&self) -> Option<&dyn SoftPrompts> {
        Some(self)
    }

    fn encoders(&self) -> Option<&dyn EncoderModels> {
        Some(self)
    }

    fn inspection(&self) -> Option<&dyn Inspection> {
        Some(self)
    }

    fn stats(&self) -> EngineStats {
        let cells = &self.state.stats;
        EngineStats {
            running: cells.running.load(Relaxed),
            waiting: cells.waiting.load(Relaxed) + cells.queued.load(Relaxed),
            kv_tokens_used: cells.used_tokens.load(Relaxed),
            kv_tokens_remembered: cells.remembered_tokens.load(Relaxed),
            kv_tokens_total: cells.total_tokens.load(Relaxed),
            tokens_generated: cells.generated.load(Relaxed),
            prompt_tokens: cells.prompt_tokens.load(Relaxed),
            draft_tokens: cells.drafted.load(Relaxed),
            draft_tokens_right: cells.accepted.load(Relaxed),
            device: self.device_memory(),
        }
    }

    async fn drain(&self, deadline: Duration) {
        self.state.draining.store(true, SeqCst);
        let end = Instant::now() + deadline;
        while Instant::now() < end {
            let stats = self.stats();
            if stats.running + stats.waiting == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.commands.send(Command::Abort).ok();
    }
}

/// Serves until every sender is dropped. Blocks only while all schedulers are idle.
fn engine_thread(inbox: &Receiver<Command>, state: &EngineState, limits: Limits) {
    let mut schedulers: Vec<Scheduler> = Vec::new();
    loop {
        let idle = schedulers.iter().all(Scheduler::is_idle);
        let mut command = match idle {
            true => match inbox.recv() {
                Ok(command) => Some(command),
                Err(_) => return,
            },
            false => None,
        };
        loop {
            if let Some(command) = command.take() {
                dispatch(command, &mut schedulers, state, limits);
            }
            match inbox.try_recv() {
                Ok(next) => command = Some(next),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) if idle => return,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        // Inside the pool, kernels fork and join without waking this thread for every operation.
        rayon::scope(|_| {
            for scheduler in schedulers.iter_mut().filter(|l| !l.is_idle()) {
                scheduler.step(&state.stats);
            }
        });
        let models = read(&state.models);
        schedulers.retain(|l| !l.is_idle() || models.contains_key(&l.model.served.version.id));
        drop(models);
        publish_stats(&schedulers, &state.stats);
    }
}

fn dispatch(command: Command, schedulers: &mut Vec<Scheduler>, state: &EngineState, limits: Limits) {
    match command {
        Command::Submit(shared) => {
            // LoRA versions of one base share its batch.
            let model = shared.model.base.as_ref().unwrap_or(&shared.model).clone();
            let id = &model.served.version.id;
            let scheduler = match schedulers.iter().position(|l| l.model.served.version.id == *id) {
                Some(i) => &mut schedulers[i],
                None => {
                    schedulers.push(Scheduler::new(model, limits, state.draft_model.get()));
                    schedulers.last_mut().expect("just pushed")
                }
            };
            scheduler.submit(shared);
            state.stats.waiting.fetch_add(1, SeqCst);
            state.stats.queued.fetch_sub(1, SeqCst);
        }
        Command::Abort => schedulers.iter_mut().for_each(|l| l.fail_all(&EngineError::Draining)),
    }
}

fn publish_stats(schedulers: &[Scheduler], stats: &StatCounters) {
    // The total first, so that a reader never sees more tokens in use than there are.
    stats.total_tokens.store(schedulers.iter().map(Scheduler::total_tokens).sum(), SeqCst);
    stats.running.store(schedulers.iter().map(Scheduler::running).sum(), SeqCst);
    stats.waiting.store(schedulers.iter().map(Scheduler::waiting).sum(), SeqCst);
    stats.used_tokens.store(schedulers.iter().map(Scheduler::used_tokens).sum(), Relaxed);
    stats.remembered_tokens.store(schedulers.iter().map(Scheduler::remembered_tokens).sum(), Relaxed);
}
