//! Writes a model directory that Hugging Face transformers loads.

use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::families::EncoderHeads;
use crate::model::merged::Merged;
use crate::model::{ModelConfig, Weights, names};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("cannot write {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("tensor {name}: {source}")]
    Tensor { name: String, source: candle_core::Error },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

type Result<T> = std::result::Result<T, SaveError>;

/// The element type of written weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileType {
    /// f32, without loss.
    #[default]
    F32,
    /// f16: half the size, ten bits of mantissa. For distributed models.
    F16,
}

impl FileType {
    fn name(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::F32 => ("F32", "float32", 4),
            Self::F16 => ("F16", "float16", 2),
        }
    }
}

/// Writes config.json, generation_config.json, model.safetensors (f32) and, where given, tokenizer.json,
/// tokenizer_config.json and instructd.json into `dir`, which is created if needed. Every file is written atomically;
/// the weights are written last, so a directory with model.safetensors is complete. Copies of tied weights are left
/// out. Returns the SHA-256 (hex) of model.safetensors.
///
/// # Errors
/// When a file cannot be written or a tensor cannot be read from its device.
pub fn save_dir(
    dir: &Path,
    config: &ModelConfig,
    hf_config: &Value,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    chat_template: Option<&str>,
    instructd: Option<&Value>,
) -> Result<String> {
    save_dir_as(dir, FileType::F32, config, hf_config, weights, tokenizer, chat_template, instructd)
}

/// `save_dir` for weights that are computed while they are written.
pub fn save_merged(
    dir: &Path,
    config: &ModelConfig,
    hf_config: &Value,
    weights: &Merged,
    tokenizer: Option<&Tokenizer>,
    chat_template: Option<&str>,
    instructd: Option<&Value>,
) -> Result<String> {
    write_all(dir, FileType::F32, config, hf_config, weights, tokenizer, chat_template, instructd)
}

/// `save_dir` with the weights in `file_type`.
#[expect(clippy::too_many_arguments, reason = "the parts of a model directory, one each")]
pub fn save_dir_as(
    dir: &Path,
    file_type: FileType,
    config: &ModelConfig,
    hf_config: &Value,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    chat_template: Option<&str>,
    instructd: Option<&Value>,
) -> Result<String> {
    let weights = weights.clone().into();
    write_all(dir, file_type, config, hf_config, &weights, tokenizer, chat_template, instructd)
}

#[expect(clippy::too_many_arguments, reason = "the parts of a model directory, one each")]
fn write_all(
    dir: &Path,
    file_type: FileType,
    config: &ModelConfig,
    hf_config: &Value,
    weights: &Merged,
    tokenizer: Option<&Tokenizer>,
    chat_template: Option<&str>,
    instructd: Option<&Value>,
) -> Result<String> {
    std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
    write_json(&dir.join("config.json"), &config_json(config, hf_config, weights, instructd, file_type))?;
    write_json(&dir.join("generation_config.json"), &generation_json(config))?;
    if let Some(tokenizer) = tokenizer {
        let text = tokenizer.to_json()?;
        write_file(&dir.join("tokenizer.json"), |out| out.write_all(text.as_bytes()))?;
        write_json(&dir.join("tokenizer_config.json"), &tokenizer_json(config, tokenizer, chat_template))?;
    }
    if let Some(instructd) = instructd {
        write_json(&dir.join("instructd.json"), instructd)?;
    }
    write_safetensors(&dir.join("model.safetensors"), config, weights, file_type)
}

/// The source's config.json with the fields that the weights determine: class, dtype, number of labels.
fn config_json(
    config: &ModelConfig,
    hf_config: &Value,
    weights: &Merged,
    instructd: Option<&Value>,
    file_type: FileType,
) -> Value {
    let mut map = hf_config.as_object().cloned().unwrap_or_default();
    let (family, encoder) = (config.family().class, config.family().encoder_heads());
    // A reward model on an encoder has no class in transformers: it loads as the encoder only.
    let heads: &[&str] =
        if encoder.is_some() { &["classifier.weight"] } else { &["score.weight", "classifier.weight"] };
    let labels = heads.iter().find_map(|name| weights.shape(name));
    let masked = |heads: &EncoderHeads| weights.shape(&format!("{}.weight", heads.dense)).is_some();
    let class = match (&labels, encoder) {
        (Some(_), _) => config.family().classifier_class(),
        (None, None) => config.family().causal_class(),
        (None, Some(heads)) if masked(heads) => format!("{family}ForMaskedLM"),
        (None, Some(_)) => format!("{family}Model"),
    };
    map.insert("model_type".into(), json!(config.family().model_type));
    map.insert("architectures".into(), json!([class]));
    if let Some(rows) = labels.as_ref().and_then(|shape| shape.first()) {
        map.insert("num_labels".into(), json!(rows));
        // transformers takes the number of labels from this table.
        let given = instructd.and_then(|about| about.get("classifier")?.get("labels"));
        let name = |i: usize| {
            given.and_then(|labels| labels.get(i)?.as_str()).map_or_else(|| format!("LABEL_{i}"), str::to_owned)
        };
        let names: Map<String, Value> = (0..*rows).map(|i| (i.to_string(), json!(name(i)))).collect();
        let ids: Map<String, Value> = (0..*rows).map(|i| (name(i), json!(i))).collect();
        map.insert("id2label".into(), names.into());
        map.insert("label2id".into(), ids.into());
    }
    // All files contain the same end tokens, because programs read different ones.
    let ends = eos_json(config);
    if !ends.is_null() {
        map.insert("eos_token_id".into(), ends);
    }
    map.remove("torch_dtype");
    map.insert("dtype".into(), json!(file_type.name().1));
    map.insert("torch_dtype".into(), json!(file_type.name().1));
    map.into()
}

/// One id, or the list of them.
fn eos_json(config: &ModelConfig) -> Value {
    match config.eos_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn generation_json(config: &ModelConfig) -> Value {
    let eos = eos_json(config);
    let mut map = Map::new();
    for (key, value) in
        [("bos_token_id", json!(config.bos_id)), ("eos_token_id", eos), ("pad_token_id", json!(config.pad_id))]
    {
        if !value.is_null() {
            map.insert(key.into(), value);
        }
    }
    map.into()
}

/// tokenizer_config.json: the source's own, with the chat template and the names of the end tokens.
fn tokenizer_json(config: &ModelConfig, tokenizer: &Tokenizer, chat_template: Option<&str>) -> Value {
    let mut map = tokenizer.config().and_then(Value::as_object).cloned().unwrap_or_default();
    let mut default = |key: &str, value: Value| {
        if !map.contains_key(key) && !value.is_null() {
            map.insert(key.into(), value);
        }
    };
    let token = |id: Option<&u32>| id.and_then(|id| tokenizer.id_to_token(*id)).map_or(Value::Null, Value::String);
    default("tokenizer_class", json!("PreTrainedTokenizerFast"));
    default("clean_up_tokenization_spaces", json!(false));
    default("model_max_length", json!(config.max_positions));
    default("bos_token", token(config.bos_id.as_ref()));
    default("eos_token", token(config.eos_ids.first()));
    default("pad_token", token(config.pad_id.as_ref()));
    if let Some(template) = chat_template {
        map.insert("chat_template".into(), json!(template));
    }
    map.into()
}

fn io(path: &Path, source: std::io::Error) -> SaveError {
    SaveError::Io { path: path.display().to_string(), source }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}

/// Writes beside `path`, syncs, renames. The file is for its owner only.
fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut temporary = tempfile::Builder::new().prefix(".writing-").suffix(".tmp").tempfile_in(parent)?;
        let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        fill(&mut out)?;
        out.flush()?;
        drop(out);
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        std::fs::File::open(parent)?.sync_all()
    };
    write().map_err(|e| io(path, e))
}

/// Hashes the bytes that are written.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The safetensors layout: header length, JSON header padded to 8 bytes, data in header order.
fn write_safetensors(path: &Path, config: &ModelConfig, weights: &Merged, file_type: FileType) -> Result<String> {
    let (dtype, _, width) = file_type.name();
    let mut kept = weights.shapes();
    kept.retain(|(name, _)| names::canonical(config, name).is_some());
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0usize;
    for (name, shape) in &kept {
        let end = at + shape.iter().product::<usize>() * width;
        let name = names::published(config, name);
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut digest = String::new();
    let mut failure = None;
    write_file(path, |out| {
        let mut out = Hashing { out, hash: Sha256::new() };
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (name, _) in &kept {
            let values = match weights.tensor(name).and_then(|tensor| values(&tensor)) {
                Ok(values) => values,
                Err(source) => {
                    failure = Some(SaveError::Tensor { name: name.clone(), source });
                    return Err(std::io::Error::other("tensor could not be read"));
                }
            };
            let bytes: Vec<u8> = match file_type {
                FileType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                FileType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            };
            out.write_all(&bytes)?;
        }
        digest = hex::encode(out.hash.finalize());
        Ok(())
    })
    .map_err(|e| failure.take().unwrap_or(e))?;
    Ok(digest)
}

/// The tensor's values as f32 in row-major order.
fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
}
