//! A model version in memory: loading and warming it up, and converting its texts to and from token ids.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::Device;

use super::constraint::{Compiler, Constraint, Guide};
use super::device;
use super::limits::{Limits, cache_tokens};
use super::text::TextStream;
use super::{ChatPrompt, EngineError, GenerateRequest, ServedModel, TextForm};
use crate::domain::ModelVersion;
use crate::gpu;
use crate::model::adapters::peft;
use crate::model::adapters::served::ServedAdapter;
use crate::model::decoder::device::Room;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, StepRows};
use crate::model::{self, Decoder, DeviceModel, ModelConfig, Purpose};
use crate::ops::linear::WeightFormat;
use crate::ops::pool;
use crate::prompt::answer::{Dialect, Thinking, ToolFormat, ToolTags};
use crate::prompt::{ChatError, ChatTemplate, Conversation};
use crate::tokenizer::Tokenizer;

/// Special tokens of fill-in-the-middle prompts: before the prefix, before the suffix, before the middle.
const INFILL_TOKENS: [[&str; 3]; 4] = [
    // Qwen 2.5, CodeGemma.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite, SmolLM.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // DeepSeek Coder.
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    // Code Llama.
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// A version on a device that runs the kernels of `gpu`.
pub(super) struct OnDevice {
    /// Number of cache pages.
    pub pages: usize,
    /// Bytes in use and bytes in total when the version was loaded.
    pub memory: (u64, u64),
    pub model: Mutex<DeviceModel>,
}

/// A version in memory. It is never modified.
pub struct LoadedModel {
    pub served: Arc<ServedModel>,
    pub decoder: Decoder,
    /// The model and its cache on a device that runs the kernels of `gpu`. If present, it computes all steps.
    pub(super) device: Option<OnDevice>,
    pub(super) tokenizer: Option<Tokenizer>,
    /// An invalid template fails the requests that need it, not the loading of the model.
    pub(super) template: Option<Result<ChatTemplate, ChatError>>,
    /// Built when the first constraint is compiled, because that takes long.
    compiler: OnceLock<Result<Compiler, String>>,
    /// The model whose weights a LoRA version shares.
    pub(super) base: Option<Arc<LoadedModel>>,
    /// The adapter of a LoRA version.
    pub lora: Option<Arc<ServedAdapter>>,
}

impl LoadedModel {
    /// The decoder from tokens to text for one sample of a request.
    pub fn text_stream(&self, request: &GenerateRequest) -> TextStream {
        let params = &request.params;
        let include = params.include_stop_str_in_output;
        TextStream::new(self.tokenizer.as_ref(), &request.prompt_ids, &params.stop, include).showing(&params.shown)
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        self.tokenizer.as_ref().ok_or_else(|| EngineError::BadRequest {
            param: "model",
            message: "this model has no tokenizer: send token ids".into(),
        })
    }

    /// Compiles a constraint for an answer to `prompt`. Takes long; call it on a blocking thread.
    ///
    /// # Errors
    /// Those of [`Compiler::compile`].
    pub(super) fn guide(&self, constraint: &Arc<Constraint>, prompt: &[u32]) -> Result<Guide, EngineError> {
        let tokenizer = self.tokenizer()?;
        let compiler = self
            .compiler
            .get_or_init(|| Compiler::new(tokenizer, self.decoder.config.vocab_size, &self.decoder.config.eos_ids));
        let compiler = compiler
            .as_ref()
            .map_err(|message| EngineError::BadRequest { param: constraint.field, message: message.clone() })?;
        compiler.compile(constraint, tokenizer.begins_text(prompt))
    }

    /// The ids of a fill-in-the-middle prompt (arXiv 2207.14255) for the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// `BadRequest` at `suffix` if the vocabulary has no tokens for such prompts.
    pub(super) fn infill_prompt(&self, prefix: &str, suffix: &str) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let special = |name: &&str| tokenizer.token_to_id(name).filter(|id| tokenizer.is_added(*id));
        let found = INFILL_TOKENS.iter().find_map(|names| {
            let ids: Vec<u32> = names.iter().filter_map(special).collect();
            <[u32; 3]>::try_from(ids).ok()
        });
        let Some([before_prefix, before_suffix, before_middle]) = found else {
            let message =
                "suffix is not supported for this model: its vocabulary has no fill-in-the-middle tokens".into();
            return Err(EngineError::BadRequest { param: "suffix", message });
        };
        let text = |left: u32, text: &str| tokenizer.encode_after(&[left], text);
        let bad =
            |e: crate::tokenizer::TokenizerError| EngineError::BadRequest { param: "prompt", message: e.to_string() };
        let mut ids = tokenizer.before_text().to_vec();
        ids.push(before_prefix);
        ids.extend(text(before_prefix, prefix).map_err(bad)?);
        ids.push(before_suffix);
        ids.extend(text(before_suffix, suffix).map_err(bad)?);
        ids.push(before_middle);
        Ok(ids)
    }

    /// # Errors
    /// `BadRequest` if the model has no template or an invalid one.
    pub(super) fn template(&self) -> Result<&ChatTemplate, EngineError> {
        let bad = |message: String| EngineError::BadRequest { param: "messages", message };
        let template = self.template.as_ref();
        let template = template.ok_or_else(|| bad("this model has no chat template: use /v1/completions".into()))?;
        template.as_ref().map_err(|e| bad(e.to_string()))
    }

    /// Renders and tokenizes a conversation, and determines the format of the model's answers.
    pub(super) fn conversation(&self, conversation: &Conversation) -> Result<ChatPrompt, EngineError> {
        let (template, tokenizer) = (self.template()?, self.tokenizer()?);
        let conversation = conversation
            .for_template(template.source())
            .map_err(|(param, message)| EngineError::BadRequest { param, message })?;
        let special = |tag: &&str| {
            let id = tokenizer.token_to_id(tag)?;
            tokenizer.is_special(id).then(|| ((*tag).to_owned(), id))
        };
        let format = ToolFormat::of(template.source());
        if conversation.tools.is_some() && format.is_none() {
            let message = "tools are not supported for this model: the format of its tool calls is unknown".into();
            return Err(EngineError::BadRequest { param: "tools", message });
        }
        let encoded = template.encode_conversation(&conversation, tokenizer);
        let (ids, text) = encoded.map_err(|e| EngineError::BadRequest { param: "messages", message: e.to_string() })?;
        let tags = |format: ToolFormat| format.tags().iter().filter_map(special).collect();
        let tools = format.map(|format| ToolTags { format, special: tags(format) });
        Ok(ChatPrompt { ids, dialect: Dialect { tools, thinking: Thinking::of(template.source(), &text) } })
    }

    pub(super) fn encode(&self, text: &str, form: TextForm<'_>) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let encoded = match form {
            TextForm::Whole { special, parse_special } => tokenizer.encode(text, special, parse_special),
            TextForm::Open { special: true, parse_special } => tokenizer.encode_open(text, parse_special),
            TextForm::Open { special: false, parse_special } => tokenizer.encode(text, false, parse_special),
            TextForm::After(left) => tokenizer.encode_after(left, text),
        };
        encoded.map_err(|e| EngineError::BadRequest { param: "prompt", message: e.to_string() })
    }
}

/// Loads and warms up a version. Takes long; call it on a blocking thread.
pub(super) fn load_model(
    path: &Path,
    version: ModelVersion,
    weights: WeightFormat,
    device_name: &str,
    limits: Limits,
) -> Result<LoadedModel, EngineError> {
    let failed = |e: String| EngineError::Failed(format!("loading '{}': {e}", version.name));
    let device = device::open(device_name).map_err(failed)?;
    let opened = model::open(path).map_err(|e| failed(e.to_string()))?;
    let parameters = opened.files.parameters();
    let decoder = match &device {
        None => Decoder::serve(&opened, weights),
        Some(_) => {
            let tensors = opened.weights(&Device::Cpu, None).map_err(|e| failed(e.to_string()))?;
            Decoder::new(&opened.described.config, &tensors, Purpose::Score)
        }
    };
    let decoder = decoder.map_err(|e| failed(e.to_string()))?;
    let loaded = opened.described;
    let on_device = device.map(|device| on_device(&decoder, device, weights, limits)).transpose().map_err(failed)?;
    if on_device.is_none() {
        warm_up(&decoder).map_err(failed)?;
    }
    pool::return_free_memory();
    let tokenizer = loaded.tokenizer.as_ref();
    let template = chat_template(&version, loaded.chat_template.as_deref(), tokenizer);
    let served = ServedModel {
        vocab_size: loaded.config.vocab_size,
        max_context: loaded.config.max_positions,
        takes_text: false,
        eos_ids: loaded.config.eos_ids.clone(),
        weights: weights.as_str().to_owned(),
        parameters,
        has_chat_template: template.is_some(),
        before_text: tokenizer.map(|t| t.before_text().to_vec()).unwrap_or_default(),
        version,
    };
    Ok(LoadedModel {
        served: Arc::new(served),
        decoder,
        device: on_device,
        tokenizer: loaded.tokenizer,
        template,
        compiler: OnceLock::new(),
        base: None,
        lora: None,
    })
}

/// The version's chat template. An invalid one is logged, and fails the requests that need it.
fn chat_template(
    version: &ModelVersion,
    source: Option<&str>,
    tokenizer: Option<&Tokenizer>,
) -> Option<Result<ChatTemplate, ChatError>> {
    let template = source.map(|source| ChatTemplate::new(source, tokenizer));
    if let Some(Err(error)) = &template {
        tracing::warn!(model = %version.name, %error, "chat requests to this model will be refused");
    }
    template
}

/// Loads a version as a LoRA adapter over `base`, the model from which it was trained. `None` if it has no adapter, or
/// differs from its base in more than the adapter. Takes long; call it on a blocking thread.
pub(super) fn load_lora(
    base: &Arc<LoadedModel>,
    path: &Path,
    version: ModelVersion,
) -> Result<Option<LoadedModel>, EngineError> {
    let dir = path.join(peft::FOLDER);
    if !dir.is_dir() || !base.decoder.on_host() || base.device.is_some() || base.base.is_some() {
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
    let lora = Arc::new(ServedAdapter::new(&base.decoder, &adapter).map_err(|e| failed(e.to_string()))?);
    warm_up_lora(&base.decoder, &lora).map_err(failed)?;
    let tokenizer = described.tokenizer;
    let template = chat_template(&version, described.chat_template.as_deref(), tokenizer.as_ref());
    let served = ServedModel {
        eos_ids: eos_ids.clone(),
        has_chat_template: template.is_some(),
        before_text: tokenizer.as_ref().map(|t| t.before_text().to_vec()).unwrap_or_default(),
        parameters: base.served.parameters + (lora.bytes() / size_of::<f32>()) as u64,
        version,
        ..(*base.served).clone()
    };
    let mut decoder = base.decoder.clone();
    decoder.config.eos_ids = eos_ids;
    Ok(Some(LoadedModel {
        served: Arc::new(served),
        decoder,
        device: None,
        tokenizer,
        template,
        compiler: OnceLock::new(),
        base: Some(base.clone()),
        lora: Some(lora),
    }))
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

/// Loads the model onto a device, with as much of the configured cache as fits.
fn on_device(
    decoder: &Decoder,
    device: Box<dyn gpu::device::Device>,
    weights: WeightFormat,
    limits: Limits,
) -> Result<OnDevice, String> {
    let pages = cache_tokens(&decoder.config, limits).0.div_ceil(PAGE);
    let rows = limits.max_running + limits.prefill_tokens;
    let model = DeviceModel::new(decoder, device, weights, Room { pages, rows, wanted: rows });
    let mut model = model.map_err(|e| e.to_string())?;
    warm_up_device(decoder, &mut model, limits)?;
    if model.page_count() < pages {
        let (tokens, configured) = (model.page_count() * PAGE, pages * PAGE);
        tracing::warn!(tokens, configured, "the device has room for a smaller cache than configured");
    }
    Ok(OnDevice { pages: model.page_count(), memory: model.memory(), model: Mutex::new(model) })
}

/// Runs steps of two tokens, of the fewest that take larger tiles, and of a whole prompt chunk, so that the driver
/// compiles the kernels now. Fails if a logit is not finite, so that such a version is never served.
fn warm_up_device(decoder: &Decoder, model: &mut DeviceModel, limits: Limits) -> Result<(), String> {
    let mut cache = KvCache::on_device(model.page_count() * PAGE);
    let most = limits.prefill_tokens.min(decoder.config.max_positions);
    for tokens in [2, 33, most].into_iter().filter(|tokens| *tokens <= most) {
        let mut sequence = CachedSequence::default();
        if !cache.reserve(&mut sequence, tokens) {
            continue;
        }
        let mut rows = StepRows::default();
        rows.push(&vec![0; tokens], &sequence);
        let logits = model.step(decoder, &rows, &[tokens as u32 - 1], &[]).map_err(|e| e.to_string())?.logits;
        finite(Ok(logits.iter().map(|v| v.abs()).sum()))?;
        cache.release_all(&mut sequence);
    }
    Ok(())
}

/// Runs one forward pass of two tokens. Fails if a logit is not finite, so that such a version is never served.
fn warm_up(decoder: &Decoder) -> Result<(), String> {
    let run = || -> candle_core::Result<f32> {
        let hidden = decoder.forward(&model::PackedBatch::new(&[[0u32, 1]]))?;
        decoder.logits(&hidden)?.abs()?.sum_all()?.to_scalar::<f32>()
    };
    finite(run())
}
