//! Mistral (arXiv 2310.06825): Llama's layout, every layer with a sliding window.

use super::llama::{LIKE_LLAMA, LIKE_LLAMA_GGUF, read};
use super::read::Defaults;
use super::read::{uniform_window, window};
use super::{Arch, Family, Gguf};

pub(super) static MISTRAL: Family = Family {
    arch: Arch::Mistral,
    model_type: "mistral",
    class: "Mistral",
    read: |config| {
        let mut parsed = read(config, Arch::Mistral, &Defaults { positions: 131_072, ..Defaults::default() })?;
        parsed.qkv_bias = false;
        parsed.switches.out_bias = false;
        parsed.switches.layers = uniform_window(parsed.n_layers, window(config, Some(4096))?);
        Ok(parsed)
    },
    // Such files are read by Llama's table, which returns a Mistral for files with a window.
    gguf: Some(Gguf { name: "llama", interleaved: true, ..LIKE_LLAMA_GGUF }),
    ..LIKE_LLAMA
};
