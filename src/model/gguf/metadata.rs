//! GGUF metadata of a model, converted to the config.json that transformers would have for it.

use serde_json::{Value as Json, json};

use crate::model::families::{self, Family};
use crate::model::gguf::header::Header;

type Result<T, E = String> = std::result::Result<T, E>;

/// The known parameters of Llama 3's rotary scaling: (factor, low, high, length of pretraining).
const LLAMA3: [(f64, f64, f64, f64); 3] = [(8.0, 1.0, 4.0, 8192.0), (32.0, 1.0, 4.0, 8192.0), (16.0, 1.0, 4.0, 8192.0)];

/// Reads metadata; `floats` gives the numbers of a small tensor.
///
/// # Errors
/// When a value is missing or not supported; the message names it.
pub(in crate::model) fn hf_config(header: &Header, floats: &dyn Fn(&str) -> Option<Vec<f32>>) -> Result<Json> {
    let name = header.str("general.architecture").ok_or("`general.architecture` is missing")?;
    let (family, gguf) = families::of_gguf(name)?;
    let metadata = Metadata { header, name, family, floats };
    Ok(with(metadata.shared()?, (gguf.read)(&metadata)?))
}

/// The metadata of one file.
pub(in crate::model) struct Metadata<'a> {
    header: &'a Header,
    name: &'a str,
    family: &'static Family,
    floats: &'a dyn Fn(&str) -> Option<Vec<f32>>,
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// A count. A list by layer must have equal values, of which one is returned.
    pub fn uint(&self, name: &str) -> Option<u64> {
        let key = self.key(name);
        self.header.uint(&key).or_else(|| {
            let list = self.header.array(&key)?;
            let first = list.first()?.as_uint()?;
            list.iter().all(|value| value.as_uint() == Some(first)).then_some(first)
        })
    }

    pub fn need(&self, name: &str) -> Result<u64> {
        self.uint(name).ok_or_else(|| match self.header.array(&self.key(name)) {
            Some(_) => format!("`{}` differs from layer to layer, which is not supported", self.key(name)),
            None => format!("`{}` is missing", self.key(name)),
        })
    }

    /// A number, in the shortest decimal that gives the same f32.
    pub fn float(&self, name: &str) -> Option<f64> {
        self.header.float(&self.key(name)).map(shortest)
    }

    /// The fields of config.json that all families have.
    fn shared(&self) -> Result<Json> {
        if self.uint("expert_count").is_some_and(|n| n > 0) {
            return Err("mixtures of experts are not supported".into());
        }
        let head_dim = self.head_dim()?;
        if self.uint("attention.value_length").is_some_and(|n| n != head_dim) {
            return Err("value heads of another size than key heads are not supported".into());
        }
        let vocab = match self.header.tensors.get("token_embd.weight").and_then(|info| info.shape.first()) {
            Some(rows) => *rows as u64,
            None => return Err("token_embd.weight is missing".into()),
        };
        let token = |name: &str| self.header.uint(&format!("tokenizer.ggml.{name}_token_id"));
        Ok(json!({
            "architectures": [self.family.causal_class()],
            "model_type": self.family.model_type,
            "vocab_size": vocab,
            "tie_word_embeddings": !self.has("output.weight"),
            "bos_token_id": token("bos"),
            "eos_token_id": token("eos"),
            "pad_token_id": token("padding"),
            "dtype": "float32",
        }))
    }

    /// The fields of a family with rotary positions, overridden by `own`. `partial`: whether positions may rotate only
    /// a part of each head.
    pub fn rotary(&self, partial: bool, own: Json) -> Result<Json> {
        let (head_dim, turned, theta, context) = (self.head_dim()?, self.turned()?, self.theta(), self.context()?);
        let mut config = json!({
            "hidden_size": self.hidden()?,
            "intermediate_size": self.need("feed_forward_length")?,
            "num_hidden_layers": self.layers()?,
            "num_attention_heads": self.heads()?,
            "num_key_value_heads": self.uint("attention.head_count_kv").unwrap_or(self.heads()?),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": context,
            "rms_norm_eps": self.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
            "rope_theta": theta,
            "attention_bias": self.has("blk.0.attn_q.bias"),
        });
        if turned != head_dim && !partial {
            return Err(format!("rotary over {turned} of {head_dim} channels is not supported"));
        }
        if let Some(scaling) = self.rope_scaling(theta, turned, context)? {
            config["rope_scaling"] = scaling;
        }
        Ok(with(config, own))
    }

    pub fn heads(&self) -> Result<u64> {
        self.need("attention.head_count")
    }

    pub fn hidden(&self) -> Result<u64> {
        self.need("embedding_length")
    }

    pub fn layers(&self) -> Result<u64> {
        self.need("block_count")
    }

    pub fn context(&self) -> Result<u64> {
        self.need("context_length")
    }

    pub fn head_dim(&self) -> Result<u64> {
        let (heads, hidden) = (self.heads()?, self.hidden()?);
        Ok(self.uint("attention.key_length").or(hidden.checked_div(heads)).unwrap_or(0))
    }

    /// Number of channels of each head that rotary positions rotate.
    pub fn turned(&self) -> Result<u64> {
        Ok(self.uint("rope.dimension_count").unwrap_or(self.head_dim()?))
    }

    /// The rotary base.
    pub fn theta(&self) -> f64 {
        self.float("rope.freq_base").unwrap_or(10_000.0)
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.header.bool(&self.key(name))
    }

    /// Whether the file has a tensor of this name.
    pub fn has(&self, tensor: &str) -> bool {
        self.header.tensors.contains_key(tensor)
    }

    /// `rope_scaling` of config.json.
    fn rope_scaling(&self, theta: f64, turned: u64, context: u64) -> Result<Option<Json>> {
        if let Some(divisors) = (self.floats)("rope_freqs.weight") {
            return Ok(Some(by_divisors(&divisors, theta, turned, context)));
        }
        let original = self.uint("rope.scaling.original_context_length");
        if let (Some(long), Some(short)) =
            ((self.floats)("rope_factors_long.weight"), (self.floats)("rope_factors_short.weight"))
        {
            let mut scaling =
                json!({"rope_type": "longrope", "long_factor": wide(&long), "short_factor": wide(&short)});
            if let Some(factor) = self.float("rope.scaling.attn_factor") {
                scaling["attention_factor"] = json!(factor);
            }
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = json!(original);
                scaling["factor"] = json!(context as f64 / original as f64);
            }
            return Ok(Some(scaling));
        }
        let factor = self.float("rope.scaling.factor").or(self.float("rope.scale_linear"));
        let kind = self.header.str(&self.key("rope.scaling.type"));
        let kind =
            kind.unwrap_or(if self.float("rope.scale_linear").is_some_and(|f| f != 1.0) { "linear" } else { "none" });
        let need = || factor.ok_or_else(|| format!("`{}` is missing", self.key("rope.scaling.factor")));
        Ok(match kind {
            "none" => None,
            "linear" if factor == Some(1.0) => None,
            "linear" => Some(json!({"rope_type": "linear", "factor": need()?})),
            "yarn" => {
                let mut scaling = json!({"rope_type": "yarn", "factor": need()?});
                for (key, found) in [
                    ("original_max_position_embeddings", original.map(|n| json!(n))),
                    ("beta_fast", self.float("rope.scaling.yarn_beta_fast").map(|f| json!(f))),
                    ("beta_slow", self.float("rope.scaling.yarn_beta_slow").map(|f| json!(f))),
                    // llama.cpp multiplies its own factor by this one.
                    (
                        "attention_factor",
                        self.float("rope.scaling.attn_factor")
                            .map(|f| json!(f * (0.1 * need().unwrap_or(1.0).ln() + 1.0))),
                    ),
                ] {
                    if let Some(value) = found {
                        scaling[key] = value;
                    }
                }
                Some(scaling)
            }
            other => {
                return Err(format!("rotary scaling of type {other:?} is not supported (known: none, linear, yarn)"));
            }
        })
    }
}

/// Adds all fields of `more` to `config`.
fn with(mut config: Json, more: Json) -> Json {
    if let (Some(map), Json::Object(more)) = (config.as_object_mut(), more) {
        map.extend(more);
    }
    config
}

fn wide(list: &[f32]) -> Vec<f64> {
    list.iter().map(|f| shortest(f64::from(*f))).collect()
}

/// A divisor for every frequency: Llama 3's scaling where the divisors are those of known parameters, else a list.
fn by_divisors(divisors: &[f32], theta: f64, turned: u64, context: u64) -> Json {
    let known = LLAMA3.iter().find(|(factor, low, high, original)| {
        let want = llama3_divisors(theta, turned as usize, *factor, *low, *high, *original);
        want.len() == divisors.len() && want.iter().zip(divisors).all(|(w, d)| (w - d).abs() <= 1e-4 * w)
    });
    match known {
        Some((factor, low, high, original)) => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": *original as u64,
        }),
        None => json!({
            "rope_type": "longrope", "long_factor": wide(divisors), "short_factor": wide(divisors),
            "attention_factor": 1.0, "factor": 1.0, "original_max_position_embeddings": context,
        }),
    }
}

/// The divisors of Llama 3's scaling for the frequencies of `dim` channels.
pub(in crate::model) fn llama3_divisors(
    theta: f64,
    dim: usize,
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| {
            let wave = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / dim as f64);
            let divisor = if wave < original / high {
                1.0
            } else if wave > original / low {
                factor
            } else {
                let smooth = (original / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            divisor as f32
        })
        .collect()
}

/// GGUF keeps f32 metadata: 1e-5 comes back as 9.999999747378752e-6. The shortest decimal that gives the same f32
/// restores the author's number.
pub(in crate::model) fn shortest(value: f64) -> f64 {
    let narrow = value as f32;
    if f64::from(narrow) == value { narrow.to_string().parse().unwrap_or(value) } else { value }
}
