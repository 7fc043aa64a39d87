//! Fields of config.json, checked.

use serde_json::Value;

use crate::model::config::{Activation, ConfigError, LayerKind};

pub(in crate::model) type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// Larger counts than these are refused as damaged.
pub(in crate::model) const MAX_SIZE: u64 = 1 << 27;
pub(in crate::model) const MAX_LAYERS: u64 = 4096;

pub(in crate::model) fn malformed<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfigError::Malformed(message.into()))
}

pub(in crate::model) fn unsupported<T>(message: impl Into<String>) -> Result<T> {
    Err(ConfigError::Unsupported(message.into()))
}

/// The value of `key`; JSON null counts as absent.
pub(in crate::model) fn get<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|v| !v.is_null())
}

pub(in crate::model) fn size_opt(config: &Value, key: &str) -> Result<Option<usize>> {
    match get(config, key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => malformed(format!("`{key}` must be a whole number from 1 to {MAX_SIZE}, found {value}")),
        },
    }
}

pub(in crate::model) fn size(config: &Value, key: &str) -> Result<usize> {
    size_opt(config, key)?.map_or_else(|| malformed(format!("`{key}` is missing")), Ok)
}

pub(in crate::model) fn number_opt(config: &Value, key: &str) -> Result<Option<f64>> {
    match get(config, key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => malformed(format!("`{key}` must be a positive number, found {value}")),
        },
    }
}

pub(in crate::model) fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    Ok(number_opt(config, key)?.unwrap_or(default))
}

pub(in crate::model) fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match get(config, key) {
        None => Ok(default),
        Some(value) => {
            value.as_bool().map_or_else(|| malformed(format!("`{key}` must be true or false, found {value}")), Ok)
        }
    }
}

/// A token id, or a list of them, or nothing.
pub(in crate::model) fn ids(config: &Value, key: &str) -> Result<Vec<u32>> {
    let one = |v: &Value| {
        v.as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .map_or_else(|| malformed(format!("`{key}` must hold token ids, found {v}")), Ok)
    };
    match get(config, key) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(one).collect(),
        // Some published configs write −1 for "none".
        Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(value) => Ok(vec![one(value)?]),
    }
}

pub(in crate::model) fn activation(config: &Value, key: &str, default: &str) -> Result<Activation> {
    match get(config, key).map_or(Some(default), Value::as_str) {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::GeluErf),
        Some("gelu_python") => Ok(Activation::GeluErf),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => {
            unsupported(format!("`{key}` = {other:?} (known: silu, gelu, gelu_new, gelu_pytorch_tanh, relu)"))
        }
        None => malformed(format!("`{key}` must be a string")),
    }
}

/// A number of layers, at most `MAX_LAYERS`.
pub(super) fn layers(config: &Value, key: &str) -> Result<usize> {
    match size(config, key)? {
        n if n as u64 > MAX_LAYERS => malformed(format!("{n} layers (at most {MAX_LAYERS})")),
        n => Ok(n),
    }
}

/// `sliding_window`: null disables it, a missing key means `default`.
pub(super) fn window(config: &Value, default: Option<usize>) -> Result<Option<usize>> {
    match config.get("sliding_window") {
        None => Ok(default),
        Some(_) => size_opt(config, "sliding_window"),
    }
}

/// Layers that all have the same window.
pub(super) fn uniform_window(n_layers: usize, window: Option<usize>) -> Vec<LayerKind> {
    match window {
        None => Vec::new(),
        window => vec![LayerKind { window, no_rope: false }; n_layers],
    }
}

/// Whether each layer is windowed: by `layer_types` where the file has it, else by `rule`.
pub(super) fn layer_types(config: &Value, n_layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(list) = get(config, "layer_types") else { return Ok((0..n_layers).map(rule).collect()) };
    let Some(list) = list.as_array().filter(|list| list.len() == n_layers) else {
        return malformed(format!("`layer_types` must be a list of {n_layers} kinds of layers, found {list}"));
    };
    list.iter()
        .map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => unsupported(format!("a layer of type {kind} (known: full_attention, sliding_attention)")),
        })
        .collect()
}

/// `sliding_window_pattern`: one of so many layers is full.
pub(super) fn pattern(config: &Value, default: usize) -> Result<usize> {
    let newer = size_opt(config, "_sliding_window_pattern")?;
    Ok(size_opt(config, "sliding_window_pattern")?.or(newer).unwrap_or(default))
}

/// The windows of layers by `types`; none where no window is given.
pub(super) fn windows(types: &[bool], window: Option<usize>) -> Result<Vec<LayerKind>> {
    if !types.contains(&true) {
        return Ok(Vec::new());
    }
    if window.is_none() {
        return malformed("`layer_types` has windowed layers, but `sliding_window` is missing");
    }
    let one = |windowed: &bool| LayerKind { window: window.filter(|_| *windowed), no_rope: false };
    Ok(types.iter().map(one).collect())
}

/// Families that are not supported: (parts of the model type, the operation that is missing).
const NEEDED: [(&[&str], &str); 21] = [
    (
        &["moe", "mixtral", "deepseek", "gpt_oss", "dbrx", "jamba", "llama4", "arctic", "ernie4_5_", "kimi", "minimax"],
        "it is a mixture of experts, whose routing is not computed here",
    ),
    (
        &[
            "mamba",
            "rwkv",
            "falcon_h1",
            "recurrent",
            "lfm",
            "zamba",
            "bamba",
            "nemotron_h",
            "qwen3_next",
            "qwen3_5",
            "hybrid",
        ],
        "it has recurrent, convolutional or state-space layers, which are not computed here",
    ),
    (
        &["t5", "bart", "pegasus", "marian", "whisper", "m2m", "seamless", "nllb", "blenderbot", "prophetnet"],
        "it is an encoder with a decoder, of which cross-attention is not computed here",
    ),
    (
        &["gemma3n", "gemma4"],
        "its layers have inputs of their own and share keys and values, which is not computed here",
    ),
    (
        &[
            "vl",
            "vision",
            "llava",
            "clip",
            "siglip",
            "audio",
            "omni",
            "paligemma",
            "idefics",
            "internvl",
            "multimodal",
            "mllama",
            "pixtral",
        ],
        "it reads images or sound, and its configuration names no text half of a known family",
    ),
    (&["bloom", "mpt"], "it tells positions by a slope of the scores (ALiBi), which is not computed here"),
    (&["falcon"], "it shares one norm between attention and feed-forward part, which is not computed here"),
    (&["opt"], "its learned positions begin at 2, which is not computed here in a decoder"),
    (
        &["gptj", "codegen", "glm", "cohere"],
        "its rotary positions turn neighbouring channels, which is not computed here",
    ),
    (&["gpt_neo"], "its attention does not scale its scores and has local layers between learned positions"),
    (&["olmo3"], "it scales rotary positions in its full layers only, in OLMo 2's layout"),
    (&["olmo"], "its norms have no weights, which is not computed here"),
    (&["starcoder2"], "it has rotary positions between LayerNorms with biases and a feed-forward part without gate"),
    (&["stablelm"], "it has rotary positions on a part of each head between LayerNorms with biases and a gate"),
    (&["nemotron"], "it has squared ReLU and LayerNorms that scale by 1 + weight, which are not computed here"),
    (&["exaone"], "it has windowed layers with rotary positions and full ones without, in a layout of its own"),
    (&["phi"], "it is Phi 1 or 2: one LayerNorm before attention and a feed-forward part that run side by side"),
    (&["deberta"], "its attention scores content and relative positions apart, which is not computed here"),
    (&["albert"], "its layers share one set of weights, and its embeddings are narrower than they are"),
    (
        &["electra", "xlnet", "longformer", "bigbird", "big_bird", "funnel", "reformer"],
        "it is an encoder of a kind that is not computed here",
    ),
    (
        &["internlm", "baichuan", "chatglm", "minicpm", "orion", "xverse"],
        "it is defined by code of its own, which is never run here",
    ),
];

/// The operation that an unknown model type needs.
pub(super) fn why_not(model_type: &str) -> &'static str {
    let found = NEEDED.iter().find(|(parts, _)| parts.iter().any(|part| model_type.contains(part)));
    found.map_or("its parts are not known here", |(_, reason)| reason)
}

/// Transformers' defaults of fields that are missing in config.json.
pub(super) struct Defaults {
    pub theta: f64,
    pub tie_embeddings: bool,
    pub activation: (&'static str, &'static str),
    pub eps: f64,
    /// Positions where the file does not give them.
    pub positions: usize,
    /// Whether rotary positions may rotate only a part of each head.
    pub partial: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            theta: 10_000.0,
            tie_embeddings: false,
            activation: ("hidden_act", "silu"),
            eps: 1e-6,
            positions: 2048,
            partial: false,
        }
    }
}
