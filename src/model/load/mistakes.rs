//! Common mistakes with model files, recognised from the files, so that errors name the cause instead of a symptom.

use std::path::{Path, PathBuf};

/// Describes a file whose first bytes show that it is not of the type that its name says.
pub(crate) fn of_bytes(start: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(&start[..start.len().min(256)]).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if start.is_empty() {
        return Some("it is empty (0 bytes): fetch it again");
    }
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        return Some("it is a Git LFS pointer, not the file itself: run `git lfs pull` in the repository it came from");
    }
    if text.starts_with("<!doctype html") || text.starts_with("<html") || text.starts_with("<?xml") {
        return Some("it is a web page (an error page that was saved under this name?): fetch it again");
    }
    None
}

/// Describes a file that was named as a model and is not a GGUF file.
pub(crate) fn of_model_file(path: &Path, start: &[u8]) -> Option<String> {
    if let Some(mistake) = of_bytes(start) {
        return Some(mistake.to_owned());
    }
    let directory = "name the directory that holds it together with config.json";
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("safetensors") => Some(format!("a safetensors file is not a complete model: {directory}")),
        Some("json") => Some(format!("a JSON file is not a complete model: {directory}")),
        _ if start.starts_with(b"PK\x03\x04") || start.starts_with(&[0x80]) => Some(PICKLED.to_owned()),
        Some("onnx") => Some("ONNX models are not read: bring the safetensors files or a GGUF file".to_owned()),
        _ => None,
    }
}

const PICKLED: &str = "PyTorch pickle files are not read, because reading one can run code: convert it with \
     transformers, `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)`";

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().take(4096).filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Why a directory without config.json is not a model.
pub(crate) fn without_config(dir: &Path) -> String {
    let names = names(dir);
    let has = |name: &str| names.iter().any(|n| n == name);
    let ending = |ends: &str| names.iter().find(|n| n.to_ascii_lowercase().ends_with(ends));
    if has("adapter_config.json") {
        return "this is a PEFT adapter, not a whole model: merge it into its base with peft, \
                `AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)`, save the \
                tokenizer there too, and name OUT"
            .to_owned();
    }
    if let Some(file) = ending(".gguf") {
        return format!("a model directory needs config.json; this one holds GGUF files: name the file itself, {file}");
    }
    let nested: Vec<PathBuf> = names.iter().map(|n| dir.join(n)).filter(|d| d.join("config.json").is_file()).collect();
    if let [inner] = nested.as_slice() {
        return format!("it has no config.json, but holds a model directory: name {}", inner.display());
    }
    if !nested.is_empty() {
        return format!("it has no config.json, but holds {} model directories: name one of them", nested.len());
    }
    if has("snapshots") && has("refs") {
        return "this is a folder of Hugging Face's cache: name the directory under snapshots".to_owned();
    }
    if has("params.json") && names.iter().any(|n| n.starts_with("consolidated.")) {
        return "these are an original checkpoint's files (params.json): bring the model in Hugging Face's form"
            .to_owned();
    }
    if ending(".onnx").is_some() {
        return "ONNX models are not read: bring the safetensors files or a GGUF file".to_owned();
    }
    "a model directory needs config.json".to_owned()
}

/// Why a directory with config.json has no weights that can be read.
pub(crate) fn without_weights(dir: &Path) -> String {
    let names = names(dir);
    let one = |test: &dyn Fn(&str) -> bool| names.iter().find(|n| test(&n.to_ascii_lowercase()));
    if let Some(file) =
        one(&|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth") || n.ends_with(".ckpt"))
    {
        return format!("there is no model.safetensors, only {file}: {PICKLED}");
    }
    if let Some(file) = one(&|n| n == "adapter_model.safetensors" || n == "adapter_config.json") {
        return format!("there is no model.safetensors, only an adapter ({file}): {}", without_config_of_adapter());
    }
    if let Some(file) = one(&|n| n.ends_with(".gguf")) {
        return format!("there is no model.safetensors; name the GGUF file itself: {file}");
    }
    if let Some(file) = one(&|n| n.starts_with("model-") && n.ends_with(".safetensors")) {
        return format!("there is {file}, but not model.safetensors.index.json, which says what each part holds");
    }
    if let Some(file) =
        one(&|n| [".onnx", ".npz", ".h5", ".msgpack", ".mlmodel", ".tflite"].iter().any(|e| n.ends_with(e)))
    {
        return format!("there is no model.safetensors, only {file}, whose format is not read");
    }
    "no model.safetensors and no index of shards".to_owned()
}

fn without_config_of_adapter() -> &'static str {
    "merge it into its base with peft's `merge_and_unload()` and name the directory of the merged model"
}

/// Why a configuration's weights would be read wrongly: they are quantised in another library's format.
pub(crate) fn quantised(config: &serde_json::Value) -> Option<String> {
    let form = |key: &str| config.get(key).filter(|v| v.is_object());
    if let Some(found) = form("quantization_config").or_else(|| form("compression_config")) {
        let method = found.get("quant_method").and_then(|m| m.as_str()).unwrap_or("an unnamed method");
        return Some(format!(
            "its weights are quantised with {method} (`quantization_config`), which is not read: bring the model as \
             it was before, or a GGUF file of it"
        ));
    }
    form("quantization").map(|_| {
        "its weights are quantised for MLX (`quantization`), which is not read: bring the model as it was before, or \
         a GGUF file of it"
            .to_owned()
    })
}

/// A vocabulary in an unsupported format, where tokenizer.json is missing.
pub(crate) fn other_vocabulary(dir: &Path) -> Option<String> {
    const OTHERS: [&str; 6] =
        ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tokenizer.tiktoken"];
    let found = OTHERS.iter().find(|name| dir.join(name).is_file())?;
    Some(format!(
        "tokenizer.json is missing; there is {found}, which is not read: make tokenizer.json with transformers, \
         `AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)`"
    ))
}
