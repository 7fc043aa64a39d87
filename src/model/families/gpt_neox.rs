//! GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): parallel residuals, rotary positions on a part of each
//! head, q, k and v interleaved by head.

use serde_json::{Value, json};

use super::llama::read;
use super::read::Defaults;
use super::read::{Result, flag, get, number_opt};
use super::{Arch, Block, Family, Gguf, Heads, Meta, MlpNames, NormKind, Norms, Qkv};
use crate::model::config::ModelConfig;
use crate::ops::linear::WeightLayout;

pub(super) static GPT_NEOX: Family = Family {
    arch: Arch::GptNeox,
    model_type: "gpt_neox",
    class: "GPTNeoX",
    read: read_neox,
    base: "gpt_neox.",
    words: "gpt_neox.embed_in",
    positions: None,
    segments: None,
    embed_norm: None,
    blocks: "gpt_neox.layers.",
    block: Block {
        norms: Norms::Before(["input_layernorm", "post_attention_layernorm"]),
        qkv: Qkv::ByHead("attention.query_key_value"),
        qk_norm: None,
        out: "attention.dense",
        mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
    },
    final_norm: Some("gpt_neox.final_layer_norm"),
    norm: NormKind::Layer,
    layout: WeightLayout::OutIn,
    heads: Heads::Decoder { output: "embed_out", class: "ForCausalLM", classifier: "ForSequenceClassification" },
    padding_trains: true,
    gguf: Some(Gguf {
        name: "gptneox",
        interleaved: false,
        biases: true,
        read: |metadata| {
            let own = json!({
                "hidden_act": "gelu",
                "layer_norm_eps": metadata.float("attention.layer_norm_epsilon").unwrap_or(1e-5),
                "rotary_pct": metadata.turned()? as f64 / metadata.head_dim()? as f64,
                "rotary_emb_base": metadata.theta(),
                "use_parallel_residual": metadata.bool("use_parallel_residual").unwrap_or(true),
                "attention_bias": metadata.has("blk.0.attn_qkv.bias"),
            });
            metadata.rotary(true, own)
        },
        write: |config, add| add("use_parallel_residual", Meta::Bool(config.switches.parallel)),
    }),
};

fn read_neox(config: &Value) -> Result<ModelConfig> {
    // Older files use other names for the settings of rotary positions.
    let mut config = config.clone();
    let (theta, share) = (get(&config, "rotary_emb_base").cloned(), get(&config, "rotary_pct").cloned());
    let said = |key: &str| {
        get(&config, key).is_some() || get(&config, "rope_parameters").is_some_and(|rope| get(rope, key).is_some())
    };
    let missing = [("rope_theta", theta), ("partial_rotary_factor", Some(share.unwrap_or(json!(0.25))))]
        .into_iter()
        .filter(|(key, _)| !said(key))
        .collect::<Vec<_>>();
    if let Some(map) = config.as_object_mut() {
        for (key, value) in missing {
            if let Some(value) = value {
                map.insert(key.into(), value);
            }
        }
        map.remove("num_key_value_heads");
    }
    let defaults = Defaults { activation: ("hidden_act", "gelu"), partial: true, ..Defaults::default() };
    let mut parsed = read(&config, Arch::GptNeox, &defaults)?;
    parsed.norm_eps = number_opt(&config, "layer_norm_eps")?.unwrap_or(1e-5);
    parsed.qkv_bias = flag(&config, "attention_bias", true)?;
    parsed.switches.out_bias = parsed.qkv_bias;
    parsed.switches.mlp_bias = true;
    parsed.switches.parallel = flag(&config, "use_parallel_residual", true)?;
    Ok(parsed)
}
