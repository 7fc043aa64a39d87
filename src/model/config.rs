//! One configuration for every architecture, read from Hugging Face config.json or GGUF metadata.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which family the parameter names and the block layout follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    Gpt2,
    Llama,
    Qwen2,
    Bert,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · sigmoid(x); gated in Llama-type MLPs.
    Silu,
    /// 0.5x(1 + erf(x/√2)).
    GeluErf,
    /// The tanh approximation, `gelu_new` in Hugging Face.
    GeluTanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionKind {
    Learned,
    /// Rotary, half-split ("neox") layout as in Hugging Face.
    Rope {
        theta: f64,
    },
}

/// Shape of one model. Sizes are counts, `norm_eps` is dimensionless.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub arch: Arch,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub position: PositionKind,
    /// Bias on q, k, v (Qwen2; Llama with `attention_bias`). GPT-2 and BERT always have all biases.
    pub qkv_bias: bool,
    pub tie_embeddings: bool,
    /// BERT segments; 0 elsewhere.
    pub type_vocab_size: usize,
    pub bos_id: Option<u32>,
    /// Every id that ends a generation (config and generation_config joined).
    pub eos_ids: Vec<u32>,
    pub pad_id: Option<u32>,
}

/// Why a configuration was refused; `Unsupported` means it is well-formed, but would be computed wrongly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("config: {0}")]
    Malformed(String),
    #[error("config: {0} is not supported")]
    Unsupported(String),
}

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Larger counts than these are taken for damage.
const MAX_SIZE: u64 = 1 << 27;
const MAX_LAYERS: u64 = 4096;

fn malformed<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfigError::Malformed(message.into()))
}

fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfigError::Unsupported(message.into()))
}

/// The value of `key`; JSON null counts as absent.
fn get<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|v| !v.is_null())
}

fn size_opt(config: &Value, key: &str) -> Result<Option<usize>> {
    match get(config, key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => malformed(format!("`{key}` must be a whole number from 1 to {MAX_SIZE}, found {value}")),
        },
    }
}

fn size(config: &Value, key: &str) -> Result<usize> {
    size_opt(config, key)?.map_or_else(|| malformed(format!("`{key}` is missing")), Ok)
}

fn number_opt(config: &Value, key: &str) -> Result<Option<f64>> {
    match get(config, key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => malformed(format!("`{key}` must be a positive number, found {value}")),
        },
    }
}

fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match get(config, key) {
        None => Ok(default),
        Some(value) => {
            value.as_bool().map_or_else(|| malformed(format!("`{key}` must be true or false, found {value}")), Ok)
        }
    }
}

/// A token id, or a list of them, or nothing.
fn ids(config: &Value, key: &str) -> Result<Vec<u32>> {
    let one = |v: &Value| {
        v.as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .map_or_else(|| malformed(format!("`{key}` must hold token ids, found {v}")), Ok)
    };
    match get(config, key) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(one).collect(),
        // Some published configs write −1 for "none".
        Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(value) => Ok(vec![one(value)?]),
    }
}

fn activation(config: &Value, key: &str, default: &str) -> Result<Activation> {
    match get(config, key).map_or(Some(default), Value::as_str) {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::GeluErf),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some(other) => unsupported(format!("`{key}` = {other:?}")),
        None => malformed(format!("`{key}` must be a string")),
    }
}

/// θ of rotary embeddings: `rope_parameters.rope_theta` (transformers 5) or `rope_theta` (older).
/// Any scaling of the frequencies is refused, because leaving it out would give wrong numbers.
fn rope_theta(config: &Value) -> Result<f64> {
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(parameters) = get(config, key) else { continue };
        let kind = get(parameters, "rope_type").or_else(|| get(parameters, "type")).and_then(Value::as_str);
        if let Some(kind) = kind.filter(|kind| *kind != "default") {
            return unsupported(format!("rotary scaling of type {kind:?}"));
        }
    }
    if let Some(partial) = number_opt(config, "partial_rotary_factor")?.filter(|f| *f != 1.0) {
        return unsupported(format!("`partial_rotary_factor` = {partial}"));
    }
    let nested = match get(config, "rope_parameters") {
        Some(parameters) => number_opt(parameters, "rope_theta")?,
        None => None,
    };
    Ok(nested.or(number_opt(config, "rope_theta")?).unwrap_or(10_000.0))
}

impl ModelConfig {
    /// Reads config.json of model type gpt2, llama, qwen2 or bert; end tokens of generation_config.json
    /// are joined in.
    ///
    /// # Errors
    /// `Malformed` when a field is missing, of the wrong type or out of range; `Unsupported` when the
    /// model needs something that this crate does not compute (scaled rotary, sliding window, …).
    pub fn from_hf(config: &Value, generation: Option<&Value>) -> Result<Self> {
        let Some(kind) = get(config, "model_type").and_then(Value::as_str) else {
            return malformed("`model_type` is missing");
        };
        let mut parsed = match kind {
            "gpt2" => Self::gpt2(config)?,
            "llama" | "mistral" => Self::llama(config, Arch::Llama)?,
            "qwen2" => Self::llama(config, Arch::Qwen2)?,
            "bert" => Self::bert(config)?,
            other => return unsupported(format!("model type {other:?} (known: gpt2, llama, qwen2, bert)")),
        };
        parsed.bos_id = ids(config, "bos_token_id")?.first().copied();
        parsed.pad_id = ids(config, "pad_token_id")?.first().copied();
        parsed.eos_ids = ids(config, "eos_token_id")?;
        if let Some(generation) = generation {
            for id in ids(generation, "eos_token_id")? {
                if !parsed.eos_ids.contains(&id) {
                    parsed.eos_ids.push(id);
                }
            }
        }
        // An end token outside the vocabulary can never be drawn; some tiny test models carry one.
        parsed.eos_ids.retain(|id| (*id as usize) < parsed.vocab_size);
        parsed.check()?;
        Ok(parsed)
    }

    fn gpt2(config: &Value) -> Result<Self> {
        if !flag(config, "scale_attn_weights", true)? || flag(config, "scale_attn_by_inverse_layer_idx", false)? {
            return unsupported("GPT-2 with unusual attention scaling");
        }
        let hidden_size = size(config, "n_embd")?;
        let n_heads = size(config, "n_head")?;
        Ok(Self {
            arch: Arch::Gpt2,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size_opt(config, "n_inner")?.unwrap_or(4 * hidden_size),
            n_layers: size(config, "n_layer")?,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: hidden_size / n_heads,
            max_positions: size(config, "n_positions").or_else(|_| size(config, "n_ctx"))?,
            norm_eps: number_opt(config, "layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation(config, "activation_function", "gelu_new")?,
            position: PositionKind::Learned,
            qkv_bias: true,
            tie_embeddings: flag(config, "tie_word_embeddings", true)?,
            type_vocab_size: 0,
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
        })
    }

    fn llama(config: &Value, arch: Arch) -> Result<Self> {
        let hidden_size = size(config, "hidden_size")?;
        let n_heads = size(config, "num_attention_heads")?;
        let n_layers = size(config, "num_hidden_layers")?;
        let max_positions = size(config, "max_position_embeddings")?;
        // Qwen2 writes a window and switches it off; Mistral's counts when it is shorter than the context.
        let window = size_opt(config, "sliding_window")?;
        let window_on = flag(config, "use_sliding_window", arch == Arch::Llama)?;
        if window_on && window.is_some_and(|w| w < max_positions) {
            return unsupported("sliding-window attention");
        }
        if flag(config, "mlp_bias", false)? {
            return unsupported("`mlp_bias`");
        }
        Ok(Self {
            arch,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            n_layers,
            n_heads,
            n_kv_heads: size_opt(config, "num_key_value_heads")?.unwrap_or(n_heads),
            head_dim: size_opt(config, "head_dim")?.unwrap_or(hidden_size / n_heads),
            max_positions,
            norm_eps: number_opt(config, "rms_norm_eps")?.unwrap_or(1e-6),
            activation: activation(config, "hidden_act", "silu")?,
            position: PositionKind::Rope { theta: rope_theta(config)? },
            qkv_bias: arch == Arch::Qwen2 || flag(config, "attention_bias", false)?,
            tie_embeddings: flag(config, "tie_word_embeddings", false)?,
            type_vocab_size: 0,
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
        })
    }

    fn bert(config: &Value) -> Result<Self> {
        if let Some(kind) = get(config, "position_embedding_type").and_then(Value::as_str).filter(|k| *k != "absolute")
        {
            return unsupported(format!("BERT position embedding {kind:?}"));
        }
        if flag(config, "is_decoder", false)? || flag(config, "add_cross_attention", false)? {
            return unsupported("BERT as a decoder");
        }
        let hidden_size = size(config, "hidden_size")?;
        let n_heads = size(config, "num_attention_heads")?;
        Ok(Self {
            arch: Arch::Bert,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            n_layers: size(config, "num_hidden_layers")?,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: hidden_size / n_heads,
            max_positions: size(config, "max_position_embeddings")?,
            norm_eps: number_opt(config, "layer_norm_eps")?.unwrap_or(1e-12),
            activation: activation(config, "hidden_act", "gelu")?,
            position: PositionKind::Learned,
            qkv_bias: true,
            tie_embeddings: flag(config, "tie_word_embeddings", true)?,
            type_vocab_size: size_opt(config, "type_vocab_size")?.unwrap_or(2),
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
        })
    }

    /// Relations between the sizes that the forward pass relies on.
    fn check(&self) -> Result<()> {
        if self.n_layers as u64 > MAX_LAYERS {
            return malformed(format!("{} layers (at most {MAX_LAYERS})", self.n_layers));
        }
        let square = matches!(self.arch, Arch::Gpt2 | Arch::Bert);
        if square && !self.hidden_size.is_multiple_of(self.n_heads) {
            return malformed(format!("{} channels do not divide into {} heads", self.hidden_size, self.n_heads));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return malformed(format!("{} heads do not divide into {} key heads", self.n_heads, self.n_kv_heads));
        }
        if self.head_dim == 0 || (!square && !self.head_dim.is_multiple_of(2)) {
            return malformed(format!("head size {} (rotary needs an even number)", self.head_dim));
        }
        Ok(())
    }
}
