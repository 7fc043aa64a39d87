//! Architectures to train from scratch: named sizes or explicit ones, and their config.json.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Family of a new model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Learned positions, LayerNorm before each block, GELU.
    #[default]
    Gpt2,
    /// Rotary positions, RMSNorm, gated SiLU.
    Llama,
    /// Bidirectional, LayerNorm after each block.
    Bert,
}

/// Sizes of a new model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    #[serde(default)]
    pub family: Family,
    /// Width of the hidden states.
    pub hidden_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// Inner width of the feed-forward network; 4 · hidden_size if absent.
    #[serde(default)]
    pub intermediate_size: Option<usize>,
    /// Length of the longest sequence, in tokens.
    pub max_positions: usize,
}

/// A named size or an explicit one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Architecture {
    /// One of the names in `PRESETS`.
    Preset(String),
    Explicit(Shape),
}

const fn shape(family: Family, hidden_size: usize, n_layers: usize, n_heads: usize, max_positions: usize) -> Shape {
    Shape { family, hidden_size, n_layers, n_heads, intermediate_size: None, max_positions }
}

/// `gpt1` has GPT-1's sizes in GPT-2's layout (LayerNorm before the blocks and one at the end), which trains more
/// stably and is the layout that the decoder implements.
pub const PRESETS: &[(&str, Shape)] = &[
    ("gpt-tiny", shape(Family::Gpt2, 128, 4, 4, 256)),
    ("gpt-mini", shape(Family::Gpt2, 256, 6, 8, 512)),
    ("gpt1", shape(Family::Gpt2, 768, 12, 12, 512)),
    ("gpt2", shape(Family::Gpt2, 768, 12, 12, 1024)),
    ("gpt2-medium", shape(Family::Gpt2, 1024, 24, 16, 1024)),
    ("gpt2-large", shape(Family::Gpt2, 1280, 36, 20, 1024)),
    ("gpt2-xl", shape(Family::Gpt2, 1600, 48, 25, 1024)),
    ("bert-tiny", shape(Family::Bert, 128, 2, 2, 512)),
    ("bert-mini", shape(Family::Bert, 256, 4, 4, 512)),
    ("bert-base", shape(Family::Bert, 768, 12, 12, 512)),
    ("bert-large", shape(Family::Bert, 1024, 24, 16, 512)),
];

/// Ids of special tokens that config.json names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}

impl Architecture {
    /// The sizes; `None` for an unknown name.
    pub fn shape(&self) -> Option<&Shape> {
        match self {
            Self::Explicit(shape) => Some(shape),
            Self::Preset(name) => PRESETS.iter().find(|(known, _)| known == name).map(|(_, shape)| shape),
        }
    }

    /// The names of all presets, for messages.
    pub fn names() -> String {
        PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

impl Shape {
    /// config.json as transformers writes it for this family.
    pub fn hf_config(&self, vocab_size: usize, ids: TokenIds) -> Value {
        let inner = self.intermediate_size.unwrap_or(4 * self.hidden_size);
        let mut config = match self.family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "n_embd": self.hidden_size, "n_layer": self.n_layers, "n_head": self.n_heads,
                "n_inner": inner, "n_positions": self.max_positions, "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": true,
                "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            }),
            Family::Llama => json!({
                "model_type": "llama", "hidden_size": self.hidden_size, "num_hidden_layers": self.n_layers,
                "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_heads,
                "intermediate_size": inner, "max_position_embeddings": self.max_positions, "hidden_act": "silu",
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02,
                "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
            }),
            Family::Bert => json!({
                "model_type": "bert", "hidden_size": self.hidden_size, "num_hidden_layers": self.n_layers,
                "num_attention_heads": self.n_heads, "intermediate_size": inner,
                "max_position_embeddings": self.max_positions, "type_vocab_size": 2, "hidden_act": "gelu",
                "layer_norm_eps": 1e-12, "initializer_range": 0.02, "tie_word_embeddings": true,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            }),
        };
        config["vocab_size"] = json!(vocab_size);
        for (key, id) in [("bos_token_id", ids.bos), ("eos_token_id", ids.eos), ("pad_token_id", ids.pad)] {
            if let Some(id) = id {
                config[key] = json!(id);
            }
        }
        config
    }
}
