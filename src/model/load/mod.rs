//! Opens a model: reads configuration, f32 weights and tokenizer of a Hugging Face directory or a GGUF file.

pub(in crate::model) mod hf;
pub(crate) mod mistakes;
mod side_files;

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::Value;

use crate::model::gguf::GgufTensors;
use crate::model::hold::{self, Holding};
use crate::model::{ModelConfig, Weights, config::ConfigError, gguf, names};
use crate::ops::blocks::BlockType;
use crate::ops::linear::WeightFormat;
use crate::tokenizer::{Tokenizer, TokenizerError};

pub use side_files::Sentence;

/// A model as read from disk. Weights are f32 under Hugging Face names, in the layout of Hugging Face.
pub struct Loaded {
    pub config: ModelConfig,
    pub weights: Weights,
    /// Absent when the directory has no tokenizer.json.
    pub tokenizer: Option<Tokenizer>,
    /// Jinja source of the model's chat template.
    pub chat_template: Option<String>,
    /// The contents of config.json; rebuilt from the metadata for GGUF files.
    pub hf_config: Value,
    /// instructd.json: kind of model, reward gain and bias, …
    pub instructd: Option<Value>,
    /// Settings for embeddings from a sentence encoder's files.
    pub sentence: Sentence,
    pub source: Source,
    /// The tensors in the format of a GGUF file; `None` for directories.
    pub gguf: Option<GgufTensors>,
}

impl Loaded {
    /// The format that holds a directory's weights without loss, by the type in its configuration.
    pub fn published_format(&self) -> WeightFormat {
        let dtype = ["dtype", "torch_dtype"].iter().find_map(|key| self.hf_config.get(key)?.as_str());
        match dtype {
            Some("bfloat16") => WeightFormat::Bf16,
            Some("float16") => WeightFormat::F16,
            _ => WeightFormat::F32,
        }
    }
}

/// The source of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The directory or .gguf file.
    pub path: PathBuf,
    /// The files that hold weights, sorted.
    pub weight_files: Vec<PathBuf>,
}

/// A model without its weights.
pub struct Described {
    pub config: ModelConfig,
    pub tokenizer: Option<Tokenizer>,
    pub chat_template: Option<String>,
    pub hf_config: Value,
    pub instructd: Option<Value>,
    pub sentence: Sentence,
    pub source: Source,
}

impl Described {
    pub(in crate::model) fn with_weights(self, weights: Weights, gguf: Option<GgufTensors>) -> Loaded {
        Loaded {
            config: self.config,
            weights,
            tokenizer: self.tokenizer,
            chat_template: self.chat_template,
            hf_config: self.hf_config,
            instructd: self.instructd,
            sentence: self.sentence,
            source: self.source,
            gguf,
        }
    }
}

/// Why a model could not be opened. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    #[error("{}: {message}", path.display())]
    Unsupported { path: PathBuf, message: String },
}

impl LoadError {
    pub(in crate::model) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(in crate::model) fn malformed(path: &Path, message: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), message: message.into() }
    }

    pub(in crate::model) fn unsupported(path: &Path, message: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), message: message.into() }
    }

    pub(in crate::model) fn config(path: &Path, error: ConfigError) -> Self {
        match error {
            ConfigError::Malformed(_) => Self::malformed(path, error.to_string()),
            ConfigError::Unsupported(_) => Self::unsupported(path, error.to_string()),
        }
    }

    pub(in crate::model) fn tokenizer(path: &Path, error: TokenizerError) -> Self {
        Self::malformed(path, error.to_string())
    }
}

/// Loads a Hugging Face directory or a .gguf file; weights become f32 tensors on `device`.
///
/// # Errors
/// `Io` when a file cannot be read, `Malformed` when it contradicts itself (sizes, shapes, JSON),
/// `Unsupported` when it is valid but needs an operation that is not implemented. Never panics on a
/// damaged file.
pub fn load(path: &Path, device: &Device) -> Result<Loaded, LoadError> {
    load_as(path, device, None)
}

/// Loads a model with the matrices of the blocks held in `kind`, where `device` is the CPU. Matrices are converted one
/// at a time, so the whole model is never in memory as f32. See `hold`.
///
/// # Errors
/// `Io`, `Malformed` or `Unsupported`; see `load`.
pub fn load_held(path: &Path, device: &Device, kind: BlockType) -> Result<Loaded, LoadError> {
    load_as(path, device, Some(kind))
}

fn load_as(path: &Path, device: &Device, kind: Option<BlockType>) -> Result<Loaded, LoadError> {
    let kind = kind.filter(|_| device.is_cpu());
    let loaded = if is_gguf(path)? {
        let file = gguf::open_raw(path)?;
        let config = file.described().config.clone();
        let holding = kind.map(|kind| Holding::new(&config, kind));
        let weights = file.tensors().read(device, holding.as_ref())?;
        let (described, tensors) = file.into_parts();
        described.with_weights(weights, Some(tensors))
    } else {
        hf::load(path, device, kind)?
    };
    check_shapes(path, &loaded.config, &loaded.weights)?;
    Ok(loaded)
}

/// Reads everything but the weights.
pub fn describe(path: &Path) -> Result<Described, LoadError> {
    if is_gguf(path)? { Ok(gguf::open_raw(path)?.into_parts().0) } else { hf::describe(path) }
}

/// True for a file, false for a directory.
fn is_gguf(path: &Path) -> Result<bool, LoadError> {
    let meta = std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?;
    Ok(!meta.is_dir())
}

/// Checks that all backbone parameters exist with the shapes of the configuration, and that an untied language model
/// has its output layer.
fn check_shapes(path: &Path, config: &ModelConfig, weights: &Weights) -> Result<(), LoadError> {
    for (name, shape) in names::backbone(config) {
        match weights.get(&name) {
            None => return Err(LoadError::malformed(path, format!("tensor {name} is missing"))),
            Some(tensor) if hold::is_held(tensor) && hold::fits(config, &shape, tensor) => {}
            Some(tensor) if tensor.dims() != shape => {
                let message =
                    format!("tensor {name} has shape {:?}, the configuration asks for {shape:?}", tensor.dims());
                return Err(LoadError::malformed(path, message));
            }
            Some(_) => {}
        }
    }
    let decoder = !config.is_encoder();
    let other_head = ["score.weight", "classifier.weight"].iter().any(|name| weights.contains_key(*name));
    if decoder && !config.tie_embeddings && !other_head {
        let found = weights.get("lm_head.weight").map(|t| t.dims().to_vec());
        if found != Some(vec![config.vocab_size, config.hidden_size]) {
            let message = format!("embeddings are not tied, and lm_head.weight is {found:?}");
            return Err(LoadError::malformed(path, message));
        }
    }
    Ok(())
}

/// Maps a file into memory. The file must not be truncated while it is mapped; models are written by rename, so that a
/// new version never shortens a mapped file.
pub(in crate::model) fn map_file(path: &Path) -> Result<memmap2::Mmap, LoadError> {
    let file = std::fs::File::open(path).map_err(|e| LoadError::io(path, e))?;
    // SAFETY: the map is read-only; see above for the one way it could go wrong.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|e| LoadError::io(path, e))
}

/// Reads a JSON file of at most `limit` bytes; `None` when there is no such file.
pub(in crate::model) fn read_json(path: &Path, limit: u64) -> Result<Option<Value>, LoadError> {
    let Some(text) = read_text(path, limit)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| LoadError::malformed(path, format!("not JSON: {e}")))
}

/// Reads a text file of at most `limit` bytes; `None` when there is no such file.
pub(in crate::model) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, LoadError> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LoadError::io(path, e)),
        Ok(meta) if meta.len() > limit => {
            return Err(LoadError::malformed(path, format!("{} bytes, at most {limit} are read", meta.len())));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|e| LoadError::io(path, e))?;
    if let Some(mistake) = mistakes::of_bytes(&bytes) {
        return Err(LoadError::malformed(path, mistake));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| LoadError::malformed(path, "it is not UTF-8 text"))
}
