//! GPT-2 (Radford 2019): learned positions, LayerNorm before the parts, one matrix for q, k and v.

use serde_json::{Value, json};

use super::read::{Result, activation, flag, number_opt, size, size_opt, unsupported};
use super::{Block, Family, Gguf, Heads, MlpNames, NormKind, Norms, Qkv};
use crate::model::config::{Arch, ModelConfig, PositionKind, Switches};
use crate::ops::linear::WeightLayout;

pub(super) static GPT2: Family = Family {
    arch: Arch::Gpt2,
    model_type: "gpt2",
    class: "GPT2",
    read,
    base: "transformer.",
    words: "transformer.wte",
    positions: Some("transformer.wpe"),
    segments: None,
    embed_norm: None,
    blocks: "transformer.h.",
    block: Block {
        norms: Norms::Before(["ln_1", "ln_2"]),
        qkv: Qkv::Joint("attn.c_attn"),
        qk_norm: None,
        out: "attn.c_proj",
        mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
    },
    final_norm: Some("transformer.ln_f"),
    norm: NormKind::Layer,
    layout: WeightLayout::InOut,
    heads: Heads::Decoder { output: "lm_head", class: "LMHeadModel", classifier: "ForSequenceClassification" },
    padding_trains: true,
    gguf: Some(Gguf {
        name: "gpt2",
        interleaved: false,
        biases: true,
        read: |metadata| {
            Ok(json!({
                "n_embd": metadata.hidden()?,
                "n_layer": metadata.layers()?,
                "n_head": metadata.heads()?,
                "n_inner": metadata.need("feed_forward_length")?,
                "n_positions": metadata.context()?,
                "layer_norm_epsilon": metadata.float("attention.layer_norm_epsilon").unwrap_or(1e-5),
                "activation_function": "gelu_new",
            }))
        },
        write: |_, _| {},
    }),
};

fn read(config: &Value) -> Result<ModelConfig> {
    if !flag(config, "scale_attn_weights", true)? || flag(config, "scale_attn_by_inverse_layer_idx", false)? {
        return unsupported("GPT-2 with unusual attention scaling");
    }
    if flag(config, "add_cross_attention", false)? {
        return unsupported("GPT-2 with cross-attention");
    }
    let hidden_size = size(config, "n_embd")?;
    let n_heads = size(config, "n_head")?;
    Ok(ModelConfig {
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
        switches: Switches { out_bias: true, mlp_bias: true, ..Switches::default() },
    })
}
