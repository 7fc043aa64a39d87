//! Gemma (arXiv 2403.08295): Llama's layout, norms that scale by 1 + weight, scaled embeddings. Gemma 2 (arXiv
//! 2408.00118): norms that scale by 1 + weight before and after both parts, scaled embeddings, capped scores and
//! logits, every second layer windowed. Gemma 3 (arXiv 2503.19786): q and k normalised instead of capped, five windowed
//! layers to a full one, rotary bases of their own.

use serde_json::{Value, json};

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_BLOCK, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{Result, flag, get, layer_types, number, number_opt, pattern, unsupported, window, windows};
use super::{Arch, Block, Family, Gguf, Heads, Meta, Metadata, NormKind, Norms, rotary};
use crate::model::config::{ModelConfig, QkNorm};

const NORMS: Norms = Norms::Around([
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
]);

const DEFAULTS: Defaults = Defaults {
    theta: 10_000.0,
    tie_embeddings: true,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    eps: 1e-6,
    positions: 8192,
    partial: false,
};

pub(super) static GEMMA: Family = Family {
    arch: Arch::Gemma,
    model_type: "gemma",
    class: "Gemma",
    read: |config| {
        let mut config = config.clone();
        // Files from before transformers 4.38 write `gelu` for the tanh approximation; `hidden_activation` is newer.
        let kind = get(&config, "hidden_activation").or_else(|| get(&config, "hidden_act")).and_then(Value::as_str);
        let kind = kind.filter(|kind| *kind != "gelu").unwrap_or("gelu_pytorch_tanh").to_owned();
        if let Some(map) = config.as_object_mut() {
            map.insert("hidden_activation".into(), kind.into());
            map.entry("head_dim").or_insert(json!(256));
        }
        let mut parsed = read(&config, Arch::Gemma, &DEFAULTS)?;
        parsed.switches.embedding_scale = embedding_scale(&parsed);
        Ok(parsed)
    },
    norm: NormKind::RmsPlusOne,
    ..LIKE_LLAMA
};

pub(super) static GEMMA2: Family = Family {
    arch: Arch::Gemma2,
    model_type: "gemma2",
    class: "Gemma2",
    read: |config| {
        let config = with_defaults(config, 256_000, 8192);
        let mut parsed = shared(&config, Arch::Gemma2)?;
        parsed.switches.attention_softcap = cap(&config, "attn_logit_softcapping", Some(50.0))?;
        parsed.switches.logit_softcap = cap(&config, "final_logit_softcapping", Some(30.0))?;
        let types = layer_types(&config, parsed.n_layers, |i| (i + 1) % 2 != 0)?;
        parsed.switches.layers = windows(&types, window(&config, Some(4096))?)?;
        Ok(parsed)
    },
    block: Block { norms: NORMS, ..LIKE_LLAMA_BLOCK },
    norm: NormKind::RmsPlusOne,
    gguf: Some(Gguf {
        name: "gemma2",
        read: |metadata| {
            let mut own = from_metadata(metadata, 46, 4096)?;
            own["attn_logit_softcapping"] = json!(metadata.float("attn_logit_softcapping").unwrap_or(50.0));
            own["final_logit_softcapping"] = json!(metadata.float("final_logit_softcapping").unwrap_or(30.0));
            metadata.rotary(false, own)
        },
        write: |config, add| {
            add("attn_logit_softcapping", Meta::F32(config.switches.attention_softcap.unwrap_or(0.0) as f32));
            add("final_logit_softcapping", Meta::F32(config.switches.logit_softcap.unwrap_or(0.0) as f32));
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};

pub(super) static GEMMA3: Family = Family {
    arch: Arch::Gemma3,
    model_type: "gemma3_text",
    class: "Gemma3",
    read: |config| {
        let config = with_defaults(config, 262_208, 131_072);
        if flag(&config, "use_bidirectional_attention", false)? {
            return unsupported("Gemma 3 with attention in both directions (EmbeddingGemma)");
        }
        // The file may contain a cap of scores, which transformers does not apply in this family.
        let mut parsed = shared(&config, Arch::Gemma3)?;
        parsed.switches.logit_softcap = cap(&config, "final_logit_softcapping", None)?;
        parsed.switches.qk_norm = QkNorm::Heads;
        let every = pattern(&config, 6)?;
        let types = layer_types(&config, parsed.n_layers, |i| (i + 1) % every != 0)?;
        parsed.switches.layers = windows(&types, window(&config, Some(4096))?)?;
        rotary::by_layer(&config, &mut parsed, [("rope_theta", 1_000_000.0), ("rope_local_base_freq", 10_000.0)])?;
        Ok(parsed)
    },
    block: Block { norms: NORMS, qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..LIKE_LLAMA_BLOCK },
    heads: Heads::Decoder { output: "lm_head", class: "ForCausalLM", classifier: "TextForSequenceClassification" },
    norm: NormKind::RmsPlusOne,
    gguf: Some(Gguf {
        name: "gemma3",
        read: |metadata| {
            let mut own = from_metadata(metadata, 62, 1024)?;
            own["sliding_window_pattern"] = json!(metadata.uint("attention.sliding_window_pattern").unwrap_or(6));
            own["rope_local_base_freq"] = json!(metadata.float("rope.freq_base_swa").unwrap_or(10_000.0));
            if let Some(cap) = metadata.float("final_logit_softcapping") {
                own["final_logit_softcapping"] = json!(cap);
            }
            metadata.rotary(false, own)
        },
        write: |config, add| {
            let switches = &config.switches;
            let first_full = switches.layers.iter().position(|layer| layer.window.is_none());
            let every = first_full.map_or(config.n_layers + 1, |i| i + 1);
            add("attention.sliding_window_pattern", Meta::U32(every as u32));
            if let Some(local) = &switches.local_rope {
                add("rope.freq_base_swa", Meta::F32(local.theta as f32));
            }
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};

/// The fields that GGUF files of Gemma 2 and 3 share. `largest` is the number of layers of the family's largest model,
/// which scales scores by its width over the number of heads; files do not contain this factor.
fn from_metadata(metadata: &Metadata<'_>, largest: u64, window: u64) -> Result<Value, String> {
    let scalar = match metadata.layers()? == largest {
        true => metadata.hidden()? as f64 / metadata.heads()? as f64,
        false => metadata.head_dim()? as f64,
    };
    Ok(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": metadata.uint("attention.sliding_window").unwrap_or(window),
    }))
}

/// The text part of a multimodal configuration omits the defaults of its class.
fn with_defaults(config: &Value, vocab_size: usize, max_positions: usize) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        for (key, value) in [
            ("vocab_size", json!(vocab_size)),
            ("hidden_size", json!(2304)),
            ("intermediate_size", json!(9216)),
            ("num_hidden_layers", json!(26)),
            ("num_attention_heads", json!(8)),
            ("num_key_value_heads", json!(4)),
            ("head_dim", json!(256)),
            ("max_position_embeddings", json!(max_positions)),
        ] {
            map.entry(key).or_insert(value);
        }
    }
    config
}

fn shared(config: &Value, arch: Arch) -> Result<ModelConfig> {
    let mut parsed = read(config, arch, &DEFAULTS)?;
    let scalar = number(config, "query_pre_attn_scalar", 256.0)?;
    parsed.switches.attention_scale = Some(scalar.powf(-0.5));
    parsed.switches.embedding_scale = embedding_scale(&parsed);
    Ok(parsed)
}

/// transformers rounds the factor to the embedding's type.
fn embedding_scale(parsed: &ModelConfig) -> f64 {
    f64::from((parsed.hidden_size as f64).sqrt() as f32)
}

/// An explicit null disables a cap; a missing field means the family's value.
fn cap(config: &Value, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if config.get(key).is_some() && get(config, key).is_none() {
        return Ok(None);
    }
    Ok(number_opt(config, key)?.or(default))
}
