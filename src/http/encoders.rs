//! `POST /v1/embeddings` and `POST /v1/fill-mask`: requests to bidirectional encoders.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::AppState;
use super::attention::Origin;
use super::contract::around_list;
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use crate::engine::{EmbedRequest, EncoderInput, FillCandidate, FillInput, FillRequest, FillResult, Pooling};
use crate::eval::choices::{Decided, decide};
use crate::service::budget::{EMBEDDED_TEXTS, EMBEDDED_TOKENS, LISTED};
use crate::service::encoders;
use crate::service::prompts::check_size;

/// OpenAI's form; unknown fields are refused.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    /// Name or id of an encoder; absent = the configured one.
    pub model: Option<String>,
    /// A text, a list of up to 2048 texts, a list of token ids, or a list of such lists; 300,000 tokens together.
    #[schemars(with = "Value")]
    pub input: Value,
    /// `float` (default) or `base64` (little-endian f32).
    pub encoding_format: Option<String>,
    /// Must be the encoder's own width: its vectors cannot be truncated.
    pub dimensions: Option<u64>,
    /// Pooling of token vectors: `mean`, `cls`, `max`, `mean_sqrt_len`, `weighted_mean` or `last_token`.
    /// Default: the pooling in the encoder's directory (modules.json), else `mean`.
    pub pooling: Option<Pooling>,
    /// Vectors of length 1. Default true.
    pub normalize: Option<bool>,
    /// Cut texts that are too long instead of refusing them. Default false.
    pub truncate: Option<bool>,
    /// Accepted, without effect.
    pub user: Option<Value>,
    /// The newer name of `user`. Accepted, without effect.
    pub safety_identifier: Option<Value>,
}

/// One vector for each text, in the order of the request.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
    pub instructd: Origin,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Embedding {
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// Numbers, or with `encoding_format: base64` their little-endian f32.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

pub async fn embeddings(State(state): State<AppState>, Json(request): Json<EmbeddingsRequest>) -> ApiResult<Response> {
    let limits = &state.services.config.limits;
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::bad("encoding_format", "must be float or base64")),
    };
    let inputs = inputs(request.input, EMBEDDED_TEXTS)?;
    let bytes = |input: &EncoderInput| match input {
        EncoderInput::Text(text) => text.len(),
        EncoderInput::Ids(ids) => size_of_val(ids.as_slice()),
    };
    for (i, input) in inputs.iter().enumerate() {
        check_size(bytes(input), &format!("input[{i}]"), limits.prompt_bytes)?;
    }
    let embed = EmbedRequest {
        inputs,
        pooling: request.pooling,
        normalize: request.normalize.unwrap_or(true),
        truncate: request.truncate.unwrap_or(false),
        max_tokens: EMBEDDED_TOKENS,
    };
    let (model, found) = encoders::embed(&state.services, request.model.as_deref(), embed).await?;
    let width = found.vectors.first().map_or(0, Vec::len);
    if request.dimensions.is_some_and(|d| d != width as u64) {
        return Err(ApiError::bad("dimensions", format!("must be {width}, the width of {}", model.name)));
    }
    // Vectors are formatted one after another.
    let (head, tail) = around_list(&EmbeddingList {
        object: "list",
        data: Vec::new(),
        model: model.name,
        usage: EmbeddingUsage { prompt_tokens: found.tokens, total_tokens: found.tokens },
        instructd: Origin { model_version: model.id },
    });
    let rows = found.vectors.into_iter().enumerate().map(move |(i, vector)| row(i, vector, base64));
    let pieces = std::iter::once(head).chain(rows).chain(std::iter::once(tail));
    let body = Body::from_stream(tokio_stream::iter(pieces.map(Ok::<_, std::convert::Infallible>)));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// One vector of the list, with a leading comma.
fn row(index: usize, vector: Vec<f32>, base64: bool) -> String {
    let embedding = match base64 {
        false => Vector::Numbers(vector),
        true => {
            let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            Vector::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
    };
    // Via a value: numbers are formatted as f64.
    let row = serde_json::to_value(Embedding { object: "embedding", index, embedding }).unwrap_or_default();
    let comma = if index == 0 { "" } else { "," };
    format!("{comma}{row}")
}

fn inputs(value: Value, most: usize) -> ApiResult<Vec<EncoderInput>> {
    const SHAPES: &str = "must be a text, a list of texts, a list of token ids, or a list of lists of token ids";
    let list = match value {
        Value::String(text) => return Ok(vec![EncoderInput::Text(text)]),
        Value::Array(list) if !list.is_empty() => list,
        Value::Array(_) => return Err(ApiError::bad("input", "is empty")),
        _ => return Err(ApiError::bad("input", SHAPES)),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![EncoderInput::Ids(ids(&list, "input")?)]);
    }
    if list.len() > most {
        return Err(ApiError::bad("input", format!("at most {most} texts in one request")));
    }
    let texts = list[0].is_string();
    let one = |(i, value): (usize, Value)| match value {
        Value::String(text) if texts => Ok(EncoderInput::Text(text)),
        Value::Array(inner) if !texts => Ok(EncoderInput::Ids(ids(&inner, &format!("input[{i}]"))?)),
        _ => Err(ApiError::bad(format!("input[{i}]"), SHAPES)),
    };
    list.into_iter().enumerate().map(one).collect()
}

fn ids(list: &[Value], field: &str) -> ApiResult<Vec<u32>> {
    let one = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::bad(format!("{field}[{i}]"), "is not a token id"))
    };
    list.iter().enumerate().map(one).collect()
}

/// Either `text`, or `tokens` with `positions`. Unknown fields are refused.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FillMaskRequest {
    /// Name or id of an encoder; absent = the configured one.
    pub model: Option<String>,
    /// A text with gaps: the encoder's mask token (`[MASK]`), or three or more underscores.
    pub text: Option<String>,
    /// Token ids, read as they are.
    pub tokens: Option<Vec<u32>>,
    /// Positions of `tokens` to fill.
    pub positions: Option<Vec<usize>>,
    /// Segments of `tokens`. Default: all 0.
    pub token_type_ids: Option<Vec<u32>>,
    /// Most likely tokens per gap, 1 to 1000. Default 5.
    pub top_k: Option<usize>,
    /// Words of one token each, whose probabilities are returned too.
    pub targets: Option<Vec<String>>,
    /// Label → words of one token each: returns the label whose words are most likely in the single gap.
    #[schemars(with = "Option<std::collections::BTreeMap<String, Vec<String>>>")]
    pub verbalizers: Option<Map<String, Value>>,
}

const MOST_TARGETS: usize = 256;

/// Candidates for the gaps.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FilledGaps {
    #[schemars(extend("const" = "fill_mask"))]
    pub object: &'static str,
    pub model: String,
    pub gaps: Vec<FilledGap>,
    pub instructd: Origin,
    /// The most likely label; only with `verbalizers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The most likely first; only with `verbalizers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<RankedLabel>>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct FilledGap {
    /// Position of the gap among the tokens.
    pub position: usize,
    /// The most likely first.
    pub tokens: Vec<FilledToken>,
    /// In the order of the request.
    pub targets: Vec<FilledToken>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct FilledToken {
    pub token: String,
    pub id: u32,
    pub logprob: f64,
    pub probability: f64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedLabel {
    pub label: String,
    /// Among the labels.
    pub probability: f64,
    pub score: f64,
}

pub async fn fill_mask(
    State(state): State<AppState>,
    Json(request): Json<FillMaskRequest>,
) -> ApiResult<axum::Json<FilledGaps>> {
    let top = request.top_k.unwrap_or(5);
    if !(1..=1000).contains(&top) {
        return Err(ApiError::bad("top_k", "must be 1 to 1000"));
    }
    let input = match (request.text, request.tokens) {
        (Some(text), None) => {
            if request.positions.is_some() || request.token_type_ids.is_some() {
                return Err(ApiError::bad("positions", "positions and token_type_ids require tokens"));
            }
            check_size(text.len(), "text", state.services.config.limits.prompt_bytes)?;
            FillInput::Text(text)
        }
        (None, Some(ids)) => {
            let positions = request.positions.unwrap_or_default();
            if positions.is_empty() || positions.len() > 128 {
                return Err(ApiError::bad("positions", "must name 1 to 128 of the tokens"));
            }
            let type_ids = request.token_type_ids.unwrap_or_else(|| vec![0; ids.len()]);
            FillInput::Ids { ids, type_ids, positions }
        }
        _ => return Err(ApiError::bad("text", "give either text or tokens")),
    };
    let mut targets = request.targets.unwrap_or_default();
    let asked = targets.len();
    let mut labels: Vec<(String, usize)> = Vec::new();
    for (label, words) in request.verbalizers.unwrap_or_default() {
        let list = match &words {
            Value::String(word) => vec![word.clone()],
            Value::Array(list) if !list.is_empty() => {
                list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        if list.is_empty() || words.as_array().is_some_and(|all| all.len() != list.len()) {
            return Err(ApiError::bad(format!("verbalizers.{label}"), "must be a word or a list of words"));
        }
        labels.push((label, list.len()));
        targets.extend(list);
    }
    if targets.len() > MOST_TARGETS {
        return Err(ApiError::bad("targets", format!("at most {MOST_TARGETS} words")));
    }
    let fill = FillRequest { input, top, targets, max_listed: LISTED };
    let (model, gaps) = encoders::fill(&state.services, request.model.as_deref(), fill).await?;
    let shown = |gap: &FillResult| FilledGap {
        position: gap.position,
        tokens: gap.top.iter().map(FilledToken::from).collect(),
        targets: gap.targets[..asked].iter().map(FilledToken::from).collect(),
    };
    let mut answer = FilledGaps {
        object: "fill_mask",
        model: model.name,
        gaps: gaps.iter().map(shown).collect(),
        instructd: Origin { model_version: model.id },
        answer: None,
        labels: None,
    };
    if !labels.is_empty() {
        let [gap] = gaps.as_slice() else {
            return Err(ApiError::bad(
                "verbalizers",
                format!("require a text with one gap; this one has {}", gaps.len()),
            ));
        };
        let mut rest = &gap.targets[asked..];
        let mut words = Vec::new();
        for (_, count) in &labels {
            let (now, later) = rest.split_at(*count);
            words.push(now.iter().map(|f| f64::from(f.logprob)).collect());
            rest = later;
        }
        let ranked = decide(&words, &[]);
        answer.answer = ranked.first().map(|d| labels[d.index].0.clone());
        let label =
            |d: &Decided| RankedLabel { label: labels[d.index].0.clone(), probability: d.probability, score: d.score };
        answer.labels = Some(ranked.iter().map(label).collect());
    }
    Ok(axum::Json(answer))
}

impl From<&FillCandidate> for FilledToken {
    fn from(found: &FillCandidate) -> Self {
        let logprob = f64::from(found.logprob);
        Self { token: found.text.clone(), id: found.id, logprob, probability: logprob.exp() }
    }
}
