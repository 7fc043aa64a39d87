//! `POST /tokenize` and `/detokenize` with the tokenizer of a served model.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::TextForm;
use crate::http::AppState;
use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Json;
use crate::http::openai::begin;
use crate::http::openai::chat_request::{ChatMessage, ChatRequest};
use crate::http::openai::params::needs_ids;
use crate::service::budget::WRITTEN_TOKENS;
use crate::service::complete::resolve_model;
use crate::service::prompts::check_size;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub prompt: Option<String>,
    /// Another name of `prompt`.
    pub content: Option<String>,
    /// A conversation, as in a chat request: its tokens are those of the prompt that the chat template renders.
    pub messages: Option<Vec<ChatMessage>>,
    /// With `messages`: functions that the model may call, as in a chat request.
    #[schemars(with = "Option<Value>")]
    pub tools: Option<Value>,
    /// With `messages`: variables for the chat template.
    #[schemars(with = "Option<Value>")]
    pub chat_template_kwargs: Option<Value>,
    /// For a text: whether the tokenizer adds its start and end tokens. Default true.
    pub add_special_tokens: Option<bool>,
    /// For a text: read special tokens written in it as those tokens. Default false.
    pub parse_special: Option<bool>,
}

/// The token ids of a text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokenized {
    pub count: usize,
    pub tokens: Vec<u32>,
    pub max_model_len: usize,
}

pub async fn tokenize(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<TokenizeRequest>,
) -> ApiResult<axum::Json<Tokenized>> {
    let text = match (request.prompt, request.content, request.messages) {
        (Some(text), None, None) | (None, Some(text), None) => text,
        (None, None, Some(messages)) => {
            let (tools, chat_template_kwargs) = (request.tools, request.chat_template_kwargs);
            let chat =
                ChatRequest { messages, model: request.model, tools, chat_template_kwargs, ..ChatRequest::default() };
            let (tokens, model) = begin::rendered(&state.services, caller.is_admin(), chat).await?;
            return Ok(axum::Json(Tokenized { count: tokens.len(), tokens, max_model_len: model.max_context }));
        }
        _ => return Err(ApiError::bad("prompt", "give one of prompt, content and messages")),
    };
    check_size(text.len(), "prompt", state.services.config.limits.prompt_bytes)?;
    let model = resolve_model(&state.services, request.model.as_deref(), caller.is_admin()).await?;
    needs_ids("model", &model)?;
    let special = request.add_special_tokens.unwrap_or(true);
    let form = TextForm::Whole { special, parse_special: request.parse_special.unwrap_or(false) };
    let engine = state.services.engine()?;
    let tokens = engine.tokenize(Some(&model.version.id), &text, form).await?;
    Ok(axum::Json(Tokenized { count: tokens.len(), tokens, max_model_len: model.max_context }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

/// Token ids as text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detokenized {
    pub prompt: String,
}

pub async fn detokenize(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<DetokenizeRequest>,
) -> ApiResult<axum::Json<Detokenized>> {
    let model = resolve_model(&state.services, request.model.as_deref(), caller.is_admin()).await?;
    needs_ids("model", &model)?;
    let most = WRITTEN_TOKENS.max(model.max_context);
    if request.tokens.len() > most {
        return Err(ApiError::bad("tokens", format!("{} tokens; at most {most} in one request", request.tokens.len())));
    }
    if let Some(i) = request.tokens.iter().position(|id| *id as usize >= model.vocab_size) {
        let message = format!("is outside the vocabulary of {}", model.vocab_size);
        return Err(ApiError::bad(format!("tokens[{i}]"), message));
    }
    let prompt = state.services.engine()?.detokenize(Some(&model.version.id), &request.tokens).await?;
    Ok(axum::Json(Detokenized { prompt }))
}
