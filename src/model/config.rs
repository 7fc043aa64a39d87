//! One configuration for every architecture, read from Hugging Face config.json or GGUF metadata.

use serde::{Deserialize, Serialize};

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
