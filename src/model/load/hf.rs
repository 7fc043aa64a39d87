//! Hugging Face directories: config.json, safetensors (one file or shards), tokenizer files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::ModelConfig;
use crate::model::load::mistakes;
use crate::model::load::side_files::{self, MAX_CONFIG};
use crate::model::load::{Described, LoadError, Source, read_json, read_text};
use crate::tokenizer::Tokenizer;

const MAX_TOKENIZER: u64 = 256 << 20;

type Result<T> = std::result::Result<T, LoadError>;

/// Reads configuration and tokenizer, and finds the weight files, without reading them.
pub(in crate::model) fn describe(dir: &Path) -> Result<Described> {
    let config_path = dir.join("config.json");
    let Some(mut hf_config) = read_json(&config_path, MAX_CONFIG)? else {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, mistakes::without_config(dir));
        return Err(LoadError::io(&config_path, missing));
    };
    if let Some(message) = mistakes::quantised(&hf_config) {
        return Err(LoadError::unsupported(&config_path, message));
    }
    if let Some(text) = crate::model::config::text_half(&hf_config) {
        hf_config = text;
    }
    let generation = read_json(&dir.join("generation_config.json"), MAX_CONFIG)?;
    let mut config =
        ModelConfig::from_hf(&hf_config, generation.as_ref()).map_err(|e| LoadError::config(&config_path, e))?;
    let tokenizer_config = side_files::tokenizer_config(dir)?;
    let tokenizer_path = dir.join("tokenizer.json");
    let mut tokenizer = match read_text(&tokenizer_path, MAX_TOKENIZER)? {
        None => match mistakes::other_vocabulary(dir) {
            Some(message) => return Err(LoadError::unsupported(&tokenizer_path, message)),
            None => None,
        },
        Some(text) => Some(
            Tokenizer::from_json(&text, tokenizer_config.clone(), &config.eos_ids)
                .map_err(|e| LoadError::tokenizer(&tokenizer_path, e))?,
        ),
    };
    side_files::join_tokens(&mut config, generation.as_ref(), tokenizer.as_mut());
    let chat_template = side_files::chat_template(dir, tokenizer_config.as_ref())?;
    let sentence = side_files::sentence(dir, &config, tokenizer_config.as_ref())?;
    let instructd = read_json(&dir.join("instructd.json"), MAX_CONFIG)?;
    let source = Source { path: dir.to_owned(), weight_files: weight_files(dir)? };
    Ok(Described { config, tokenizer, chat_template, hf_config, instructd, sentence, source })
}

/// model.safetensors, or the shards that model.safetensors.index.json names.
pub(in crate::model) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = dir.join("model.safetensors.index.json");
    let Some(index) = read_json(&index_path, MAX_TOKENIZER)? else {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, mistakes::without_weights(dir));
        return Err(LoadError::io(&single, missing));
    };
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(LoadError::malformed(&index_path, "`weight_map` is missing"));
    };
    let mut files = BTreeSet::new();
    for file in map.values() {
        // A shard is in the directory of its index: names with a path could point anywhere.
        match file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|f| f == *name)) {
            Some(name) => files.insert(dir.join(name)),
            None => return Err(LoadError::malformed(&index_path, format!("{file} is not a plain file name"))),
        };
    }
    if files.is_empty() {
        return Err(LoadError::malformed(&index_path, "`weight_map` names no file"));
    }
    let missing: Vec<&PathBuf> = files.iter().filter(|file| !file.is_file()).collect();
    if let Some(first) = missing.first() {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = missing.iter().take(5).map(|path| name(path)).collect();
        let message = format!("{} of {} shards missing: {}", missing.len(), files.len(), names.join(", "));
        return Err(LoadError::io(first, std::io::Error::new(std::io::ErrorKind::NotFound, message)));
    }
    Ok(files.into_iter().collect())
}
