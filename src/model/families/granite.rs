//! Granite 3: Llama's layout with four multipliers: of embeddings, scores, residual terms and logits.

use serde_json::json;

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{flag, number};
use super::{Arch, Family, Gguf, Meta};

pub(super) static GRANITE: Family = Family {
    arch: Arch::Granite,
    model_type: "granite",
    class: "Granite",
    read: |config| {
        let mut parsed = read(config, Arch::Granite, &Defaults::default())?;
        parsed.switches.mlp_bias = flag(config, "mlp_bias", false)?;
        parsed.switches.embedding_scale = number(config, "embedding_multiplier", 1.0)?;
        parsed.switches.attention_scale = Some(number(config, "attention_multiplier", 1.0)?);
        parsed.switches.residual_scale = number(config, "residual_multiplier", 1.0)?;
        parsed.switches.logit_divisor = number(config, "logits_scaling", 1.0)?;
        Ok(parsed)
    },
    gguf: Some(Gguf {
        name: "granite",
        interleaved: true,
        read: |metadata| {
            let scale = (metadata.head_dim()? as f64).powf(-0.5);
            let own = json!({
                "mlp_bias": metadata.has("blk.0.ffn_up.bias"),
                "attention_multiplier": metadata.float("attention.scale").unwrap_or(scale),
                "embedding_multiplier": metadata.float("embedding_scale").unwrap_or(1.0),
                "residual_multiplier": metadata.float("residual_scale").unwrap_or(1.0),
                "logits_scaling": metadata.float("logit_scale").unwrap_or(1.0),
            });
            metadata.rotary(false, own)
        },
        write: |config, add| {
            let switches = &config.switches;
            if let Some(scale) = switches.attention_scale {
                add("attention.scale", Meta::F32(scale as f32));
            }
            add("embedding_scale", Meta::F32(switches.embedding_scale as f32));
            add("residual_scale", Meta::F32(switches.residual_scale as f32));
            add("logit_scale", Meta::F32(switches.logit_divisor as f32));
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};
