//! Transformer models: `new(config, weights)` builds a model for training or serving. This module has forward passes,
//! no losses, sampling or optimizers.
//!
//! In reading order: `config` and `families` (what a model is), `load`, `gguf` and `save` (its files), `layers` (what
//! decoders and encoders share), `decoder`, `encoder`, `heads` and `adapters`.

pub mod config;
pub mod families;

pub mod architecture;
pub mod init;
pub mod presets;

pub mod gguf;
pub mod load;
pub mod merged;
mod names;
pub mod quantized;
pub mod save;

pub mod decoder;
pub mod encoder;
mod layers;
pub mod packed;

pub mod adapters;
pub mod heads;

pub use adapters::lora::LoraConfig;
pub use adapters::soft_prompt::SoftPrompt;
pub use config::{Activation, Arch, LayerKind, ModelConfig, PositionKind, QkNorm, RopeScaling, Switches};
pub use decoder::device::DeviceModel;
pub use decoder::training::DeviceTrainer;
pub use decoder::{Decoder, Purpose, Recompute, SampledActivations, SoftRows};
pub use encoder::Encoder;
pub use heads::reward::RewardModel;
pub use heads::trunk::{Build, Trunk};
pub use load::{Described, LoadError, Loaded, Opened, Sentence, Source, describe, load, load_quantized, open};
pub use packed::PackedBatch;
pub use save::{FileType, save_dir, save_dir_as};

use std::collections::BTreeMap;

/// Parameters by their Hugging Face name, in a fixed order. Tensors of `Var`s make it trainable.
pub type Weights = BTreeMap<String, candle_core::Tensor>;
