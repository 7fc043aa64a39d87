//! Prompts, comparison sets, rankings by API, demonstrations.

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AppState;
use super::auth::Caller;
use super::contract::Paged;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Path, Query};
use super::label::{PageQuery, StoredJudgment, page};
use super::observe::RequestId;
use super::openai::chat_request::ChatMessage;
use super::openai::params;
use super::openai::turns;
use super::shown::{BlindCompletion, ShownPrompt, blind};
use crate::domain::*;
use crate::engine::SamplingParams;
use crate::service::Services;
use crate::service::projects;
use crate::service::prompts::raw_text;
use crate::service::sets::{self, CompletionRef, PromptRef, Ranking};
use crate::service::visible;
use crate::store::SetContent;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptRequest {
    pub messages: Option<Vec<ChatMessage>>,
    /// Or: raw text.
    pub prompt: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    pub lang: Option<String>,
    /// Id or name of the project; the first when absent.
    pub project: Option<String>,
}

pub async fn add_prompt(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<PromptRequest>,
) -> ApiResult<(StatusCode, axum::Json<Prompt>)> {
    let limit = state.services.config.limits.prompt_bytes;
    let messages = match (body.messages, body.prompt) {
        (Some(messages), None) => turns::stored_messages(messages, "messages", limit)?,
        (None, Some(text)) if !text.is_empty() => {
            crate::service::prompts::check_size(text.len(), "prompt", limit)?;
            raw_text(text)
        }
        _ => return Err(ApiError::bad("messages", "give messages or prompt")),
    };
    let services = &state.services;
    let project = projects::to_add_to(services, &actor, body.project.as_deref()).await?;
    let by = &actor.labeler_id;
    let mut prompt =
        crate::service::prompts::add(services, by, &project, messages, "api", body.lang, body.tags).await?;
    if visible::plain_labeler(&actor).is_some() {
        prompt.answer = None;
    }
    Ok((StatusCode::CREATED, axum::Json(prompt)))
}

/// All stored prompts for reviewers and administrators; for labelers those of the sets that they received.
pub async fn list_prompts(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> ApiResult<axum::Json<Paged<Prompt>>> {
    let prompts = visible::prompts(&state.services, &actor, query.page()?).await?;
    Ok(axum::Json(Paged::new(prompts, |p| p.id.as_str())))
}

/// A completion of a set: text, `{"text"}`, `{"completion_id"}`, or in the form of this server's responses: `{"id",
/// "text", "text_start", "html", "parts", "cut_off", "cut_off_at"}`.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Given {
    text: Option<String>,
    completion_id: Option<CompletionId>,
    id: Option<CompletionId>,
    /// Known for stored completions; ignored.
    #[serde(rename = "text_start")]
    _text_start: Option<u64>,
    /// Derived from the text; ignored.
    #[serde(rename = "html")]
    _html: Option<String>,
    /// Derived from the text; ignored.
    #[serde(rename = "parts")]
    _parts: Option<Value>,
    /// Known for stored completions; ignored.
    #[serde(rename = "cut_off")]
    _cut_off: Option<bool>,
    /// Known for stored completions; ignored.
    #[serde(rename = "cut_off_at")]
    _cut_off_at: Option<u64>,
    tier: Option<i64>,
}

fn completion_ref(field: &str, text: Option<String>, id: Option<CompletionId>) -> ApiResult<CompletionRef> {
    match (text, id) {
        (Some(text), None) => Ok(CompletionRef::Text(text)),
        (None, Some(id)) => Ok(CompletionRef::Known(id)),
        _ => Err(ApiError::bad(field, "give text or completion_id")),
    }
}

fn given(i: usize, value: Value) -> ApiResult<Given> {
    let field = format!("completions[{i}]");
    if let Value::String(text) = value {
        return Ok(Given { text: Some(text), ..Given::default() });
    }
    let bytes = value.to_string();
    let mut given: Given = super::extract::parse(bytes.as_bytes()).map_err(|e| match e.param.as_deref() {
        Some("body") | None => ApiError { param: Some(field.clone()), ..e },
        Some(inner) => ApiError { param: Some(format!("{field}.{inner}")), ..e },
    })?;
    if let Some(id) = given.id.take() {
        // The id identifies the completion; its text must match.
        given.text = None;
        if given.completion_id.replace(id).is_some() {
            return Err(ApiError::bad(format!("{field}.id"), "give id or completion_id, not both"));
        }
    }
    Ok(given)
}

fn prompt_ref(
    messages: Option<Vec<ChatMessage>>,
    id: Option<PromptId>,
    max_bytes: usize,
) -> ApiResult<Option<PromptRef>> {
    match (messages, id) {
        (Some(messages), None) => {
            Ok(Some(PromptRef::Messages(turns::stored_messages(messages, "messages", max_bytes)?)))
        }
        (None, Some(id)) => Ok(Some(PromptRef::Known(id))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(ApiError::bad("prompt_id", "give messages or prompt_id, not both")),
    }
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    pub messages: Option<Vec<ChatMessage>>,
    pub prompt_id: Option<PromptId>,
    /// Texts, `{"text"}` or `{"completion_id"}`; absent = generated by the active policy.
    #[schemars(with = "Option<Vec<Value>>")]
    pub completions: Option<Vec<Value>>,
    /// Number of completions to generate, 2 to 9.
    pub n: Option<u64>,
    /// Sampling parameters.
    pub sampling: Option<Sampling>,
    /// How many people should rank it.
    pub overlap: Option<i64>,
    /// Id or name of the project of `messages`; the first when absent. A set of `prompt_id` is in the prompt's project.
    pub project: Option<String>,
}

params::generation_request!(
    /// Sampling of the completions of a set.
    Sampling {
        max_tokens: Option<u64>,
    }
);

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    Caller(actor): Caller,
    Json(body): Json<SetRequest>,
) -> ApiResult<(StatusCode, axum::Json<ShownSet>)> {
    let services = &state.services;
    let limits = &services.config.limits;
    let prompt = prompt_ref(body.messages, body.prompt_id, limits.prompt_bytes)?
        .ok_or_else(|| ApiError::bad("messages", "give messages or prompt_id"))?;
    if body.project.is_some() && matches!(prompt, PromptRef::Known(_)) {
        return Err(ApiError::bad("project", "applies to messages; a set of prompt_id is in the prompt's project"));
    }
    let project = projects::to_add_to(services, &actor, body.project.as_deref()).await?;
    let set = if let Some(completions) = body.completions {
        if body.n.is_some() || body.sampling.is_some() {
            return Err(ApiError::bad("n", "n and sampling require that completions are absent"));
        }
        let mut refs = Vec::new();
        for (i, value) in completions.into_iter().enumerate() {
            let given = given(i, value)?;
            if given.tier.is_some() {
                return Err(ApiError::bad(
                    format!("completions[{i}].tier"),
                    "is for rankings; send them to /v1/comparisons",
                ));
            }
            refs.push(completion_ref(&format!("completions[{i}]"), given.text, given.completion_id)?);
        }
        sets::check_own(services, &actor, &refs).await?;
        let prompt = sets::prompt(services, &actor, &project, prompt, "api").await?;
        sets::create(services, &prompt, refs, body.overlap, "ask").await?
    } else {
        let params = drawing(services, body.sampling.unwrap_or_default())?;
        let n = body.n.unwrap_or(services.live().config.labeling.completions_per_set as u64);
        let n = params::count("n", n)?;
        let prompt = sets::prompt(services, &actor, &project, prompt, "page").await?;
        sets::sample(services, &prompt, n, params, body.overlap, request_id).await?
    };
    let content = sets::asked_by(services, &actor, &set.id).await?;
    Ok((StatusCode::CREATED, axum::Json(ShownSet::new(&state.services, content).await?)))
}

/// Sampling parameters of a set's completions; fields that do not apply are refused.
pub(super) fn drawing(services: &Services, sampling: Sampling) -> ApiResult<SamplingParams> {
    for (field, refused) in [
        ("model", sampling.model.is_some()),
        ("n", sampling.n.is_some()),
        ("stream", sampling.stream.is_some()),
        ("stream_options", sampling.stream_options.is_some()),
    ] {
        if refused {
            return Err(ApiError::bad(format!("sampling.{field}"), "does not apply to sets"));
        }
    }
    let inside = |e: ApiError| ApiError { param: e.param.map(|p| format!("sampling.{p}")), ..e };
    let (temperature, top_p) = (sampling.temperature.is_some(), sampling.top_p.is_some());
    let mut checked = sampling.sampling(&services.config.limits).map_err(inside)?;
    let labeling = &services.live().config.labeling;
    if !temperature {
        checked.warpers.temperature = labeling.temperature as f32;
    }
    if !top_p {
        checked.warpers.top_p = labeling.top_p as f32;
    }
    let default = labeling.max_tokens as u64;
    let max_tokens = params::count("max_tokens", sampling.max_tokens.unwrap_or(default)).map_err(inside)?;
    if max_tokens == 0 {
        return Err(ApiError::bad("sampling.max_tokens", "must be at least 1"));
    }
    let seed = match &sampling.seed {
        Some(given) => params::seed(given).map_err(inside)?,
        None => services.random.seed(),
    };
    Ok(SamplingParams { max_tokens, seed, ..checked })
}

/// A set with its texts, without the authors.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownSet {
    pub id: SetId,
    pub prompt_id: PromptId,
    pub prompt: ShownPrompt,
    pub status: SetStatus,
    /// How many people should rank it.
    pub overlap: i64,
    /// In storage order.
    pub completions: Vec<BlindCompletion>,
    pub created: Micros,
}

impl ShownSet {
    async fn new(services: &Services, content: SetContent) -> ApiResult<Self> {
        let SetContent { set, prompt, completions } = content;
        Ok(Self {
            id: set.id,
            prompt_id: set.prompt_id,
            prompt: ShownPrompt::new(&prompt).await?,
            status: set.status,
            overlap: set.target_overlap,
            completions: blind(services, &prompt, &completions).await?,
            created: set.created,
        })
    }
}

/// A set without its texts.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SetSummary {
    pub id: SetId,
    pub prompt_id: PromptId,
    pub status: SetStatus,
    /// How many people should rank it.
    pub overlap: i64,
    /// In storage order.
    pub completion_ids: Vec<CompletionId>,
    pub created: Micros,
}

impl From<ComparisonSet> for SetSummary {
    fn from(set: ComparisonSet) -> Self {
        let ComparisonSet { id, prompt_id, status, target_overlap, completion_ids, created, .. } = set;
        Self { id, prompt_id, status, overlap: target_overlap, completion_ids, created }
    }
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetsQuery {
    status: Option<SetStatus>,
    after: Option<String>,
    limit: Option<u32>,
}

/// All sets for reviewers and administrators; for labelers those that they made or received.
pub async fn list_sets(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<SetsQuery>,
) -> ApiResult<axum::Json<Paged<SetSummary>>> {
    let page = page(query.after, query.limit)?;
    let sets = visible::sets(&state.services, &actor, page, query.status).await?;
    let data = sets.into_iter().map(SetSummary::from).collect();
    Ok(axum::Json(Paged::new(data, |set: &SetSummary| set.id.as_str())))
}

pub async fn get_set(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
) -> ApiResult<axum::Json<ShownSet>> {
    Ok(axum::Json(ShownSet::new(&state.services, visible::set(&state.services, &actor, &id).await?).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankingRequest {
    pub messages: Option<Vec<ChatMessage>>,
    pub prompt_id: Option<PromptId>,
    /// Or: a set that exists.
    pub set_id: Option<SetId>,
    /// `{"text" | "completion_id", "tier"}`, each completion once; tier 0 is best, equal tiers are a tie.
    #[schemars(with = "Vec<Value>")]
    pub completions: Vec<Value>,
    pub outcome: Option<Outcome>,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    /// A name for this ranking, 1 to 200 bytes: sent again under it, the ranking is stored once. Another ranking under it
    /// is refused (`idempotency_key_reused`). Without one, every request is a ranking of its own.
    pub idempotency_key: Option<String>,
    /// Id or name of the project of `messages`; the first when absent.
    pub project: Option<String>,
}

/// The stored ranking and its set.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StoredRanking {
    #[serde(flatten)]
    pub stored: StoredJudgment,
    pub set: RankedSetIds,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedSetIds {
    pub id: SetId,
    pub prompt_id: PromptId,
    pub completion_ids: Vec<CompletionId>,
}

pub async fn rank(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    Caller(actor): Caller,
    Json(body): Json<RankingRequest>,
) -> ApiResult<(StatusCode, axum::Json<StoredRanking>)> {
    let services = &state.services;
    if body.project.is_some() && body.messages.is_none() {
        return Err(ApiError::bad(
            "project",
            "applies to messages; sets and prompts that exist are in their own project",
        ));
    }
    let project = projects::to_add_to(services, &actor, body.project.as_deref()).await?;
    let prompt = prompt_ref(body.messages, body.prompt_id, services.config.limits.prompt_bytes)?;
    let outcome = body.outcome.unwrap_or(Outcome::Ranked);
    let mut completions = Vec::new();
    for (i, value) in body.completions.into_iter().enumerate() {
        let given = given(i, value)?;
        let tier = match given.tier {
            Some(tier) => tier,
            None if outcome == Outcome::Ranked => {
                return Err(ApiError::bad(format!("completions[{i}].tier"), "is missing"));
            }
            None => 0,
        };
        completions.push((completion_ref(&format!("completions[{i}]"), given.text, given.completion_id)?, tier));
    }
    let ranking = Ranking {
        set_id: body.set_id,
        project,
        prompt,
        completions,
        outcome,
        strength: body.strength,
        rationale: body.rationale,
        // Without a key every request is a ranking of its own; the prefix avoids collisions with given keys.
        idempotency_key: body
            .idempotency_key
            .unwrap_or_else(|| format!("request:{request_id}:{}", crate::domain::new_id())),
    };
    let (set, judged) = sets::rank(services, &actor, ranking).await.map_err(rename_items)?;
    let stored = StoredJudgment::from(judged);
    let set = RankedSetIds { id: set.id, prompt_id: set.prompt_id, completion_ids: set.completion_ids };
    let status = if stored.replayed { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, axum::Json(StoredRanking { stored, set })))
}

/// The ranking's items are called `completions` in this request.
fn rename_items(error: crate::service::ServiceError) -> ApiError {
    let e = ApiError::from(error);
    let param = e.param.clone().map(|p| match p.strip_prefix("items") {
        Some(rest) => format!("completions{rest}"),
        None => p,
    });
    ApiError { param, ..e }
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DemonstrationRequest {
    pub messages: Vec<ChatMessage>,
    /// The ideal answer.
    pub completion: String,
    /// Id or name of the project; the first when absent.
    pub project: Option<String>,
}

pub async fn demonstrate(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<DemonstrationRequest>,
) -> ApiResult<(StatusCode, axum::Json<Demonstration>)> {
    let messages = turns::stored_messages(body.messages, "messages", state.services.config.limits.prompt_bytes)?;
    let project = projects::to_add_to(&state.services, &actor, body.project.as_deref()).await?;
    let stored = sets::demonstrate(&state.services, &actor, &project, messages, body.completion).await?;
    Ok((StatusCode::CREATED, axum::Json(stored)))
}
