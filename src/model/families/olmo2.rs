//! OLMo 2 (arXiv 2501.00656): Llama's layout with norms after attention and feed-forward network only, and over all
//! heads of q and k.

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_BLOCK, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::{Arch, Block, Family, Gguf, Norms};
use crate::model::config::QkNorm;

pub(super) static OLMO2: Family = Family {
    arch: Arch::Olmo2,
    model_type: "olmo2",
    class: "Olmo2",
    read: |config| {
        let mut parsed = read(config, Arch::Olmo2, &Defaults { eps: 1e-5, ..Defaults::default() })?;
        parsed.switches.qk_norm = QkNorm::Whole;
        Ok(parsed)
    },
    block: Block {
        norms: Norms::After(["post_attention_layernorm", "post_feedforward_layernorm"]),
        qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        ..LIKE_LLAMA_BLOCK
    },
    gguf: Some(Gguf { name: "olmo2", biases: false, ..LIKE_LLAMA_GGUF }),
    ..LIKE_LLAMA
};
