//! Settings that several files of a model directory may hold, merged by fixed rules.
//!
//! - End tokens: all of them, from config.json, generation_config.json and the tokenizer's `eos_token`, in this order.
//! - One begin and one padding token: config.json, else generation_config.json, else the tokenizer's.
//! - Names of special tokens (for templates): tokenizer_config.json, and special_tokens_map.json for those missing
//!   there.
//! - Tokens around a text: `add_bos_token` and `add_eos_token` of tokenizer_config.json where one of them is given,
//!   else the post-processor of tokenizer.json (`tokenizer/frame.rs`).
//! - Chat template: chat_template.jinja, else chat_template.json, else tokenizer_config.json; of several named
//!   templates `default`, or the only one. A template named `tool_use` (additional_chat_templates/tool_use.jinja beside
//!   chat_template.jinja) renders the conversations that have tools.
//! - Pooling, normalising and length of a sentence encoder: modules.json and the files it names; the length
//!   from sentence_bert_config.json, else `model_max_length` of tokenizer_config.json, never over the positions.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::ModelConfig;
use crate::model::encoder::text::Pooling;
use crate::model::load::{LoadError, read_json, read_text};
use crate::tokenizer::Tokenizer;

type Result<T> = std::result::Result<T, LoadError>;

pub(in crate::model) const MAX_CONFIG: u64 = 16 << 20;
const MAX_MODULES: usize = 16;

/// The settings of embeddings in a sentence encoder's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentence {
    /// Concatenated; empty = the directory does not specify it.
    pub pooling: Vec<Pooling>,
    pub lowercase: bool,
    /// Most tokens of a text.
    pub max_tokens: Option<usize>,
}

/// tokenizer_config.json, with the names of special tokens that only special_tokens_map.json has.
pub(in crate::model) fn tokenizer_config(dir: &Path) -> Result<Option<Value>> {
    let own = read_json(&dir.join("tokenizer_config.json"), MAX_CONFIG)?;
    let map = read_json(&dir.join("special_tokens_map.json"), MAX_CONFIG)?;
    let Some(Value::Object(map)) = map else { return Ok(own) };
    let mut merged = match own {
        Some(Value::Object(own)) => own,
        Some(other) => return Ok(Some(other)),
        None => Map::new(),
    };
    for (key, value) in map {
        let known = merged.get(&key).is_some_and(|v| !v.is_null());
        if !known {
            merged.insert(key, value);
        }
    }
    Ok(Some(Value::Object(merged)))
}

/// The source of the chat template, if there is one.
pub(in crate::model) fn chat_template(dir: &Path, tokenizer_config: Option<&Value>) -> Result<Option<String>> {
    match read_text(&dir.join("chat_template.jinja"), MAX_CONFIG) {
        Ok(None) => {}
        Ok(Some(text)) => {
            let with_tools = read_text(&dir.join("additional_chat_templates/tool_use.jinja"), MAX_CONFIG)?;
            return Ok(Some(by_tools(&text, with_tools.as_deref())));
        }
        // Chat requests report the error in the file; the model is usable without it.
        Err(LoadError::Malformed { message, .. }) => {
            return Ok(Some(format!(
                "{{{{ raise_exception({}) }}}}",
                Value::from(format!("chat_template.jinja: {message}"))
            )));
        }
        Err(error) => return Err(error),
    }
    let own = read_json(&dir.join("chat_template.json"), MAX_CONFIG)?;
    let from = |config: &Value| template_of(config.get("chat_template")?);
    Ok(own.as_ref().and_then(from).or_else(|| tokenizer_config.and_then(from)))
}

/// A string, a list of `{name, template}`, or name → template.
fn template_of(value: &Value) -> Option<String> {
    let named: Vec<(&str, &str)> = match value {
        Value::String(text) => return Some(text.clone()),
        Value::Array(items) => items
            .iter()
            .filter_map(|item| Some((item.get("name")?.as_str()?, item.get("template")?.as_str()?)))
            .collect(),
        Value::Object(map) => map.iter().filter_map(|(name, text)| Some((name.as_str(), text.as_str()?))).collect(),
        _ => return None,
    };
    let by_name = |wanted: &str| named.iter().find(|(name, _)| *name == wanted).map(|(_, text)| *text);
    let only = named.first().filter(|_| named.len() == 1).map(|(_, text)| *text);
    Some(by_tools(by_name("default").or(only)?, by_name("tool_use").filter(|_| named.len() > 1)))
}

/// One template of two: transformers renders conversations with tools by the one named `tool_use`. As one source it is
/// saved, exported and read by other programs like any template.
fn by_tools(default: &str, tool_use: Option<&str>) -> String {
    // What transformers' settings of Jinja do at the ends of a source is done here: one line end at its end goes, and
    // so do spaces before a tag that begins it. `+` keeps the white space beside the new tags.
    let whole = |source: &str| {
        let source = source.strip_suffix('\n').unwrap_or(source);
        let first = source.trim_start_matches([' ', '\t']);
        let tag = (first.starts_with("{%") && !first.starts_with("{%+")) || first.starts_with("{#");
        if tag { first.to_owned() } else { source.to_owned() }
    };
    match tool_use {
        None => default.to_owned(),
        Some(tool_use) => format!(
            "{{% if tools is defined and tools is not none +%}}{}{{%+ else +%}}{}{{%+ endif %}}",
            whole(tool_use),
            whole(default)
        ),
    }
}

/// Adds the begin, end and padding tokens of the tokenizer and generation_config.json to `config`.
pub(in crate::model) fn join_tokens(
    config: &mut ModelConfig,
    generation: Option<&Value>,
    tokenizer: Option<&mut Tokenizer>,
) {
    let generated = |key: &str| generation?.get(key)?.as_u64().and_then(|id| u32::try_from(id).ok());
    config.bos_id = config.bos_id.or(generated("bos_token_id"));
    config.pad_id = config.pad_id.or(generated("pad_token_id"));
    let Some(tokenizer) = tokenizer else { return };
    let vocab = config.vocab_size;
    let named = |name: &str| {
        tokenizer.named_token(name).and_then(|text| tokenizer.token_to_id(text)).filter(|id| (*id as usize) < vocab)
    };
    config.bos_id = config.bos_id.or(named("bos_token"));
    config.pad_id = config.pad_id.or(named("pad_token"));
    let end = named("eos_token");
    config.eos_ids.extend(end.filter(|id| !config.eos_ids.contains(id)));
    tokenizer.set_eos_ids(&config.eos_ids);
}

/// Reads the settings of embeddings from modules.json and the files that it names.
///
/// # Errors
/// `Unsupported` for modules that are not implemented, because without them every vector would be wrong.
pub(in crate::model) fn sentence(
    dir: &Path,
    config: &ModelConfig,
    tokenizer_config: Option<&Value>,
) -> Result<Sentence> {
    let mut found = Sentence::default();
    if !config.is_encoder() {
        return Ok(found);
    }
    let own = read_json(&dir.join("sentence_bert_config.json"), MAX_CONFIG)?;
    let own = own.as_ref();
    let length = own.and_then(|c| c.get("max_seq_length")?.as_u64());
    // Transformers writes 10^30 for an unknown length.
    let length = length.or_else(|| tokenizer_config?.get("model_max_length")?.as_u64());
    found.max_tokens =
        length.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).map(|n| n.min(config.max_positions));
    found.lowercase = own.and_then(|c| c.get("do_lower_case")?.as_bool()).unwrap_or(false);
    let path = dir.join("modules.json");
    let Some(modules) = read_json(&path, MAX_CONFIG)? else {
        let alone = Path::new("1_Pooling");
        if dir.join(alone).join("config.json").is_file() {
            found.pooling = pooling(&dir.join(alone), config)?;
        }
        return Ok(found);
    };
    let Some(modules) = modules.as_array().filter(|list| list.len() <= MAX_MODULES) else {
        return Err(LoadError::malformed(&path, format!("must be a list of at most {MAX_MODULES} modules")));
    };
    for (i, module) in modules.iter().enumerate() {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, place) = (text("type").rsplit('.').next().unwrap_or_default(), text("path"));
        if !place.is_empty() && Path::new(place).file_name().is_none_or(|f| f != place) {
            return Err(LoadError::malformed(&path, format!("module {i}: {place:?} is not a plain folder name")));
        }
        match kind {
            "Transformer" if place.is_empty() => {}
            "Transformer" => {
                let message = format!("the encoder itself lies in {place}: move its files beside modules.json");
                return Err(LoadError::unsupported(&path, message));
            }
            "Pooling" if found.pooling.is_empty() => found.pooling = pooling(&dir.join(place), config)?,
            // Vectors have length 1 unless a request asks otherwise.
            "Normalize" => {}
            _ => {
                let message = format!(
                    "module {i} ({place}) is of type {:?}, which is not computed here: without it the embeddings \
                     would be wrong (known: Transformer, one Pooling, Normalize)",
                    text("type")
                );
                return Err(LoadError::unsupported(&path, message));
            }
        }
    }
    Ok(found)
}

fn pooling(dir: &Path, config: &ModelConfig) -> Result<Vec<Pooling>> {
    let path = dir.join("config.json");
    let Some(value) = read_json(&path, MAX_CONFIG)? else {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "modules.json names this pooling");
        return Err(LoadError::io(&path, missing));
    };
    let width = ["word_embedding_dimension", "embedding_dimension"].iter().find_map(|key| value.get(key)?.as_u64());
    if let Some(width) = width.filter(|width| *width != config.hidden_size as u64) {
        let message = format!("`word_embedding_dimension` is {width}, the encoder's is {}", config.hidden_size);
        return Err(LoadError::malformed(&path, message));
    }
    // Newer files name the mode, older ones have a flag for each.
    let mut names: Vec<String> = Vec::new();
    match value.get("pooling_mode") {
        Some(Value::String(name)) => names.push(name.clone()),
        Some(Value::Array(list)) => names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
        _ => {
            // sentence-transformers concatenates them in this order.
            const FLAGS: [&str; 6] =
                ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"];
            let flags = value.as_object().into_iter().flatten().filter(|(_, on)| **on == Value::Bool(true));
            names.extend(flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_").map(str::to_owned)));
            names.sort_by_key(|name| FLAGS.iter().position(|flag| flag == name).unwrap_or(FLAGS.len()));
        }
    }
    let one = |name: &String| match name.as_str() {
        "cls" | "cls_token" => Ok(Pooling::Cls),
        "mean" | "mean_tokens" => Ok(Pooling::Mean),
        "max" | "max_tokens" => Ok(Pooling::Max),
        "mean_sqrt_len" | "mean_sqrt_len_tokens" => Ok(Pooling::MeanSqrtLen),
        "weightedmean" | "weightedmean_tokens" => Ok(Pooling::WeightedMean),
        "lasttoken" => Ok(Pooling::LastToken),
        other => Err(LoadError::unsupported(&path, format!("pooling {other:?} is not known"))),
    };
    names.iter().map(one).collect()
}
