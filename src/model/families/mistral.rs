//! Mistral (arXiv 2310.06825): Llama's layout, every layer with a sliding window.

use super::llama::{Defaults, LIKE_LLAMA, read};
use super::read::{uniform_window, window};
use super::{Arch, Family};

pub(super) static MISTRAL: Family = Family {
    arch: Arch::Mistral,
    model_type: "mistral",
    class: "Mistral",
    read: |config| {
        let mut parsed = read(config, Arch::Mistral, &Defaults::default())?;
        parsed.qkv_bias = false;
        parsed.switches.out_bias = false;
        parsed.switches.layers = uniform_window(parsed.n_layers, window(config, Some(4096))?);
        Ok(parsed)
    },
    ..LIKE_LLAMA
};
