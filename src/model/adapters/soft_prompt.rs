//! Soft prompts (arXiv 2104.08691): trained vectors that precede a sequence's input embeddings, stored in a directory
//! separate from the base model that they were trained for.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::ModelConfig;

/// Name of the only tensor, [n_tokens, hidden_size], f32.
pub const SOFT_PROMPT: &str = "soft_prompt";
const WEIGHTS: &str = "soft_prompt.safetensors";
const ABOUT: &str = "soft_prompt.json";
/// Longer prompts than this count as damaged.
const MAX_TOKENS: usize = 4096;

/// The contents of soft_prompt.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftPromptInfo {
    /// The base model by the name that the training run used (a path or a version).
    pub base_model: String,
    /// SHA-256 (hex) over the base's weight files in order of their names.
    pub base_sha256: String,
    pub n_tokens: usize,
    pub hidden_size: usize,
}

/// A trained prompt; cheap to clone.
#[derive(Clone, Debug)]
pub struct SoftPrompt {
    pub info: SoftPromptInfo,
    /// [n_tokens, hidden_size], f32.
    pub vectors: Tensor,
}

/// Why a soft prompt could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SoftPromptError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}: {message}")]
    Malformed { path: String, message: String },
    #[error("the soft prompt has {found} channels, the model {wanted}")]
    OtherWidth { found: usize, wanted: usize },
    #[error("the soft prompt takes {n_tokens} positions, the model has {max_positions}")]
    TooLong { n_tokens: usize, max_positions: usize },
}

type Result<T> = std::result::Result<T, SoftPromptError>;

/// True for a directory that holds a soft prompt.
pub fn is_soft_prompt(dir: &Path) -> bool {
    dir.join(ABOUT).is_file() && dir.join(WEIGHTS).is_file()
}

impl SoftPrompt {
    /// # Errors
    /// When a file is missing or the sizes in the two files differ.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let (about, weights) = (dir.join(ABOUT), dir.join(WEIGHTS));
        let path = |p: &Path| p.display().to_string();
        let text = std::fs::read(&about).map_err(|source| SoftPromptError::Io { path: path(&about), source })?;
        let info: SoftPromptInfo = serde_json::from_slice(&text)
            .map_err(|e| SoftPromptError::Malformed { path: path(&about), message: e.to_string() })?;
        let bytes = std::fs::read(&weights).map_err(|source| SoftPromptError::Io { path: path(&weights), source })?;
        let malformed = |message: String| SoftPromptError::Malformed { path: path(&weights), message };
        let mut tensors =
            candle_core::safetensors::load_buffer(&bytes, device).map_err(|e| malformed(e.to_string()))?;
        let vectors = tensors.remove(SOFT_PROMPT).ok_or_else(|| malformed(format!("no tensor {SOFT_PROMPT}")))?;
        if vectors.dims() != [info.n_tokens, info.hidden_size] || !(1..=MAX_TOKENS).contains(&info.n_tokens) {
            return Err(malformed(format!(
                "{SOFT_PROMPT} has shape {:?}, soft_prompt.json says [{}, {}]",
                vectors.dims(),
                info.n_tokens,
                info.hidden_size
            )));
        }
        let vectors = vectors.to_dtype(DType::F32).map_err(|e| malformed(e.to_string()))?;
        Ok(Self { info, vectors })
    }

    /// Writes both files into `dir`, which is created if needed. The JSON file is written last, so a directory that has
    /// it is complete.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let io = |source| SoftPromptError::Io { path: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let host = self.vectors.detach().to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F32)?.contiguous());
        let host = host.map_err(|e| io(std::io::Error::other(e.to_string())))?;
        safetensors::serialize_to_file(BTreeMap::from([(SOFT_PROMPT, host)]), None, &dir.join(WEIGHTS))
            .map_err(|e| io(std::io::Error::other(e.to_string())))?;
        let text = serde_json::to_vec_pretty(&self.info).map_err(|e| io(e.into()))?;
        std::fs::write(dir.join(ABOUT), text).map_err(io)
    }

    /// # Errors
    /// When the prompt does not fit the model.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let (found, wanted) = (self.info.hidden_size, config.hidden_size);
        if found != wanted {
            return Err(SoftPromptError::OtherWidth { found, wanted });
        }
        let (n_tokens, max_positions) = (self.info.n_tokens, config.max_positions);
        if n_tokens >= max_positions {
            return Err(SoftPromptError::TooLong { n_tokens, max_positions });
        }
        Ok(())
    }
}
