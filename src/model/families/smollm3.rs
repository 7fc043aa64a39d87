//! SmolLM3: Llama's layout, every fourth layer without rotary positions.

use serde_json::{Value, json};

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{Result, flag, get, layer_types, malformed, size_opt, window, windows};
use super::{Arch, Family, Gguf};
use crate::model::config::LayerKind;

pub(super) static SMOLLM3: Family = Family {
    arch: Arch::SmolLm3,
    model_type: "smollm3",
    class: "SmolLM3",
    read: |config| {
        let defaults = Defaults { theta: 2_000_000.0, tie_embeddings: true, positions: 32_768, ..Defaults::default() };
        let mut parsed = read(config, Arch::SmolLm3, &defaults)?;
        parsed.switches.mlp_bias = flag(config, "mlp_bias", false)?;
        let rotary = rotary_layers(config, parsed.n_layers)?;
        let windowed = flag(config, "use_sliding_window", false)?;
        let size = if windowed { window(config, None)? } else { None };
        let types = layer_types(config, parsed.n_layers, |i| size.is_some() && !rotary[i])?;
        let mut layers = if size.is_some() { windows(&types, size)? } else { Vec::new() };
        if rotary.iter().any(|on| !on) {
            layers.resize(parsed.n_layers, LayerKind::default());
            layers.iter_mut().zip(rotary).for_each(|(layer, on)| layer.no_rope = !on);
        }
        parsed.switches.layers = layers;
        Ok(parsed)
    },
    gguf: Some(Gguf {
        name: "smollm3",
        interleaved: true,
        biases: false,
        read: |metadata| {
            let own = json!({
                "mlp_bias": metadata.has("blk.0.ffn_up.bias"), "use_sliding_window": false, "no_rope_layer_interval": 4,
            });
            metadata.rotary(false, own)
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};

/// `no_rope_layers`: 1 = with rotary positions.
fn rotary_layers(config: &Value, n_layers: usize) -> Result<Vec<bool>> {
    let Some(list) = get(config, "no_rope_layers") else {
        let every = size_opt(config, "no_rope_layer_interval")?.unwrap_or(4);
        return Ok((0..n_layers).map(|i| (i + 1) % every != 0).collect());
    };
    let on = |v: &Value| v.as_bool().or_else(|| v.as_u64().filter(|n| *n < 2).map(|n| n == 1));
    match list.as_array().map(|list| list.iter().map(on).collect::<Option<Vec<bool>>>()) {
        Some(Some(found)) if found.len() == n_layers => Ok(found),
        _ => malformed(format!("`no_rope_layers` must hold {n_layers} times 0 or 1, found {list}")),
    }
}
