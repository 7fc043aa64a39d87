//! One configuration for every architecture, read from Hugging Face config.json or GGUF metadata. The table of a family
//! in `families` reads the family's files.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::families;
pub use super::families::Arch;
use super::families::read::{self, Result, get, ids, malformed};
pub use crate::ops::activation::Activation;

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
    /// Bias on q, k, v (Qwen2; Llama with `attention_bias`; GPT-2 and BERT always).
    pub qkv_bias: bool,
    pub tie_embeddings: bool,
    /// BERT segments; 0 elsewhere.
    pub type_vocab_size: usize,
    pub bos_id: Option<u32>,
    /// Every id that ends a generation (config and generation_config joined).
    pub eos_ids: Vec<u32>,
    pub pad_id: Option<u32>,
    /// Features of some families.
    pub switches: Switches,
}

/// Features that only some families have; the default is plain Llama.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switches {
    /// Bias on the output projection of attention.
    pub out_bias: bool,
    /// Bias on the matrices of the feed-forward network.
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    /// Factor of the scores; `None` = 1/√head_dim.
    pub attention_scale: Option<f64>,
    /// Scores become cap · tanh(score / cap).
    pub attention_softcap: Option<f64>,
    /// Logits become cap · tanh(logit / cap).
    pub logit_softcap: Option<f64>,
    pub logit_divisor: f64,
    /// Factor of the token embeddings.
    pub embedding_scale: f64,
    /// Factor of the outputs of attention and the feed-forward network before they are added to the hidden states.
    pub residual_scale: f64,
    /// Attention and the feed-forward network read the same hidden states (parallel residuals).
    pub parallel: bool,
    /// The first block has no norm before attention.
    pub first_norm_absent: bool,
    /// Row of the position table that position 0 reads.
    pub position_offset: usize,
    /// Number of leading channels of each head that rotary positions rotate; `None` = all.
    pub rotary_dim: Option<usize>,
    pub rope_scaling: RopeScaling,
    /// Rotary positions of windowed layers, where they differ from those of full layers.
    pub local_rope: Option<LocalRope>,
    /// One entry per layer. Empty: every layer attends to all positions, with rotary positions if the model has them.
    pub layers: Vec<LayerKind>,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            out_bias: false,
            mlp_bias: false,
            qk_norm: QkNorm::None,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            logit_divisor: 1.0,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            parallel: false,
            first_norm_absent: false,
            position_offset: 0,
            rotary_dim: None,
            rope_scaling: RopeScaling::None,
            local_rope: None,
            layers: Vec::new(),
        }
    }
}

/// Properties in which the layers of one model differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKind {
    /// Query i attends to key j when |i − j| < window (and j ≤ i in a decoder); `None` = all keys.
    pub window: Option<usize>,
    pub no_rope: bool,
}

/// RMSNorm of q and k before rotary positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    #[default]
    None,
    /// Each head is normalised separately.
    Heads,
    /// All heads are normalised together.
    Whole,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalRope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies of rotary positions are scaled for sequences longer than those of pretraining. `attention` is a
/// factor of cos and sin, `original` the length of pretraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    #[default]
    None,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// θ grows with the position beyond the trained length.
    Dynamic { factor: f64, trained: usize },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 { factor: f64, low: f64, high: f64, original: usize },
    /// A ramp between kept and divided frequencies (arXiv 2309.00071).
    Yarn { factor: f64, fast: f64, slow: f64, original: usize, attention: f64, truncate: bool },
    /// A divisor for every frequency: one list for sequences up to the original length, one for longer ones
    /// (arXiv 2402.13753).
    Long { short: Vec<f64>, long: Vec<f64>, original: usize, attention: f64 },
}

impl RopeScaling {
    /// The maximal length of a model whose configuration gives `trained` positions.
    pub fn context(&self, trained: usize) -> usize {
        match self {
            Self::Dynamic { factor, .. } => ((trained as f64 * factor) as usize).min(read::MAX_SIZE as usize),
            _ => trained,
        }
    }
}

/// Why a configuration was refused; `Unsupported` means it is well-formed, but would be computed wrongly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("config: {0}")]
    Malformed(String),
    #[error("config: {0} is not supported")]
    Unsupported(String),
}

impl ModelConfig {
    /// Reads config.json of any family; end tokens of generation_config.json are added. Of a multimodal model, the text
    /// model is read.
    ///
    /// # Errors
    /// `Malformed` when a field is missing, of the wrong type or out of range; `Unsupported` when the model needs an
    /// operation that is not implemented, with the list of supported families.
    pub fn from_hf(config: &Value, generation: Option<&Value>) -> Result<Self> {
        let half = text_half(config);
        let config = half.as_ref().unwrap_or(config);
        let Some(kind) = get(config, "model_type").and_then(Value::as_str) else {
            return malformed("`model_type` is missing");
        };
        let mut parsed = (families::find(kind)?.read)(config)?;
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

    /// The tensor of the output matrix: the word vectors where they are tied.
    pub(in crate::model) fn head_name(&self) -> String {
        match self.tie_embeddings {
            true => format!("{}.weight", self.family().words),
            false => "lm_head.weight".to_owned(),
        }
    }

    /// The properties of layer `i`.
    pub fn layer(&self, i: usize) -> LayerKind {
        self.switches.layers.get(i).copied().unwrap_or_default()
    }

    /// Factor of attention scores.
    pub fn attention_scale(&self) -> f32 {
        self.switches.attention_scale.map_or_else(|| 1.0 / (self.head_dim as f32).sqrt(), |scale| scale as f32)
    }

    /// Number of channels of each head that rotary positions rotate.
    pub fn rotary_dim(&self) -> usize {
        self.switches.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Checks the relations between sizes that the forward pass requires.
    fn check(&self) -> Result<()> {
        if self.n_layers as u64 > read::MAX_LAYERS {
            return malformed(format!("{} layers (at most {})", self.n_layers, read::MAX_LAYERS));
        }
        let rotary = self.position != PositionKind::Learned;
        let square =
            !rotary || matches!(self.family().norm, families::NormKind::Layer | families::NormKind::LayerNoBias);
        if square && !self.hidden_size.is_multiple_of(self.n_heads) {
            return malformed(format!("{} channels do not divide into {} heads", self.hidden_size, self.n_heads));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return malformed(format!("{} heads do not divide into {} key heads", self.n_heads, self.n_kv_heads));
        }
        if self.head_dim == 0 || (rotary && 2 * self.rotary_dim().div_ceil(2) > self.head_dim) {
            return malformed(format!("head size {} (rotary needs an even number)", self.head_dim));
        }
        Ok(())
    }
}

/// The text part of a multimodal model's configuration, if it names its family, with the token ids of the enclosing
/// configuration.
pub(super) fn text_half(config: &Value) -> Option<Value> {
    let mut text = get(config, "text_config")?.clone();
    families::find(text.get("model_type")?.as_str()?).ok()?;
    let map = text.as_object_mut()?;
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype"] {
        if let (None, Some(value)) = (map.get(key).filter(|v| !v.is_null()), get(config, key)) {
            map.insert(key.to_owned(), value.clone());
        }
    }
    Some(text)
}
