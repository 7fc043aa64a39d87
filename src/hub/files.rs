//! What all sources of models share: the directory of pulled models, the files of a model, progress and errors.

use std::path::{Path, PathBuf};

/// Files of a model directory that are copied besides its safetensors.
pub(super) const FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "instructd.json",
    "model.safetensors.index.json",
];

/// Progress of a pull. `total` is not always known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullProgress {
    /// The current source: a path, a file on the hub, a wheel.
    pub what: String,
    pub done: u64,
    pub total: Option<u64>,
}

/// Why a model could not be found or pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{0:?} is not a valid model name: use lower-case letters, digits, '.', '_' and '-', at most 64, no \"..\"")]
    Name(String),
    #[error("there is no model {name:?}: it is neither a path nor in {}. Try `instructd models pull {name}`", dir.display())]
    NotHere { name: String, dir: PathBuf },
    /// One line for each source that was tried.
    #[error("cannot pull {name}. All three sources failed:\n{}", ways.join("\n"))]
    AllFailed { name: String, ways: Vec<String> },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Refused(String),
}

pub(super) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> PullError {
    move |source| PullError::Io { what: what.to_string(), source }
}

/// Directory of the pulled models.
pub fn models_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

/// Bytes of all files under `dir`.
pub(super) fn tree_size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => tree_size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
