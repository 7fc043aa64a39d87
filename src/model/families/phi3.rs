//! Phi-3 (arXiv 2404.14219) and Phi-4: Llama's layout with one matrix for q, k and v and one for gate and up; partial
//! rotary positions in Phi-4-mini.

use serde_json::json;

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_BLOCK, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{uniform_window, window};
use super::{Arch, Block, Family, Gguf, MlpNames, Qkv};

pub(super) static PHI3: Family = Family {
    arch: Arch::Phi3,
    model_type: "phi3",
    class: "Phi3",
    read: |config| {
        let defaults = Defaults { eps: 1e-5, positions: 4096, partial: true, ..Defaults::default() };
        let mut parsed = read(config, Arch::Phi3, &defaults)?;
        parsed.qkv_bias = false;
        parsed.switches.out_bias = false;
        parsed.switches.layers = uniform_window(parsed.n_layers, window(config, None)?);
        Ok(parsed)
    },
    block: Block {
        qkv: Qkv::Joint("self_attn.qkv_proj"),
        mlp: MlpNames::JointGated { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        ..LIKE_LLAMA_BLOCK
    },
    gguf: Some(Gguf {
        name: "phi3",
        biases: false,
        read: |metadata| {
            let original = metadata.uint("rope.scaling.original_context_length");
            let own = json!({
                "sliding_window": metadata.uint("attention.sliding_window"),
                "partial_rotary_factor": metadata.turned()? as f64 / metadata.head_dim()? as f64,
                "original_max_position_embeddings": original.unwrap_or(metadata.context()?),
            });
            metadata.rotary(true, own)
        },
        ..LIKE_LLAMA_GGUF
    }),
    ..LIKE_LLAMA
};
