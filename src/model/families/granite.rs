//! Granite 3: Llama's layout with four multipliers, of embeddings, scores, what the parts add, and logits.

use super::llama::{Defaults, LIKE_LLAMA, read};
use super::read::{flag, number};
use super::{Arch, Family};

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
    ..LIKE_LLAMA
};
