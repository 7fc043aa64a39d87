//! Opens a model: reads configuration, f32 weights and tokenizer of a Hugging Face directory or a GGUF file.

pub(in crate::model) mod hf;
pub(crate) mod mistakes;
pub(in crate::model) mod rows;
mod safetensors_files;
mod side_files;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::model::gguf::GgufTensors;
use crate::model::quantized::MatrixQuantizer;
use crate::model::{ModelConfig, Weights, config::ConfigError, gguf, names};
use crate::ops::blocks::BlockType;
use crate::ops::linear::WeightFormat;
use crate::tokenizer::{Tokenizer, TokenizerError};

use rows::StoredRows;
use safetensors_files::SafetensorsFiles;
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
    fn with_weights(self, weights: Weights) -> Loaded {
        Loaded {
            config: self.config,
            weights,
            tokenizer: self.tokenizer,
            chat_template: self.chat_template,
            hf_config: self.hf_config,
            instructd: self.instructd,
            sentence: self.sentence,
            source: self.source,
        }
    }
}

/// The open files of a model, whose tensors are read one at a time.
pub enum ModelFiles {
    /// One or more safetensors files.
    Directory(SafetensorsFiles),
    Gguf(GgufTensors),
}

impl ModelFiles {
    /// Names of all tensors, in order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Directory(files) => files.names().collect(),
            Self::Gguf(tensors) => tensors.iter().map(|(name, ..)| name).collect(),
        }
    }

    /// The shape of a tensor in the layout of Hugging Face; `None` where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Directory(files) => files.shape(name).map(<[usize]>::to_vec),
            Self::Gguf(tensors) => tensors.shape(name),
        }
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        let sizes = self.names().into_iter().filter_map(|name| self.shape(name));
        sizes.map(|shape| shape.iter().product::<usize>() as u64).sum()
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// When there is no tensor of this name, its type is not one of floating point, or it lies outside its file.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, LoadError> {
        match self {
            Self::Directory(files) => files.tensor(name, device),
            Self::Gguf(tensors) => tensors.tensor(name, device),
        }
    }

    /// The tensors of a GGUF file, whose blocks can be served as they are.
    pub fn gguf(&self) -> Option<&GgufTensors> {
        match self {
            Self::Directory(_) => None,
            Self::Gguf(tensors) => Some(tensors),
        }
    }

    /// The rows of a matrix, to be read from the file when they are needed. `None` where the platform or the tensor's
    /// type does not allow it.
    ///
    /// # Errors
    /// When the file cannot be opened again.
    pub fn rows(&self, name: &str) -> Result<Option<StoredRows>, LoadError> {
        let place = match self {
            Self::Directory(files) => files.place(name),
            Self::Gguf(tensors) => tensors.place(name),
        };
        place.map_or(Ok(None), |place| StoredRows::open(&place).map_err(|e| LoadError::io(&place.path, e)))
    }
}

/// A model whose tensors are still in its files. Their names and shapes fit the configuration.
pub struct Opened {
    pub described: Described,
    pub files: ModelFiles,
}

impl Opened {
    /// The format that holds a directory's weights without loss, by the type in its configuration.
    pub fn published_format(&self) -> WeightFormat {
        let dtype = ["dtype", "torch_dtype"].iter().find_map(|key| self.described.hf_config.get(key)?.as_str());
        match dtype {
            Some("bfloat16") => WeightFormat::Bf16,
            Some("float16") => WeightFormat::F16,
            _ => WeightFormat::F32,
        }
    }

    /// The model with only the tensors that are no part of its backbone, not its output matrix, and of an encoder neither its
    /// pooler nor its masked-LM head: the heads of other tasks, as f32 on the CPU.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn into_heads(self) -> Result<Loaded, LoadError> {
        let config = &self.described.config;
        let backbone: BTreeSet<String> = names::backbone(config).into_iter().map(|(name, _)| name).collect();
        let names = self.files.names().into_iter().filter(|name| !backbone.contains(*name));
        let own = |name: &str| match config.family().encoder_heads() {
            Some(heads) => heads.is_pooler(name) || heads.is_masked_lm(name),
            None => name == config.head_name(),
        };
        let heads = names.filter(|name| !own(name));
        let one = |name: &str| Ok((name.to_owned(), self.files.tensor(name, &Device::Cpu)?));
        let weights = heads.map(one).collect::<Result<Weights, LoadError>>()?;
        Ok(self.described.with_weights(weights))
    }

    /// All tensors as f32 on `device`, the matrices of the blocks as `kind` where one is given and `device` is the CPU.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn weights(&self, device: &Device, kind: Option<BlockType>) -> Result<Weights, LoadError> {
        let (config, path) = (&self.described.config, &self.described.source.path);
        let quantizer = kind.filter(|_| device.is_cpu()).map(|kind| MatrixQuantizer::new(config, kind));
        let one = |name: &str| -> Result<(String, Tensor), LoadError> {
            let mut tensor = self.files.tensor(name, device)?;
            if let Some(quantizer) = &quantizer {
                tensor = quantizer
                    .quantize(name, tensor)
                    .map_err(|e| LoadError::malformed(path, format!("tensor {name}: {e}")))?;
            }
            Ok((name.to_owned(), tensor))
        };
        self.files.names().into_iter().map(one).collect()
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

/// Loads a model with the matrices of its blocks quantized to `kind` where `device` is the CPU. Matrices are quantized
/// one at a time, so the whole model is never in memory as f32. See [`crate::model::quantized`].
///
/// # Errors
/// `Io`, `Malformed` or `Unsupported`; see `load`.
pub fn load_quantized(path: &Path, device: &Device, kind: BlockType) -> Result<Loaded, LoadError> {
    load_as(path, device, Some(kind))
}

fn load_as(path: &Path, device: &Device, kind: Option<BlockType>) -> Result<Loaded, LoadError> {
    let opened = open(path)?;
    let weights = opened.weights(device, kind)?;
    Ok(opened.described.with_weights(weights))
}

/// Opens a model without reading its tensors.
///
/// # Errors
/// `Io`, `Malformed` or `Unsupported`; see `load`.
pub fn open(path: &Path) -> Result<Opened, LoadError> {
    let opened = if is_gguf(path)? {
        let (described, tensors) = gguf::open_raw(path)?.into_parts();
        Opened { described, files: ModelFiles::Gguf(tensors) }
    } else {
        let described = hf::describe(path)?;
        let files = SafetensorsFiles::open(&described.config, &described.source.weight_files)?;
        Opened { described, files: ModelFiles::Directory(files) }
    };
    check_shapes(path, &opened.described.config, &opened.files)?;
    Ok(opened)
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
fn check_shapes(path: &Path, config: &ModelConfig, files: &ModelFiles) -> Result<(), LoadError> {
    for (name, shape) in names::backbone(config) {
        match files.shape(&name) {
            None => return Err(LoadError::malformed(path, format!("tensor {name} is missing"))),
            Some(found) if found != shape => {
                let message = format!("tensor {name} has shape {found:?}, the configuration asks for {shape:?}");
                return Err(LoadError::malformed(path, message));
            }
            Some(_) => {}
        }
    }
    let decoder = !config.is_encoder();
    let other_head = ["score.weight", "classifier.weight"].iter().any(|name| files.shape(name).is_some());
    if decoder && !config.tie_embeddings && !other_head {
        let found = files.shape("lm_head.weight");
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
