//! Helpers that several rooms' tests share.

pub mod allocations;
pub mod devices;
pub mod eventually;
pub mod mock;
mod models;
pub mod published;
mod random_model;
mod recorder;

pub use models::{
    DECODERS, ENCODERS, ON_CPU_ALONE, UNLIKE, assert_near, copy_dir, copy_into, fixture, further_models, smollm2,
    write_heads, write_reward_model,
};
pub use random_model::{byte_level, random_model, sentencepiece};
pub use recorder::Recorder;

/// Deterministic noise, roughly standard normal, without any crate's generator.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// The directory of committed reference values.
pub fn fixtures() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Safe HTML of a text, as the routes get it.
pub fn rendered(markdown: &str) -> String {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    RUNTIME.block_on(instructd::http::markdown::render_all(&[markdown])).unwrap()[0].to_string()
}
