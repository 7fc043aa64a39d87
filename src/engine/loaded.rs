//! A model version in memory: loading and warming it up.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::constraint::{Compiler, Constraint, Guide};
use super::device::{Devices, NamedDevice};
use super::limits::{Limits, cache_tokens};
use super::model_text::ModelText;
use super::text::TextStream;
use super::{EngineError, GenerateRequest, ServedModel};
use crate::domain::ModelVersion;
use crate::gpu;
use crate::model::adapters::peft;
use crate::model::adapters::served::ServedAdapter;
use crate::model::decoder::device::{AdapterImage, Blocks, Room};
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, StepRows};
use crate::model::{self, Decoder, DeviceModel, ModelConfig, Opened};
use crate::ops::linear::WeightFormat;
use crate::ops::pool;

/// A replica of a version on a device that runs the kernels of `gpu`.
pub(super) struct OnDevice {
    /// The device's name, for messages.
    pub name: String,
    /// Number of cache pages.
    pub pages: usize,
    /// Bytes in use and bytes in total when the version was loaded.
    pub memory: (u64, u64),
    /// The device's PCI address.
    pub bus_id: Option<String>,
    model: Mutex<DeviceModel>,
}

impl OnDevice {
    /// The model, which computes one step at a time.
    pub fn model(&self) -> MutexGuard<'_, DeviceModel> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes a token of a new sequence, to find out whether the device works. Does nothing if `cache` has no free
    /// page.
    ///
    /// # Errors
    /// Those of the device; a logit that is not finite.
    pub fn check(&self, decoder: &Decoder, cache: &mut KvCache) -> Result<(), String> {
        compute(decoder, &mut self.model(), cache, 1)
    }
}

/// A version in memory. It is never modified.
pub struct LoadedModel {
    pub served: Arc<ServedModel>,
    pub decoder: Decoder,
    /// The model and its cache on each device of the engine, in their order, if these run the kernels of `gpu`. They
    /// compute all steps. Empty on the CPU.
    pub(super) replicas: Vec<OnDevice>,
    /// Its tokenizer and chat template.
    pub text: Arc<ModelText>,
    /// Built when the first constraint is compiled, because that takes long.
    compiler: OnceLock<Result<Compiler, String>>,
    /// The model whose weights a LoRA version shares.
    pub(super) base: Option<Arc<LoadedModel>>,
    /// The adapter of a LoRA version.
    pub lora: Option<Arc<ServedAdapter>>,
    /// Bytes of the adapter on each device; 0 on the CPU.
    pub(super) adapter_bytes: u64,
}

impl LoadedModel {
    /// The decoder from tokens to text for one sample of a request.
    pub fn text_stream(&self, request: &GenerateRequest) -> TextStream {
        self.text.stream(request)
    }

    /// Compiles a constraint for an answer to `prompt`. Takes long; call it on a blocking thread.
    ///
    /// # Errors
    /// Those of [`Compiler::compile`].
    pub(super) fn guide(&self, constraint: &Arc<Constraint>, prompt: &[u32]) -> Result<Guide, EngineError> {
        let tokenizer = self.text.tokenizer()?;
        let compiler = self
            .compiler
            .get_or_init(|| Compiler::new(tokenizer, self.decoder.config.vocab_size, &self.decoder.config.eos_ids));
        let compiler = compiler
            .as_ref()
            .map_err(|message| EngineError::BadRequest { param: constraint.field, message: message.clone() })?;
        compiler.compile(constraint, tokenizer.begins_text(prompt))
    }
}

/// Loads and warms up a version, on all devices. Takes long; call it on a blocking thread.
pub(super) fn load_model(
    path: &Path,
    version: ModelVersion,
    weights: WeightFormat,
    devices: &Devices,
    limits: Limits,
) -> Result<LoadedModel, EngineError> {
    let failed = |e: String| EngineError::Failed(format!("loading '{}': {e}", version.name));
    let devices = devices.open().map_err(failed)?;
    let opened = model::open(path).map_err(|e| failed(e.to_string()))?;
    let parameters = opened.files.parameters();
    let decoder = match devices.is_empty() {
        true => Decoder::serve(&opened, weights),
        false => Decoder::without_blocks(&opened),
    };
    let decoder = decoder.map_err(|e| failed(e.to_string()))?;
    let replicas = on_devices(&decoder, &opened, devices, weights, limits).map_err(failed)?;
    let loaded = opened.described;
    if replicas.is_empty() {
        warm_up(&decoder).map_err(failed)?;
    }
    pool::return_free_memory();
    let text = ModelText::new(&version.name, loaded.tokenizer, loaded.chat_template.as_deref());
    let served = ServedModel {
        vocab_size: loaded.config.vocab_size,
        max_context: loaded.config.max_positions,
        takes_text: false,
        eos_ids: loaded.config.eos_ids.clone(),
        weights: weights.as_str().to_owned(),
        parameters,
        has_chat_template: text.has_template(),
        before_text: text.before_text(),
        version,
    };
    Ok(LoadedModel {
        served: Arc::new(served),
        decoder,
        replicas,
        text: Arc::new(text),
        compiler: OnceLock::new(),
        base: None,
        lora: None,
        adapter_bytes: 0,
    })
}

/// Loads a version as a LoRA adapter over `base`, the model from which it was trained, on all devices of the base. `None`
/// if it has no adapter, or differs from its base in more than the adapter. Takes long; call it on a blocking thread.
pub(super) fn load_lora(
    base: &Arc<LoadedModel>,
    path: &Path,
    version: ModelVersion,
) -> Result<Option<LoadedModel>, EngineError> {
    let dir = path.join(peft::FOLDER);
    if !dir.is_dir() || !base.decoder.on_host() || base.base.is_some() {
        return Ok(None);
    }
    let failed = |e: String| EngineError::Failed(format!("loading '{}': {e}", version.name));
    let described = model::describe(path).map_err(|e| failed(e.to_string()))?;
    let eos_ids = described.config.eos_ids.clone();
    let config = ModelConfig { eos_ids: base.decoder.config.eos_ids.clone(), ..described.config };
    if config != base.decoder.config {
        return Ok(None);
    }
    let adapter = peft::read(&dir, &config).map_err(|e| failed(e.to_string()))?;
    if adapter.carries_base() {
        return Ok(None);
    }
    let (lora, adapter_bytes) = match base.replicas.is_empty() {
        true => {
            let lora = Arc::new(ServedAdapter::new(&base.decoder, &adapter).map_err(|e| failed(e.to_string()))?);
            warm_up_lora(&base.decoder, &lora).map_err(failed)?;
            (lora, 0)
        }
        false => lora_on_devices(base, &adapter).map_err(failed)?,
    };
    let text = ModelText::new(&version.name, described.tokenizer, described.chat_template.as_deref());
    let served = ServedModel {
        eos_ids: eos_ids.clone(),
        has_chat_template: text.has_template(),
        before_text: text.before_text(),
        parameters: base.served.parameters + lora.parameters() as u64,
        version,
        ..(*base.served).clone()
    };
    let mut decoder = base.decoder.clone();
    decoder.config.eos_ids = eos_ids;
    Ok(Some(LoadedModel {
        served: Arc::new(served),
        decoder,
        replicas: Vec::new(),
        text: Arc::new(text),
        compiler: OnceLock::new(),
        base: Some(base.clone()),
        lora: Some(lora),
        adapter_bytes,
    }))
}

/// Copies an adapter to all devices of its base, between steps; returns its name and its bytes on each. After an error
/// the devices free it again.
fn lora_on_devices(base: &LoadedModel, adapter: &peft::Adapter) -> Result<(Arc<ServedAdapter>, u64), String> {
    let (lora, mut bytes) = (Arc::new(ServedAdapter::on_devices(adapter)), 0);
    let Some(first) = base.replicas.first() else { return Err("the base is on no device".to_owned()) };
    let element = first.model().element();
    let image = AdapterImage::new(&base.decoder.config, element, adapter).map_err(|e| e.to_string())?;
    for replica in &base.replicas {
        let loaded = replica.model().load_adapter(&base.decoder, &lora, &image);
        bytes = loaded.map_err(|e| format!("{}: {e}", replica.name))? as u64;
    }
    Ok((lora, bytes))
}

/// Runs a step of two tokens with the adapter. Fails if a logit is not finite.
fn warm_up_lora(decoder: &Decoder, lora: &Arc<ServedAdapter>) -> Result<(), String> {
    let run = || -> candle_core::Result<f32> {
        let mut cache = KvCache::new(&decoder.config, PAGE);
        let mut sequence = CachedSequence::default();
        if !cache.reserve(&mut sequence, 2) {
            candle_core::bail!("no room for two tokens");
        }
        let mut rows = StepRows::default();
        rows.push(&[0, 1], &sequence);
        rows.with_adapter(lora, 2);
        decoder.logits(&decoder.step(&rows, &mut cache)?)?.abs()?.sum_all()?.to_scalar::<f32>()
    };
    finite(run())
}

fn finite(total: candle_core::Result<f32>) -> Result<(), String> {
    match total {
        Ok(total) if total.is_finite() => Ok(()),
        Ok(_) => Err("the model's logits are not finite".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Loads the model onto all devices at the same time.
fn on_devices(
    decoder: &Decoder,
    opened: &Opened,
    devices: Vec<NamedDevice>,
    weights: WeightFormat,
    limits: Limits,
) -> Result<Vec<OnDevice>, String> {
    // Not on rayon's threads, which draw tokens for the versions that are being served.
    std::thread::scope(|scope| {
        let load = |(name, device): NamedDevice| {
            scope.spawn(move || {
                on_device(decoder, opened, &name, device, weights, limits).map_err(|e| format!("{name}: {e}"))
            })
        };
        let threads: Vec<_> = devices.into_iter().map(load).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned())));
        // All threads are waited for, also after an error.
        joined.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Loads the model onto a device, with as much of the configured cache as fits.
fn on_device(
    decoder: &Decoder,
    opened: &Opened,
    name: &str,
    device: Box<dyn gpu::device::Device>,
    weights: WeightFormat,
    limits: Limits,
) -> Result<OnDevice, String> {
    let pages = cache_tokens(&decoder.config, limits).0.div_ceil(PAGE);
    let rows = limits.max_running + limits.prefill_tokens;
    let blocks = Blocks::Files(opened);
    let room = Room { pages, longest: decoder.config.max_positions, rows, wanted: rows };
    let model = DeviceModel::new(decoder, blocks, device, weights, room);
    let mut model = model.map_err(|e| e.to_string())?;
    warm_up_device(decoder, &mut model, limits)?;
    if model.page_count() < pages {
        let (tokens, configured) = (model.page_count() * PAGE, pages * PAGE);
        tracing::warn!(device = name, tokens, configured, "the device has room for a smaller cache than configured");
    }
    let (pages, memory, bus_id) = (model.page_count(), model.memory(), model.bus_id());
    Ok(OnDevice { name: name.to_owned(), pages, memory, bus_id, model: Mutex::new(model) })
}

/// Runs steps of two tokens, of the fewest that take larger tiles, and of a whole prompt chunk, so that the driver
/// compiles the kernels now. Fails if a logit is not finite, so that such a version is never served.
fn warm_up_device(decoder: &Decoder, model: &mut DeviceModel, limits: Limits) -> Result<(), String> {
    let mut cache = KvCache::on_device(model.page_count() * PAGE);
    let most = limits.prefill_tokens.min(decoder.config.max_positions);
    for tokens in [2, 33, most].into_iter().filter(|tokens| *tokens <= most) {
        compute(decoder, model, &mut cache, tokens)?;
    }
    Ok(())
}

/// Runs a step of `tokens` tokens of a new sequence and releases its pages; does nothing if there are too few. Fails if
/// a logit is not finite.
fn compute(decoder: &Decoder, model: &mut DeviceModel, cache: &mut KvCache, tokens: usize) -> Result<(), String> {
    let mut sequence = CachedSequence::default();
    if !cache.reserve(&mut sequence, tokens) {
        return Ok(());
    }
    let mut rows = StepRows::default();
    rows.push(&vec![0; tokens], &sequence);
    let result = model.step(decoder, &rows, &[tokens as u32 - 1], &[]);
    cache.release_all(&mut sequence);
    let logits = result.map_err(|e| e.to_string())?.logits;
    finite(Ok(logits.iter().map(|v| v.abs()).sum()))
}

/// Runs one forward pass of two tokens. Fails if a logit is not finite, so that such a version is never served.
fn warm_up(decoder: &Decoder) -> Result<(), String> {
    let run = || -> candle_core::Result<f32> {
        let hidden = decoder.forward(&model::PackedBatch::new(&[[0u32, 1]]))?;
        decoder.logits(&hidden)?.abs()?.sum_all()?.to_scalar::<f32>()
    };
    finite(run())
}
