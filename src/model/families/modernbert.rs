//! ModernBERT (arXiv 2412.13663): an encoder with rotary positions, norms before the parts, a gated GELU and two
//! windowed layers for each full one; the first block has no norm before attention.

use serde_json::Value;

use super::llama::read;
use super::read::Defaults;
use super::read::{Result, activation, flag, get, layer_types, number_opt, size_opt, unsupported, windows};
use super::{Arch, Block, EncoderHeads, Family, Heads, MlpNames, NormKind, Norms, Pooler, Qkv, rotary};
use crate::model::config::ModelConfig;
use crate::ops::linear::WeightLayout;

pub(super) static MODERNBERT: Family = Family {
    arch: Arch::ModernBert,
    model_type: "modernbert",
    class: "ModernBert",
    read: read_modern,
    base: "model.",
    words: "model.embeddings.tok_embeddings",
    positions: None,
    segments: None,
    embed_norm: Some("model.embeddings.norm"),
    blocks: "model.layers.",
    block: Block {
        norms: Norms::Before(["attn_norm", "mlp_norm"]),
        qkv: Qkv::Joint("attn.Wqkv"),
        qk_norm: None,
        out: "attn.Wo",
        mlp: MlpNames::JointGated { gate_up: "mlp.Wi", down: "mlp.Wo" },
    },
    final_norm: Some("model.final_norm"),
    norm: NormKind::LayerNoBias,
    layout: WeightLayout::OutIn,
    heads: Heads::Encoder(EncoderHeads {
        dense: "head.dense",
        activation: None,
        norm: "head.norm",
        bias: "decoder.bias",
        decoder: "decoder",
        pooler: Pooler::MaskedLmHead,
        renamed: &[],
    }),
    padding_trains: false,
    gguf: None,
};

fn read_modern(config: &Value) -> Result<ModelConfig> {
    for key in ["norm_bias", "classifier_bias"] {
        if flag(config, key, false)? {
            return unsupported(format!("ModernBERT with `{key}`"));
        }
    }
    if !flag(config, "decoder_bias", true)? {
        return unsupported("ModernBERT without `decoder_bias`");
    }
    if let Some(pooling) = get(config, "classifier_pooling").and_then(Value::as_str).filter(|p| *p != "cls") {
        let classes = get(config, "architectures").is_some_and(|a| a.to_string().contains("SequenceClassification"));
        if classes {
            return unsupported(format!("a ModernBERT classifier with `classifier_pooling` = {pooling:?}"));
        }
    }
    if activation(config, "classifier_activation", "gelu")? != activation(config, "hidden_activation", "gelu")? {
        return unsupported("ModernBERT with a head of another activation");
    }
    let defaults = Defaults {
        positions: 8192,
        activation: ("hidden_activation", "gelu"),
        tie_embeddings: true,
        ..Defaults::default()
    };
    let mut parsed = read(config, Arch::ModernBert, &defaults)?;
    parsed.norm_eps = number_opt(config, "norm_eps")?.unwrap_or(1e-5);
    parsed.switches.mlp_bias = flag(config, "mlp_bias", false)?;
    parsed.switches.first_norm_absent = true;
    let every = size_opt(config, "global_attn_every_n_layers")?.unwrap_or(3);
    let types = layer_types(config, parsed.n_layers, |i| i % every != 0)?;
    // A token attends to half of the window on either side, and to itself.
    let window = size_opt(config, "local_attention")?.unwrap_or(128) / 2 + 1;
    parsed.switches.layers = windows(&types, Some(window))?;
    rotary::by_layer(config, &mut parsed, [("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)])?;
    Ok(parsed)
}
