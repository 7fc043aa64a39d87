//! `POST /v1/label/ask` and `POST /v1/label/continue`: take a question, or the next message of a conversation, and stream
//! the answers as server-sent events (`start`, `text`, `done`), then the set of them (`set`, as in the response of
//! `GET /v1/label/next`).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::extract::Json;
use super::label::LeasedSet;
use super::observe::RequestId;
use super::openai::chat_request::ChatMessage;
use super::openai::params;
use super::openai::turns;
use super::sets::Sampling;
use crate::domain::{CompletionId, SetId};
use crate::prompt::answer::without_thoughts;
use crate::service::ask::{self, AnswerEvent, AnswerStream, Answering};
use crate::service::conversations::{self, NextMessage};
use crate::service::people::Actor;
use crate::service::sets::{self, PromptRef};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskRequest {
    pub messages: Vec<ChatMessage>,
    /// Number of answers of the active version, 2 to 9.
    pub n: Option<u64>,
    /// Or: names of versions that answer once each. The authors stay hidden until the ranking.
    #[serde(default)]
    pub models: Vec<String>,
    /// Sampling parameters.
    pub sampling: Option<Sampling>,
}

/// The next message of a conversation that began with a question.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContinueRequest {
    /// The set of the last answers, which the caller has judged.
    pub set_id: SetId,
    /// The answer to go on with: one of the best of a ranking, any one after another outcome.
    pub completion_id: CompletionId,
    /// The message.
    pub content: String,
    /// Number of answers of the active version, 2 to 9.
    pub n: Option<u64>,
    /// Or: names of versions that answer once each. The authors stay hidden until the ranking.
    #[serde(default)]
    pub models: Vec<String>,
    /// Sampling parameters.
    pub sampling: Option<Sampling>,
}

/// One event of the stream.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum AskEvent {
    Start(AskStart),
    Text(AskText),
    Done(AskDone),
    /// The last event: the answers as a leased set.
    Set(Box<LeasedSet>),
    /// The last event after a failure.
    Error(ErrorBody),
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AskStart {
    /// Number of answers.
    pub answers: usize,
}

/// More text of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AskText {
    /// Which answer, in shown order from 0.
    pub place: usize,
    pub text: String,
}

/// An answer has ended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AskDone {
    pub place: usize,
    /// `stop` or `length`.
    pub reason: &'static str,
}

impl AskEvent {
    fn sse(&self) -> Event {
        let event = serde_json::to_value(self).unwrap_or_default();
        Event::default().event(event["event"].as_str().unwrap_or_default()).data(event["data"].to_string())
    }
}

pub async fn ask(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    Caller(actor): Caller,
    Json(body): Json<AskRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    let messages = turns::stored_messages(body.messages, "messages", services.config.limits.prompt_bytes)?;
    let answering = answering(&state, &actor, body.n, body.models, body.sampling)?;
    let prompt = sets::prompt(services, &actor, PromptRef::Messages(messages), "page").await?;
    let answers = ask::begin(services, prompt, None, answering, &request_id).await?;
    Ok(answered(state, answers, actor))
}

pub async fn go_on(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    Caller(actor): Caller,
    Json(body): Json<ContinueRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    let answering = answering(&state, &actor, body.n, body.models, body.sampling)?;
    let next = NextMessage { set_id: body.set_id, completion_id: body.completion_id, content: body.content };
    let (prompt, continued) = conversations::next_prompt(services, &actor, next).await?;
    let answers = ask::begin(services, prompt, Some(continued), answering, &request_id).await?;
    Ok(answered(state, answers, actor))
}

/// The versions that answer, and how.
///
/// # Errors
/// 400 for both `n` and `models`, and for sampling parameters that do not apply.
fn answering(
    state: &AppState,
    actor: &Actor,
    n: Option<u64>,
    models: Vec<String>,
    sampling: Option<Sampling>,
) -> ApiResult<Answering> {
    if n.is_some() && !models.is_empty() {
        return Err(ApiError::bad("n", "give either n or models, not both"));
    }
    let standard = state.services.live().config.labeling.completions_per_set as u64;
    let n = params::count("n", n.unwrap_or(standard))?;
    let params = super::sets::drawing(&state.services, sampling.unwrap_or_default())?;
    Ok(Answering { models, n, params, may_load: actor.is_admin() })
}

/// The answers and their set as server-sent events.
fn answered(state: AppState, answers: AnswerStream, actor: Actor) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        let last = match stream(&state, answers, &actor, &sender).await {
            Ok(Some(set)) => AskEvent::Set(Box::new(set)),
            Ok(None) => return,
            Err(error) => AskEvent::Error(error.body()),
        };
        let _ = sender.send(Ok(last.sse())).await;
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response()
}

/// Streams the answers; `None` when the client has disconnected, which stops them.
async fn stream(
    state: &AppState,
    mut answers: AnswerStream,
    actor: &Actor,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) -> ApiResult<Option<LeasedSet>> {
    let start = AskEvent::Start(AskStart { answers: answers.answers() });
    if sender.send(Ok(start.sse())).await.is_err() {
        return Ok(None);
    }
    // When thoughts are hidden, an answer is sent when it is complete, because only then their end is known.
    let hides = !state.services.live().config.labeling.show_reasoning;
    let mut held = vec![String::new(); answers.answers()];
    loop {
        let next = tokio::select! {
            () = sender.closed() => return Ok(None),
            next = answers.next() => next?,
        };
        let events = match next {
            Some(AnswerEvent::Text { place, text }) if hides => {
                held[place].push_str(&text);
                Vec::new()
            }
            Some(AnswerEvent::Text { place, text }) => vec![AskEvent::Text(AskText { place, text })],
            Some(AnswerEvent::Done { place, reason }) => {
                let text = without_thoughts(&held[place]).to_owned();
                let whole = hides.then_some(AskEvent::Text(AskText { place, text }));
                whole.into_iter().chain([AskEvent::Done(AskDone { place, reason })]).collect()
            }
            None => break,
        };
        for event in events {
            if sender.send(Ok(event.sse())).await.is_err() {
                return Ok(None);
            }
        }
    }
    let turn = answers.store(&state.services, actor).await?;
    Ok(Some(LeasedSet::new(&state.services, actor, &turn).await?))
}
