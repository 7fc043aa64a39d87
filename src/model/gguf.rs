//! GGUF files of the Llama family: raw quantised tensors by Hugging Face name, dequantising, configuration.
//!
//! llama.cpp stores the rows of q and k for interleaved rotary pairs. Here they are put back into Hugging
//! Face's half-split order on the way out, quantised or not: a row is a whole number of blocks, so the
//! order of rows changes without touching a value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Value as Json, json};

use super::gguf_header::{Header, TensorInfo, Value};
use super::gguf_parts::{self, Parts};
use super::load::{Described, LoadError, Source};
use super::{Arch, ModelConfig, Weights};
use crate::ops::blocks::{self, BlockType};
use crate::ops::linear::WeightFormat;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::gguf::Vocabulary;

type Result<T, E = LoadError> = std::result::Result<T, E>;

/// An open GGUF file: what it describes, and its tensors.
pub struct RawGguf {
    described: Described,
    tensors: GgufTensors,
}

/// The tensors of an open GGUF file, read on demand from the memory map.
pub struct GgufTensors {
    path: PathBuf,
    /// One of each file.
    maps: Vec<memmap2::Mmap>,
    infos: BTreeMap<String, TensorInfo>,
    config: ModelConfig,
}

/// Opens a GGUF file and checks that every tensor lies inside it.
///
/// # Errors
/// `Malformed` on damage, `Unsupported` on another architecture, tokenizer or quantisation.
pub fn open_raw(path: &Path) -> Result<RawGguf> {
    let Parts { paths, maps, header } = gguf_parts::open(path)?;
    let hf_config = hf_config(&header).map_err(|m| LoadError::unsupported(path, m))?;
    let mut config = ModelConfig::from_hf(&hf_config, None).map_err(|e| LoadError::config(path, e))?;
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        let id = header.uint(key).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < config.vocab_size);
        config.eos_ids.extend(id.filter(|id| !config.eos_ids.contains(id)));
    }
    let mut tensors = BTreeMap::new();
    for (found, info) in &header.tensors {
        if found == "rope_freqs.weight" {
            return Err(LoadError::unsupported(path, "scaled rotary frequencies are not supported"));
        }
        let Some(name) = hf_name(found) else {
            return Err(LoadError::unsupported(path, format!("tensor {found} is not known")));
        };
        if !(config.tie_embeddings && name == "lm_head.weight") {
            tensors.insert(name, info.clone());
        }
    }
    let tokenizer = match vocabulary(&header) {
        None => None,
        Some(vocabulary) => {
            Some(Tokenizer::from_gguf(vocabulary, &config.eos_ids).map_err(|e| LoadError::tokenizer(path, e))?)
        }
    };
    let described = Described {
        config,
        tokenizer,
        chat_template: header.str("tokenizer.chat_template").map(str::to_owned),
        hf_config,
        instructd: None,
        sentence: super::Sentence::default(),
        source: Source { path: path.to_owned(), weight_files: paths },
    };
    let config = described.config.clone();
    Ok(RawGguf { described, tensors: GgufTensors { path: path.to_owned(), maps, infos: tensors, config } })
}

impl RawGguf {
    pub fn described(&self) -> &Described {
        &self.described
    }

    pub fn tensors(&self) -> &GgufTensors {
        &self.tensors
    }

    pub fn into_parts(self) -> (Described, GgufTensors) {
        (self.described, self.tensors)
    }
}

impl GgufTensors {
    /// Hugging Face name → (quantisation, shape [out, in]).
    pub fn iter(&self) -> impl Iterator<Item = (&str, BlockType, &[usize])> {
        self.infos.iter().map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()))
    }

    /// The blocks of a tensor as stored, except that rows of q and k are in Hugging Face order.
    /// Row-major; each row takes `shape[1] / block_size · type_size` bytes.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let data = self
            .maps
            .get(info.part)
            .and_then(|map| map.get(info.start..info.start + info.bytes))
            .ok_or_else(|| LoadError::malformed(&self.path, format!("tensor {name} lies outside the file")))?;
        let Some(heads) = self.rotary_heads(name) else { return Ok(data.to_vec()) };
        let rows = info.shape.first().copied().unwrap_or(0);
        if rows == 0 || !rows.is_multiple_of(2 * heads) || !data.len().is_multiple_of(rows) {
            return Err(LoadError::malformed(&self.path, format!("tensor {name} does not divide into {heads} heads")));
        }
        let (row_bytes, half) = (data.len() / rows, rows / heads / 2);
        let mut out = Vec::with_capacity(data.len());
        for row in 0..rows {
            // Hugging Face row (head, j, i) with j the half and i the pair lies at (head, i, j) in the file.
            let (head, inside) = (row / (2 * half), row % (2 * half));
            let from = head * 2 * half + 2 * (inside % half) + inside / half;
            out.extend_from_slice(&data[from * row_bytes..(from + 1) * row_bytes]);
        }
        Ok(out)
    }

    /// The tensor's type, where it is quantised, and its shape [out, in].
    pub fn block_kind(&self, name: &str) -> Option<(BlockType, usize, usize)> {
        let info = self.infos.get(name).filter(|info| info.dtype.quantised())?;
        let [m, k] = info.shape.as_slice() else { return None };
        Some((info.dtype, *m, *k))
    }

    /// The format that holds a tensor as the file does, where that is no blocks.
    pub fn near_format(&self, name: &str) -> WeightFormat {
        match self.infos.get(name).map(|info| info.dtype) {
            Some(BlockType::F16) => WeightFormat::F16,
            Some(BlockType::BF16) => WeightFormat::Bf16,
            None | Some(BlockType::F32) => WeightFormat::F32,
            Some(_) => WeightFormat::Q8_0,
        }
    }

    /// All tensors as f32.
    pub fn dequantize(&self, device: &Device) -> Result<Weights> {
        let one = |name: &String| -> Result<Tensor> {
            let info = self.info(name)?;
            let mut values = vec![0f32; info.shape.iter().product()];
            blocks::dequantize(&self.bytes(name)?, info.dtype, &mut values);
            Tensor::from_vec(values, info.shape.clone(), device)
                .map_err(|e| LoadError::malformed(&self.path, format!("tensor {name}: {e}")))
        };
        self.infos.keys().map(|name| Ok((name.clone(), one(name)?))).collect()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.infos.get(name).ok_or_else(|| LoadError::malformed(&self.path, format!("there is no tensor {name}")))
    }

    /// Number of heads of a tensor whose rows llama.cpp reordered, else `None`. Qwen2 is stored as it is.
    fn rotary_heads(&self, name: &str) -> Option<usize> {
        let config = &self.config;
        if config.arch != Arch::Llama {
            return None;
        }
        let name = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias"))?;
        match name {
            _ if name.ends_with(".q_proj") => Some(config.n_heads),
            _ if name.ends_with(".k_proj") => Some(config.n_kv_heads),
            _ => None,
        }
    }
}

/// `blk.0.attn_q.weight` → `model.layers.0.self_attn.q_proj.weight`.
fn hf_name(found: &str) -> Option<String> {
    match found {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = found.strip_prefix("blk.")?.split_once('.')?;
    let layer: u16 = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{part}.{kind}"))
}

/// config.json as transformers would write it for this file; the error says what is not supported.
fn hf_config(header: &Header) -> Result<Json, String> {
    let arch = header.str("general.architecture").ok_or("`general.architecture` is missing")?;
    let class = match arch {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        other => return Err(format!("architecture {other:?} is not supported (known: llama, qwen2)")),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let need = |name: &str| header.uint(&key(name)).ok_or(format!("`{}` is missing", key(name)));
    if let Some(kind) = header.str(&key("rope.scaling.type")).filter(|kind| *kind != "none") {
        return Err(format!("rotary scaling of type {kind:?} is not supported"));
    }
    if header.uint(&key("expert_count")).is_some_and(|n| n > 0) {
        return Err("mixtures of experts are not supported".into());
    }
    let heads = need("attention.head_count")?;
    let hidden = need("embedding_length")?;
    let head_dim = header.uint(&key("attention.key_length")).or(hidden.checked_div(heads)).unwrap_or(0);
    if let Some(rotary) = header.uint(&key("rope.dimension_count")).filter(|rotary| *rotary != head_dim) {
        return Err(format!("rotary over {rotary} of {head_dim} channels is not supported"));
    }
    if header.uint(&key("attention.value_length")).is_some_and(|n| n != head_dim) {
        return Err("value heads of another size than key heads are not supported".into());
    }
    let vocab = match header.tensors.get("token_embd.weight").and_then(|info| info.shape.first()) {
        Some(rows) => *rows as u64,
        None => return Err("token_embd.weight is missing".into()),
    };
    let eps = header.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5);
    let theta = header.float(&key("rope.freq_base")).unwrap_or(10_000.0);
    let token = |name: &str| header.uint(&format!("tokenizer.ggml.{name}_token_id"));
    let mut config = json!({
        "architectures": [class],
        "model_type": arch,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length")?,
        "num_hidden_layers": need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": header.uint(&key("attention.head_count_kv")).unwrap_or(heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": need("context_length")?,
        "rms_norm_eps": shortest(eps),
        "rope_theta": shortest(theta),
        "rope_parameters": {"rope_theta": shortest(theta), "rope_type": "default"},
        "tie_word_embeddings": !header.tensors.contains_key("output.weight"),
        "attention_bias": arch == "llama" && header.tensors.contains_key("blk.0.attn_q.bias"),
        "bos_token_id": token("bos"),
        "eos_token_id": token("eos"),
        "pad_token_id": token("padding"),
        "dtype": "float32",
    });
    if arch == "qwen2" {
        config["use_sliding_window"] = json!(false);
    }
    Ok(config)
}

/// GGUF keeps f32 metadata: 1e-5 comes back as 9.999999747378752e-6. The shortest decimal that gives the
/// same f32 is what the author wrote.
fn shortest(value: f64) -> f64 {
    let narrow = value as f32;
    if f64::from(narrow) == value { narrow.to_string().parse().unwrap_or(value) } else { value }
}

fn vocabulary(header: &Header) -> Option<Vocabulary> {
    let strings = |key: &str| -> Option<Vec<String>> {
        header.array(key)?.iter().map(|v| if let Value::Str(s) = v { Some(s.clone()) } else { None }).collect()
    };
    let id = |name: &str| header.uint(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| u32::try_from(id).ok());
    Some(Vocabulary {
        model: header.str("tokenizer.ggml.model")?.to_owned(),
        pre: header.str("tokenizer.ggml.pre").unwrap_or("default").to_owned(),
        tokens: strings("tokenizer.ggml.tokens")?,
        kinds: header
            .array("tokenizer.ggml.token_type")
            .map(|kinds| kinds.iter().map(|kind| kind.as_uint().unwrap_or(1)).collect())
            .unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges").unwrap_or_default(),
        scores: header
            .array("tokenizer.ggml.scores")
            .map(|scores| scores.iter().map(|score| score.as_float().unwrap_or(0.0)).collect())
            .unwrap_or_default(),
        add_bos: header.bool("tokenizer.ggml.add_bos_token"),
        add_eos: header.bool("tokenizer.ggml.add_eos_token").unwrap_or(false),
        add_space_prefix: header.bool("tokenizer.ggml.add_space_prefix"),
        // Phi-3's control tokens take the spaces behind them; the file has no place to say so.
        strip_behind: header
            .str("general.name")
            .is_some_and(|name| ["phi-3", "phi3"].iter().any(|phi| name.to_lowercase().contains(phi))),
        bos: id("bos"),
        eos: id("eos"),
        unknown: id("unknown"),
        padding: id("padding"),
    })
}
