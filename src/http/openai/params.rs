//! Sampling parameters of completions and chat. Every one is applied or refused by name.

use serde_json::Value;

use crate::config::LimitsConfig;
use crate::engine::{SamplingParams, ServedModel, Warpers};
use crate::http::error::{ApiError, ApiResult};

/// Most alternatives per token that can be requested.
pub const MAX_LOGPROBS: u64 = 20;

/// Most tokens that may end a text.
const MAX_STOP_IDS: usize = 256;

/// Declares a request body with the shared sampling fields and its own.
macro_rules! generation_request {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Name or id of a model version; absent = the active policy.
            pub model: Option<String>,
            /// 0 to 2; 0 is greedy. Default 1.
            pub temperature: Option<f64>,
            /// Over 0, to 1. Default 1.
            pub top_p: Option<f64>,
            /// Default 0 (off); -1 is off too.
            pub top_k: Option<i64>,
            /// 0 to 1. Default 0.
            pub min_p: Option<f64>,
            /// Over 0, to 10. Default 1.
            pub repetition_penalty: Option<f64>,
            /// -2 to 2. Default 0.
            pub presence_penalty: Option<f64>,
            /// -2 to 2. Default 0.
            pub frequency_penalty: Option<f64>,
            /// Token id (as text) → -100 to 100.
            #[schemars(with = "Option<std::collections::BTreeMap<String, f64>>")]
            pub logit_bias: Option<serde_json::Value>,
            /// A string or a list of strings; the text ends before the first of them.
            #[schemars(with = "Option<serde_json::Value>")]
            pub stop: Option<serde_json::Value>,
            /// Token ids that end the text; they are not part of it.
            pub stop_token_ids: Option<Vec<u32>>,
            /// Keep the stop string in the text. Default false.
            pub include_stop_str_in_output: Option<bool>,
            /// Samples per prompt. Default 1.
            pub n: Option<u64>,
            /// Drawn at random, and returned, when absent.
            #[schemars(with = "Option<i64>")]
            pub seed: Option<serde_json::Number>,
            /// Server-sent events instead of one answer.
            pub stream: Option<bool>,
            /// With `stream`.
            pub stream_options: Option<$crate::http::openai::params::StreamOptions>,
            /// Do not stop at the end token.
            pub ignore_eos: Option<bool>,
            /// No end before this many tokens. Default 0.
            pub min_tokens: Option<u64>,
            /// Name or id of a soft prompt, put before the prompt.
            pub prompt_adapter: Option<String>,
            /// Accepted, without effect.
            pub user: Option<serde_json::Value>,
            /// The newer name of `user`. Accepted, without effect.
            pub safety_identifier: Option<serde_json::Value>,
            /// Accepted, without effect: prefixes are shared wherever they are equal.
            pub prompt_cache_key: Option<serde_json::Value>,
            /// Not supported, except `"in_memory"`.
            pub prompt_cache_retention: Option<serde_json::Value>,
            /// Not supported, except `false`.
            pub store: Option<serde_json::Value>,
            /// Accepted, without effect: it belongs to `store`.
            pub metadata: Option<std::collections::BTreeMap<String, serde_json::Value>>,
            /// Not supported, except `"auto"` and `"default"`.
            pub service_tier: Option<serde_json::Value>,
            /// `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`: the
            /// text is JSON of that schema, always enforced. `{"type": "text"}` has no effect.
            pub response_format: Option<serde_json::Value>,
            /// The text is JSON of this schema. (As vLLM.)
            pub guided_json: Option<serde_json::Value>,
            /// The text matches this regular expression as a whole. (As vLLM.)
            pub guided_regex: Option<String>,
            /// The text is one of these. (As vLLM.)
            pub guided_choice: Option<Vec<String>>,
            /// As `grammar`. (As vLLM.)
            pub guided_grammar: Option<String>,
            /// One of `json`, `regex`, `choice`, `grammar`, `json_object`. (As newer vLLM.)
            pub structured_outputs: Option<serde_json::Value>,
            /// The text follows this grammar: GBNF (`root ::= …`) or Lark (`start: …`). (As llama.cpp.)
            pub grammar: Option<String>,
            /// As `guided_json`. (As llama.cpp.)
            pub json_schema: Option<serde_json::Value>,
            $($(#[$doc])* pub $field: $ty,)*
        }

        impl $name {
            /// The required form of the text.
            ///
            /// # Errors
            /// As [`FormFields::check`](crate::http::openai::constrained::FormFields::check).
            pub fn constraint(
                &self,
            ) -> $crate::http::error::ApiResult<Option<std::sync::Arc<$crate::engine::Constraint>>> {
                $crate::http::openai::constrained::FormFields {
                    response_format: self.response_format.as_ref(),
                    guided_json: self.guided_json.as_ref(),
                    guided_regex: self.guided_regex.as_ref(),
                    guided_choice: self.guided_choice.as_ref(),
                    guided_grammar: self.guided_grammar.as_ref(),
                    structured_outputs: self.structured_outputs.as_ref(),
                    grammar: self.grammar.as_ref(),
                    json_schema: self.json_schema.as_ref(),
                }
                .check()
            }

            /// Validates the shared fields, except `max_tokens`.
            pub fn sampling(
                &self,
                limits: &$crate::config::LimitsConfig,
            ) -> $crate::http::error::ApiResult<$crate::engine::SamplingParams> {
                $crate::http::openai::params::refuse(&[
                    ("prompt_cache_retention", &self.prompt_cache_retention, &["\"in_memory\"", "\"in-memory\""]),
                    ("store", &self.store, &["false"]),
                    ("service_tier", &self.service_tier, &["\"auto\"", "\"default\""]),
                ])?;
                if self.include_usage() && !self.stream.unwrap_or(false) {
                    return Err($crate::http::error::ApiError::bad("stream_options", "requires stream = true"));
                }
                if self.stream_options.as_ref().is_some_and(|o| o.include_obfuscation.unwrap_or(false)) {
                    let error = $crate::http::error::ApiError::bad(
                        "stream_options.include_obfuscation",
                        "include_obfuscation is not supported: chunks are not padded",
                    );
                    return Err(error.code("unsupported_parameter"));
                }
                $crate::http::openai::params::Given {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    stop: self.stop.as_ref(),
                    stop_token_ids: self.stop_token_ids.as_deref(),
                    include_stop: self.include_stop_str_in_output,
                    ignore_eos: self.ignore_eos,
                    min_tokens: self.min_tokens,
                }
                .check(limits)
                .and_then(|checked| {
                    Ok($crate::engine::SamplingParams { constraint: self.constraint()?, ..checked })
                })
            }

            pub fn include_usage(&self) -> bool {
                self.stream_options.as_ref().is_some_and(|o| o.include_usage.unwrap_or(false))
            }
        }
    };
}
pub(crate) use generation_request;

#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last chunk with the token counts.
    pub include_usage: Option<bool>,
    /// Not supported, except `false`.
    pub include_obfuscation: Option<bool>,
}

/// The shared fields as given.
pub struct Given<'a> {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Option<&'a Value>,
    pub stop: Option<&'a Value>,
    pub stop_token_ids: Option<&'a [u32]>,
    pub include_stop: Option<bool>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<u64>,
}

impl Given<'_> {
    pub fn check(self, limits: &LimitsConfig) -> ApiResult<SamplingParams> {
        let top_p = ranged("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        if top_p == 0.0 {
            return Err(ApiError::bad("top_p", "must be over 0"));
        }
        let repetition_penalty = ranged("repetition_penalty", self.repetition_penalty, 1.0, 0.0, 10.0)?;
        if repetition_penalty == 0.0 {
            return Err(ApiError::bad("repetition_penalty", "must be over 0"));
        }
        let top_k = match self.top_k.unwrap_or(0) {
            -1 | 0 => 0,
            k @ 1..=1_000_000 => k as usize,
            _ => return Err(ApiError::bad("top_k", "must be -1, 0 (both off) or a count of tokens")),
        };
        let warpers = Warpers {
            temperature: ranged("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_p,
            top_k,
            min_p: ranged("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty,
            presence_penalty: ranged("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: ranged("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: logit_bias(self.logit_bias)?,
        };
        Ok(SamplingParams {
            warpers,
            stop: stop(self.stop, limits)?,
            stop_token_ids: stop_ids(self.stop_token_ids)?,
            include_stop_str_in_output: self.include_stop.unwrap_or(false),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: self.min_tokens.map_or(Ok(0), |v| count("min_tokens", v))?,
            ..SamplingParams::default()
        })
    }
}

fn ranged(field: &str, value: Option<f64>, default: f64, low: f64, high: f64) -> ApiResult<f32> {
    let value = value.unwrap_or(default);
    if !(low..=high).contains(&value) {
        return Err(ApiError::bad(field, format!("must be {low} to {high}")));
    }
    Ok(value as f32)
}

/// Converts a count; refuses numbers above 2^32.
pub fn count(field: &str, value: u64) -> ApiResult<usize> {
    u32::try_from(value).map(|v| v as usize).map_err(|_| ApiError::bad(field, "is too large"))
}

fn logit_bias(value: Option<&Value>) -> ApiResult<Vec<(u32, f32)>> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let Some(map) = value.as_object() else {
        return Err(ApiError::bad("logit_bias", "must map token ids to numbers"));
    };
    if map.len() > 1024 {
        return Err(ApiError::bad("logit_bias", "at most 1024 tokens"));
    }
    let one = |(id, bias): (&String, &Value)| {
        let field = format!("logit_bias.{id}");
        let id = id.parse().map_err(|_| ApiError::bad(&field, "is not a token id"))?;
        let bias = bias.as_f64().filter(|b| b.abs() <= 100.0);
        Ok((id, bias.ok_or_else(|| ApiError::bad(field, "must be -100 to 100"))? as f32))
    };
    map.iter().map(one).collect()
}

fn stop(value: Option<&Value>, limits: &LimitsConfig) -> ApiResult<Vec<String>> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(one @ Value::String(_)) => std::slice::from_ref(one),
        Some(Value::Array(list)) => list.as_slice(),
        Some(_) => return Err(ApiError::bad("stop", "must be a string or a list of strings")),
    };
    if list.len() > limits.stop_strings {
        return Err(ApiError::bad("stop", format!("at most {} strings", limits.stop_strings)));
    }
    let one = |(i, value): (usize, &Value)| {
        let text = value.as_str().filter(|s| (1..=limits.stop_bytes).contains(&s.len()));
        let message = || format!("must be a string of 1 to {} bytes", limits.stop_bytes);
        text.map(str::to_owned).ok_or_else(|| ApiError::bad(format!("stop[{i}]"), message()))
    };
    list.iter().enumerate().map(one).collect()
}

fn stop_ids(value: Option<&[u32]>) -> ApiResult<Vec<u32>> {
    let ids = value.unwrap_or_default();
    if ids.len() > MAX_STOP_IDS {
        return Err(ApiError::bad("stop_token_ids", format!("at most {MAX_STOP_IDS} token ids")));
    }
    Ok(ids.to_vec())
}

/// A seed from the request: any integer of 64 bits; negative ones are reinterpreted as unsigned.
pub fn seed(value: &serde_json::Number) -> ApiResult<u64> {
    let bits = value.as_u64().or_else(|| value.as_i64().map(|v| v as u64));
    bits.ok_or_else(|| ApiError::bad("seed", "must be an integer of 64 bits"))
}

/// Refuses fields of features that this server lacks. Null and the listed values are accepted.
pub fn refuse(fields: &[(&str, &Option<Value>, &[&str])]) -> ApiResult<()> {
    refuse_in("", fields)
}

/// Refuses unsupported fields of an object inside the request.
pub fn refuse_in(inside: &str, fields: &[(&str, &Option<Value>, &[&str])]) -> ApiResult<()> {
    for (name, value, harmless) in fields {
        let given = value.as_ref().filter(|v| !v.is_null());
        if let Some(value) = given
            && !harmless.contains(&value.to_string().as_str())
        {
            let field = if inside.is_empty() { (*name).to_owned() } else { format!("{inside}.{name}") };
            let except = match harmless {
                [] => String::new(),
                some => format!(", except {}", some.join(" and ")),
            };
            return Err(ApiError::bad(field, format!("{name} is not supported{except}")).code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// Refuses fields that need token ids or log-probs, for models of an upstream server.
pub fn needs_ids(field: &str, model: &ServedModel) -> ApiResult<()> {
    if model.takes_text {
        let message =
            format!("{field} is not supported for this model: the token ids of its upstream server are not used");
        return Err(ApiError::bad(field, message).code("unsupported_parameter"));
    }
    Ok(())
}

/// Checks that `n` samples of each of `prompts` prompts are within the server's limit.
pub fn check_samples(field: &str, prompts: usize, n: u64, limits: &LimitsConfig) -> ApiResult<usize> {
    let n = count(field, n)?;
    if n == 0 {
        return Err(ApiError::bad(field, "must be at least 1"));
    }
    if n.saturating_mul(prompts) > limits.samples {
        return Err(ApiError::bad(field, format!("at most {} samples in one request", limits.samples)));
    }
    Ok(n)
}
