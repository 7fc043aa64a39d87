//! Transformer models: `new(config, weights)` serves training and serving alike; forward passes only.
//! No loss, no sampling, no optimizer in here.

pub mod architecture;
pub mod attention_maps;
mod blocks;
mod blocks_back;
pub mod builtin;
mod cached;
pub mod catalogue;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod encoder_text;
pub mod families;
pub mod gguf;
pub mod gguf_export;
mod gguf_header;
mod gguf_meta;
mod gguf_names;
mod gguf_parts;
pub mod gguf_write;
pub mod heads;
mod hf;
pub mod hold;
pub mod init;
pub mod kv_cache;
mod kv_pages;
mod layer;
mod layers;
pub mod load;
pub mod lora;
pub mod merged;
mod mistakes;
mod names;
pub mod packed;
pub mod peft;
pub mod plan;
pub mod presets;
pub mod pull;
mod pull_hub;
mod pull_pypi;
pub mod reward;
mod rope_tables;
pub mod save;
mod side_files;
pub mod soft_prompt;
mod soft_rows;
mod tails;
pub mod trunk;

pub use blocks::Recompute;
pub use cached::Recording;
pub use config::{Activation, Arch, LayerKind, ModelConfig, PositionKind, QkNorm, RopeScaling, Switches};
pub use decoder::{Decoder, Purpose};
pub use encoder::Encoder;
pub use load::{Described, LoadError, Loaded, Source, describe, load, load_held};
pub use lora::LoraConfig;
pub use packed::PackedBatch;
pub use reward::RewardModel;
pub use save::{FileType, save_dir, save_dir_as};
pub use side_files::Sentence;
pub use soft_prompt::SoftPrompt;
pub use soft_rows::SoftRows;
pub use trunk::{Build, Trunk};

use std::collections::BTreeMap;

/// Parameters by their Hugging Face name, in a fixed order. Tensors of `Var`s make it trainable.
pub type Weights = BTreeMap<String, candle_core::Tensor>;
