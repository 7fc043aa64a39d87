//! Qwen2 (arXiv 2407.10671): Llama's layout with biases of q, k and v. Qwen3 (arXiv 2505.09388): without them, q and k
//! of every head normalised. Where windows are enabled, layers from `max_window_layers` are windowed.

use serde_json::{Value, json};

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_BLOCK, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{Result, flag, layer_types, size_opt, window, windows};
use super::{Arch, Block, Family, Gguf};
use crate::model::config::{LayerKind, ModelConfig, QkNorm};

pub(super) static QWEN2: Family = Family {
    arch: Arch::Qwen2,
    model_type: "qwen2",
    class: "Qwen2",
    read: |config| {
        let mut parsed = read(config, Arch::Qwen2, &Defaults { positions: 32_768, ..Defaults::default() })?;
        parsed.qkv_bias = true;
        parsed.switches.out_bias = false;
        parsed.switches.layers = layers(config, &parsed)?;
        Ok(parsed)
    },
    padding_trains: true,
    gguf: Some(Gguf { name: "qwen2", ..LIKE_QWEN_GGUF }),
    ..LIKE_LLAMA
};

pub(super) static QWEN3: Family = Family {
    arch: Arch::Qwen3,
    model_type: "qwen3",
    class: "Qwen3",
    read: |config| {
        let mut config = config.clone();
        if let Some(map) = config.as_object_mut() {
            map.entry("head_dim").or_insert_with(|| 128.into());
        }
        let mut parsed = read(&config, Arch::Qwen3, &Defaults { positions: 32_768, ..Defaults::default() })?;
        parsed.switches.qk_norm = QkNorm::Heads;
        parsed.switches.layers = layers(&config, &parsed)?;
        Ok(parsed)
    },
    block: Block { qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..LIKE_LLAMA_BLOCK },
    gguf: Some(Gguf { name: "qwen3", biases: false, ..LIKE_QWEN_GGUF }),
    ..LIKE_LLAMA
};

const LIKE_QWEN_GGUF: Gguf =
    Gguf { read: |metadata| metadata.rotary(false, json!({"use_sliding_window": false})), ..LIKE_LLAMA_GGUF };

fn layers(config: &Value, parsed: &ModelConfig) -> Result<Vec<LayerKind>> {
    if !flag(config, "use_sliding_window", false)? {
        return Ok(Vec::new());
    }
    let full = match config.get("max_window_layers") {
        // Every layer has a window.
        Some(value) if value == &json!(0) => 0,
        _ => size_opt(config, "max_window_layers")?.unwrap_or(28),
    };
    let types = layer_types(config, parsed.n_layers, |i| i >= full)?;
    windows(&types, window(config, Some(4096))?)
}
