//! Llama (arXiv 2302.13971) and families with the same layout: rotary positions, RMSNorm before the parts, gated SiLU.

use serde_json::{Value, json};

use super::read::{Defaults, Result, activation, flag, layers, number_opt, size, size_opt};
use super::{Arch, Block, Family, Gguf, Heads, MlpNames, NormKind, Norms, Qkv, rotary};
use crate::model::config::{ModelConfig, PositionKind, Switches};
use crate::ops::linear::WeightLayout;

pub(super) static LLAMA: Family = Family {
    arch: Arch::Llama,
    model_type: "llama",
    class: "Llama",
    read: |config| {
        let mut parsed = read(config, Arch::Llama, &Defaults::default())?;
        parsed.switches.mlp_bias = flag(config, "mlp_bias", false)?;
        Ok(parsed)
    },
    padding_trains: true,
    gguf: Some(Gguf {
        name: "llama",
        interleaved: true,
        read: |metadata| {
            let own = match metadata.uint("attention.sliding_window") {
                // Mistral's files have the name llama; those with a window give its size.
                Some(window) => json!({
                    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window,
                }),
                None => json!({"mlp_bias": metadata.has("blk.0.ffn_up.bias")}),
            };
            metadata.rotary(false, own)
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};

/// Module names that many families share.
pub(super) const LIKE_LLAMA: Family = Family {
    arch: Arch::Llama,
    model_type: "",
    class: "",
    read: |config| read(config, Arch::Llama, &Defaults::default()),
    base: "model.",
    words: "model.embed_tokens",
    positions: None,
    segments: None,
    embed_norm: None,
    blocks: "model.layers.",
    block: LIKE_LLAMA_BLOCK,
    final_norm: Some("model.norm"),
    norm: NormKind::Rms,
    layout: WeightLayout::OutIn,
    heads: Heads::Decoder { output: "lm_head", class: "ForCausalLM", classifier: "ForSequenceClassification" },
    padding_trains: false,
    gguf: None,
};

/// GGUF files without additional metadata.
pub(super) const LIKE_LLAMA_GGUF: Gguf = Gguf {
    name: "",
    interleaved: false,
    biases: true,
    read: |metadata| metadata.rotary(false, json!({})),
    write: |_, _| {},
};

pub(super) const LIKE_LLAMA_BLOCK: Block = Block {
    norms: Norms::Before(["input_layernorm", "post_attention_layernorm"]),
    qkv: Qkv::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norm: None,
    out: "self_attn.o_proj",
    mlp: MlpNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
};

/// Reads the fields that these families share; biases by `attention_bias`.
pub(super) fn read(config: &Value, arch: Arch, defaults: &Defaults) -> Result<ModelConfig> {
    let hidden_size = size(config, "hidden_size")?;
    let n_heads = size(config, "num_attention_heads")?;
    let head_dim = size_opt(config, "head_dim")?.unwrap_or(hidden_size / n_heads);
    let trained = size_opt(config, "max_position_embeddings")?.unwrap_or(defaults.positions);
    let rope = rotary::read(config, trained, head_dim, defaults)?;
    let attention_bias = flag(config, "attention_bias", false)?;
    Ok(ModelConfig {
        arch,
        vocab_size: size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: size(config, "intermediate_size")?,
        n_layers: layers(config, "num_hidden_layers")?,
        n_heads,
        n_kv_heads: size_opt(config, "num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        max_positions: rope.scaling.context(trained),
        norm_eps: number_opt(config, "rms_norm_eps")?.unwrap_or(defaults.eps),
        activation: activation(config, defaults.activation.0, defaults.activation.1)?,
        position: PositionKind::Rope { theta: rope.theta },
        qkv_bias: attention_bias,
        tie_embeddings: flag(config, "tie_word_embeddings", defaults.tie_embeddings)?,
        type_vocab_size: 0,
        bos_id: None,
        eos_ids: Vec::new(),
        pad_id: None,
        switches: Switches {
            out_bias: attention_bias,
            rope_scaling: rope.scaling,
            rotary_dim: rope.rotary_dim.filter(|dim| *dim != head_dim),
            ..Switches::default()
        },
    })
}
