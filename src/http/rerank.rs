//! `POST /v1/rerank` and `/v1/score`: relevance of texts to a query. An encoder compares vectors (the cosine of the
//! angle); a reward model scores each text as an answer to the query.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::openai::TokenUsage;
use crate::domain::{Message, ModelKind, ModelVersion, ModelVersionId};
use crate::engine::{EmbedRequest, EncoderInput};
use crate::service::budget::{EMBEDDED_TEXTS, EMBEDDED_TOKENS};
use crate::service::prompts::check_size;
use crate::service::{Services, budget, encoders, publish, register};

/// Cohere's and Jina's form; unknown fields are refused.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RerankRequest {
    /// Name or id of an encoder or a reward model; absent = the configured encoder.
    pub model: Option<String>,
    pub query: String,
    /// Texts, or `{"text"}`: up to 2047.
    #[schemars(with = "Vec<Value>")]
    pub documents: Vec<Value>,
    /// Number of returned documents; absent = all.
    pub top_n: Option<usize>,
    /// Return the texts too. Default false.
    pub return_documents: Option<bool>,
    /// Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub user: Option<Value>,
}

/// vLLM's form; unknown fields are refused.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreRequest {
    /// Name or id of an encoder or a reward model; absent = the configured encoder.
    pub model: Option<String>,
    /// A text that is compared with each of `text_2`, or a list as long as it.
    #[schemars(with = "Value")]
    pub text_1: Value,
    /// A text, or a list of texts.
    #[schemars(with = "Value")]
    pub text_2: Value,
    /// Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub user: Option<Value>,
}

/// Documents in order of relevance.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Reranked {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub model: String,
    /// The best first.
    pub results: Vec<RankedDocument>,
    pub usage: TokenUsage,
    pub instructd: ScoredBy,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedDocument {
    /// Its index in the request.
    pub index: usize,
    pub relevance_score: f64,
    /// With `return_documents`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct DocumentText {
    pub text: String,
}

/// Scores of pairs of texts.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Scored {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub model: String,
    pub data: Vec<PairScore>,
    pub usage: TokenUsage,
    pub instructd: ScoredBy,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct PairScore {
    pub index: usize,
    #[schemars(extend("const" = "score"))]
    pub object: &'static str,
    pub score: f64,
}

/// The version that scored.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScoredBy {
    pub model_version: ModelVersionId,
}

pub async fn rerank(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<RerankRequest>,
) -> ApiResult<axum::Json<Reranked>> {
    let text = |(i, document): (usize, &Value)| {
        let text = document.as_str().or_else(|| document["text"].as_str());
        text.map(str::to_owned).ok_or_else(|| ApiError::bad(format!("documents[{i}]"), "must be a text or {text}"))
    };
    let documents: Vec<String> = request.documents.iter().enumerate().map(text).collect::<ApiResult<_>>()?;
    if documents.is_empty() {
        return Err(ApiError::bad("documents", "is empty"));
    }
    if request.top_n == Some(0) {
        return Err(ApiError::bad("top_n", "must be at least 1"));
    }
    let texts = Texts { first: vec![request.query], second: documents, names: ["query", "documents"] };
    let (model, scores, tokens) = scores(&state.services, request.model.as_deref(), &texts, caller.is_admin()).await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let shown = request.return_documents.unwrap_or(false);
    let one = |index: usize| RankedDocument {
        index,
        relevance_score: scores[index],
        document: shown.then(|| DocumentText { text: texts.second[index].clone() }),
    };
    Ok(axum::Json(Reranked {
        object: "list",
        model: model.name,
        results: order.into_iter().map(one).collect(),
        usage: TokenUsage::new(tokens, 0),
        instructd: ScoredBy { model_version: model.id },
    }))
}

pub async fn score(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<ScoreRequest>,
) -> ApiResult<axum::Json<Scored>> {
    let (first, second) = (list(request.text_1, "text_1")?, list(request.text_2, "text_2")?);
    if first.len() != 1 && first.len() != second.len() {
        return Err(ApiError::bad("text_1", "must be one text, or as many as text_2"));
    }
    let texts = Texts { first, second, names: ["text_1", "text_2"] };
    let (model, scores, tokens) = scores(&state.services, request.model.as_deref(), &texts, caller.is_admin()).await?;
    let one = |(index, score): (usize, f64)| PairScore { index, object: "score", score };
    Ok(axum::Json(Scored {
        object: "list",
        model: model.name,
        data: scores.into_iter().enumerate().map(one).collect(),
        usage: TokenUsage::new(tokens, 0),
        instructd: ScoredBy { model_version: model.id },
    }))
}

fn list(given: Value, field: &str) -> ApiResult<Vec<String>> {
    match given {
        Value::String(text) => Ok(vec![text]),
        Value::Array(list) if !list.is_empty() => {
            let one = |(i, v): (usize, Value)| match v {
                Value::String(text) => Ok(text),
                _ => Err(ApiError::bad(format!("{field}[{i}]"), "must be a text")),
            };
            list.into_iter().enumerate().map(one).collect()
        }
        _ => Err(ApiError::bad(field, "must be a text or a list of texts")),
    }
}

/// Pairs of texts: one for all of the second, or one for each.
struct Texts {
    first: Vec<String>,
    second: Vec<String>,
    names: [&'static str; 2],
}

impl Texts {
    fn check(&self, most_bytes: usize) -> ApiResult<()> {
        let count = self.first.len() + self.second.len();
        if count > EMBEDDED_TEXTS {
            return Err(ApiError::bad(self.names[1], format!("at most {EMBEDDED_TEXTS} texts in one request")));
        }
        for (list, name) in [(&self.first, self.names[0]), (&self.second, self.names[1])] {
            for (i, text) in list.iter().enumerate() {
                let field = if list.len() == 1 { name.to_owned() } else { format!("{name}[{i}]") };
                check_size(text.len(), &field, most_bytes)?;
            }
        }
        Ok(())
    }

    fn first_of(&self, i: usize) -> usize {
        if self.first.len() == 1 { 0 } else { i }
    }
}

/// The model, the score of each pair, and the number of tokens.
async fn scores(
    services: &Services,
    model: Option<&str>,
    texts: &Texts,
    may_try: bool,
) -> ApiResult<(ModelVersion, Vec<f64>, usize)> {
    texts.check(services.config.limits.prompt_bytes)?;
    let named = match model {
        None | Some("" | "active" | "default") => None,
        Some(name) => Some(register::find(services, name, None, Some("model")).await?),
    };
    match named {
        Some(version) if version.kind == ModelKind::Reward => by_reward(services, &version.name, texts, may_try).await,
        _ => by_encoder(services, model, texts).await,
    }
}

async fn by_encoder(
    services: &Services,
    model: Option<&str>,
    texts: &Texts,
) -> ApiResult<(ModelVersion, Vec<f64>, usize)> {
    let inputs = texts.first.iter().chain(&texts.second).cloned().map(EncoderInput::Text).collect();
    let request = EmbedRequest { inputs, pooling: None, normalize: true, truncate: true, max_tokens: EMBEDDED_TOKENS };
    let (model, found) = encoders::embed(services, model, request).await?;
    let (first, second) = found.vectors.split_at(texts.first.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let scores = second.iter().enumerate().map(|(i, b)| dot(&first[texts.first_of(i)], b)).collect();
    Ok((model, scores, found.tokens))
}

async fn by_reward(
    services: &Services,
    model: &str,
    texts: &Texts,
    may_try: bool,
) -> ApiResult<(ModelVersion, Vec<f64>, usize)> {
    let limits = &services.config.limits;
    let lengths: Vec<usize> = texts.second.iter().map(String::len).collect();
    let asked =
        |i: usize| -> Arc<[Message]> { [Message { role: "user".into(), content: texts.first[i].clone() }].into() };
    let named =
        |e: crate::service::ServiceError| super::openai::blocks::renamed(e.into(), &[("completions", texts.names[1])]);
    if texts.first.len() == 1 {
        budget::rewards(texts.first[0].len(), &lengths, limits).map_err(named)?;
        let (model, found) = publish::rewards(services, Some(model), &asked(0), texts.second.clone(), may_try).await?;
        return Ok((model, found.iter().map(|s| s.mean).collect(), found.iter().map(|s| s.tokens).sum()));
    }
    if texts.second.len() > limits.samples {
        let message = format!("at most {} pairs with a reward model", limits.samples);
        return Err(ApiError::bad(texts.names[1], message));
    }
    let (mut scores, mut tokens, mut used) = (Vec::new(), 0, None);
    for (i, second) in texts.second.iter().enumerate() {
        budget::rewards(texts.first[i].len(), &[second.len()], limits).map_err(named)?;
        let (version, found) =
            publish::rewards(services, Some(model), &asked(i), vec![second.clone()], may_try).await?;
        scores.extend(found.iter().map(|s| s.mean));
        tokens += found.iter().map(|s| s.tokens).sum::<usize>();
        used = Some(version);
    }
    let used = used.ok_or_else(|| ApiError::bad(texts.names[1], "is empty"))?;
    Ok((used, scores, tokens))
}
