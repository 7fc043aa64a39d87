//! The built-in engine: an OS thread for each replica owns the running batches; callers talk to them through a queue.

mod capabilities;
mod replica;
mod versions;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc;

use self::replica::Replica;
use super::device::{self, Devices};
use super::encoders::Encoders;
use super::limits::Limits;
use super::loaded::{LoadedModel, OnDevice};
use super::place::Place;
use super::prefix_index::beginnings;
use super::queue::{Queue, RETRY, Refused, Ticket};
use super::rewards::RewardModels;
use super::sequence::{QueueWait, RunningRequest};
use super::soft_prompts::SoftPromptCache;
use super::stats::StatCounters;
use super::tokenizing::Tokenizing;
use super::{
    BlockingPool, DataDir, DeviceMemory, DeviceStats, EncoderModels, EngineError, EngineStats, GenerateRequest,
    Generation, Generator, Inspection, ModelFiles, RewardScorer, ServedModel, SoftPrompts, Tokens,
};
use crate::domain::{ModelVersion, ModelVersionId};
use crate::gpu::nvml::{self, Meter};
use crate::model::SoftPrompt;
use crate::model::decoder::kv_cache::PAGE;
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
    /// The CPU (`cpu`), or GPUs (`cuda:N`) that each hold a replica of every loaded version.
    pub devices: Vec<String>,
    /// Opens the devices.
    pub open: device::Open,
    /// Reads figures of the devices for monitoring.
    pub meter: Arc<dyn Meter>,
    /// Maximum number of samples of a version that a replica advances together.
    pub max_running: usize,
    /// Maximum number of waiting requests; more are refused with `Overloaded`.
    pub max_waiting: usize,
    pub prefill_tokens: usize,
    /// Size of the cache of each version and replica in tokens; 0 means `max_running` full contexts, at most 2 GiB.
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
            devices: vec!["cpu".to_owned()],
            open: device::open,
            meter: nvml::meter(),
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

/// What the threads of the replicas and the callers share.
struct EngineState {
    queue: Queue<Arc<RunningRequest>>,
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
    devices: Devices,
    state: Arc<EngineState>,
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
    /// Starts a thread for each replica, without any model.
    ///
    /// # Errors
    /// If the devices cannot serve together (see [`Devices::new`]), or a thread cannot be started.
    pub fn start(options: EngineOptions) -> Result<Arc<Self>, EngineError> {
        let devices = Devices::new(&options.devices, options.open).map_err(EngineError::Failed)?;
        let names = devices.names().to_vec();
        let state = Arc::new(EngineState {
            queue: Queue::new(names.len(), options.max_running),
            models: RwLock::default(),
            activations: RwLock::default(),
            draft_model: OnceLock::new(),
            stats: StatCounters::default(),
            draining: AtomicBool::new(false),
        });
        for (index, name) in names.into_iter().enumerate() {
            let (on_cpu, state) = (devices.is_cpu(), state.clone());
            let replica = Replica { index, name, on_cpu, limits: options.limits(), state: state.clone() };
            let thread = std::thread::Builder::new().name(format!("engine {index}"));
            if let Err(e) = thread.spawn(move || replica.run()) {
                state.queue.close();
                return Err(EngineError::Failed(format!("the engine thread did not start: {e}")));
            }
        }
        let place = Place { devices: devices.clone(), weights: options.weights };
        let here = || Arc::new(DataDir(options.data_dir.clone())) as Arc<dyn ModelFiles>;
        Ok(Arc::new(Self {
            files: options.files.clone().unwrap_or_else(here),
            rewards: RewardModels::new(Some(place.clone())),
            soft_prompts: SoftPromptCache::new(),
            encoders: Encoders::new(Some(place)),
            tokenizing: Tokenizing::new(),
            inspecting: BlockingPool::new(MAX_INSPECTING, MAX_WAITING),
            compiling: BlockingPool::new(MAX_COMPILING, MAX_WAITING),
            options,
            devices,
            state,
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

    fn ticket(&self, shared: &RunningRequest) -> Ticket {
        let version = shared.batch_model().served.version.id.clone();
        let beginnings = match self.devices.names().len() {
            1 => Vec::new(),
            _ => beginnings(&version, shared.prefix_root(), &shared.prompt_tokens()),
        };
        Ticket { version, samples: shared.request.n, background: shared.request.background, beginnings }
    }

    fn unload_surplus(&self) {
        let activations = read(&self.state.activations).clone();
        let recent: Vec<_> = activations.iter().rev().take(self.options.max_loaded).collect();
        let mut models = write(&self.state.models);
        // LoRA versions run in the batch of their base.
        let bases: Vec<ModelVersionId> =
            models.values().filter_map(|model| Some(model.base.as_ref()?.served.version.id.clone())).collect();
        models.retain(|id, _| recent.contains(&id) || !activations.contains(id) || bases.contains(id));
        drop(models);
        // Replicas keep what runs until it has ended, and free the rest when they are woken.
        self.state.queue.wake();
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
        let (events, receiver) = mpsc::unbounded_channel();
        let (prompt_tokens, version) = (request.prompt_ids.len(), model.served.clone());
        let mut end_ids = request.params.stop_token_ids.clone();
        if !request.params.ignore_eos {
            end_ids.extend_from_slice(&model.served.eos_ids);
        }
        let queued = QueueWait::since(Instant::now());
        let shared = Arc::new(RunningRequest { request, events, end_ids, soft, queued, guide, model });
        match self.state.queue.submit(self.ticket(&shared), shared, self.options.max_waiting) {
            Ok(()) => {}
            Err(Refused::Full) => return Err(EngineError::Overloaded { retry_after_s: 1 }),
            Err(Refused::Ended) => return Err(EngineError::Failed("the engine threads have ended".into())),
        }
        Ok(Generation { version, prompt_tokens, events: receiver })
    }

    fn ready(&self) -> Result<(), EngineError> {
        self.find(None)?;
        if self.state.queue.loads().iter().all(|load| load.failing) {
            let message = format!("steps fail on {}; the log has the reason", self.devices.names().join(", "));
            return Err(EngineError::Unavailable { message, retry_after_s: RETRY.as_secs() });
        }
        Ok(())
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
        let (cells, totals) = (&self.state.stats, self.state.queue.totals());
        EngineStats {
            running: totals.running,
            waiting: totals.waiting,
            kv_tokens_used: totals.used_tokens,
            kv_tokens_remembered: totals.remembered_tokens,
            kv_tokens_total: totals.total_tokens,
            tokens_generated: cells.generated.load(Relaxed),
            prompt_tokens: cells.prompt_tokens.load(Relaxed),
            draft_tokens: cells.drafted.load(Relaxed),
            draft_tokens_right: cells.accepted.load(Relaxed),
        }
    }

    fn devices(&self) -> Vec<DeviceStats> {
        if self.devices.is_cpu() {
            return Vec::new();
        }
        let models: Vec<_> = read(&self.state.models).values().cloned().collect();
        let loads = self.state.queue.loads();
        let stats = self.devices.names().iter().zip(loads).enumerate().map(|(i, (name, load))| {
            let placed: Vec<_> = models.iter().filter_map(|model| Some((model, model.replicas.get(i)?))).collect();
            // The bytes of each version when it was loaded, and of the adapters that were loaded over it since.
            let bytes = |(base, replica): &(&Arc<LoadedModel>, &OnDevice)| {
                let over = |model: &&Arc<LoadedModel>| model.base.as_ref().is_some_and(|own| Arc::ptr_eq(own, base));
                let adapters: u64 = models.iter().filter(over).map(|model| model.adapter_bytes).sum();
                (replica.memory.0 + adapters, (replica.memory.1 - replica.memory.0).saturating_sub(adapters))
            };
            let others = self.rewards.bytes_on(name) + self.encoders.bytes_on(name);
            let used = placed.iter().map(|placed| bytes(placed).0).sum::<u64>() + others;
            // Each version recorded what was free when it was loaded: the last one has the smallest value. Reward models
            // and encoders are loaded after it.
            let free = placed.iter().map(|placed| bytes(placed).1).min().unwrap_or(0).saturating_sub(others);
            let replicas: Vec<_> = placed.iter().map(|(_, replica)| *replica).collect();
            let bus_id = replicas.iter().find_map(|replica| replica.bus_id.as_deref());
            let reading = bus_id.map(|bus_id| self.options.meter.read(bus_id)).unwrap_or_default();
            DeviceStats {
                device: name.clone(),
                works: !load.failing,
                running: load.sum(|v| v.running),
                models: DeviceMemory { used, total: used + free },
                pages_used: load.sum(|v| v.used_tokens) / PAGE,
                pages_total: replicas.iter().map(|replica| replica.pages).sum(),
                utilization: reading.utilization,
                all_programs: reading.memory.map(|(used, total)| DeviceMemory { used, total }),
            }
        });
        stats.collect()
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
        self.state.queue.abort();
    }
}

impl Drop for LocalEngine {
    fn drop(&mut self) {
        self.state.queue.close();
    }
}
