//! `POST /v1/completions`: takes text or token ids and returns text, in OpenAI's form.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{self, Place, TextLogprobs};
use super::stream::{self, Format, Piece};
use super::written::{self, JsonText};
use super::{Generated, TokenUsage, params, usage};
use crate::domain::CompletionId;
use crate::engine::{FinishReason, Generator, SamplingParams, ServedModel, TextForm};
use crate::http::AppState;
use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Json;
use crate::http::observe::RequestId;
use crate::service::budget::{self, Drawing};
use crate::service::complete::{self, PromptInput, Running, Sample, Start, StoredAs};
use crate::service::prompts::{check_size, raw_text};

params::generation_request!(
    /// A completion request. Unknown fields are refused.
    CompletionRequest {
        /// A string, a list of strings, a list of token ids, or a list of such lists. Required.
        #[schemars(with = "serde_json::Value")]
        prompt: Option<Value>,
        /// Most tokens to generate. Default 16; 0 only with `echo`.
        max_tokens: Option<u64>,
        /// Generate this many samples and return the `n` with the highest log-probability per token.
        best_of: Option<u64>,
        /// 0 to 20: log-probs of each token, with this many alternatives.
        logprobs: Option<u64>,
        /// Return the prompt before the completion.
        echo: Option<bool>,
        /// Add the begin token that the model expects. Default true. For text, not ids.
        add_special_tokens: Option<bool>,
        /// Read special tokens written in the prompt, such as `<|im_start|>`, as those tokens and not as text.
        /// Default false. For prompts that the client has rendered itself; never for untrusted text.
        parse_special: Option<bool>,
        /// The text after a gap that the completion fills, for models with tokens for that.
        suffix: Option<String>,
        /// Not supported, except empty.
        tools: Option<Value>,
    }
);

/// Completions of the prompts. A chunk of a stream has one choice, whose text is appended; the last chunk has `usage`,
/// with `stream_options.include_usage`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TextCompletion {
    pub id: String,
    #[schemars(extend("const" = "text_completion"))]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
    pub choices: Vec<TextChoice>,
    pub instructd: Generated,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<TokenUsage>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct TextChoice {
    /// Samples of the first prompt come first.
    pub index: usize,
    /// After the prompt, with `echo`.
    pub text: String,
    /// Only with `logprobs`.
    pub logprobs: Option<TextLogprobs>,
    pub finish_reason: Option<FinishReason>,
}

/// One prompt as text and in the model's input form.
struct Input {
    text: String,
    prompt: PromptInput,
    /// Leading ids that are not in the text.
    added: usize,
}

/// A prompt as `echo` returns it.
struct Echo {
    text: String,
    added: usize,
}

/// Data shared by all choices of one request.
#[derive(Clone)]
struct Shape {
    id: String,
    created: i64,
    model: Arc<ServedModel>,
    engine: Arc<dyn Generator>,
    n: usize,
    echo: bool,
    logprobs: bool,
    include_usage: bool,
    seed: u64,
}

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(request): Json<CompletionRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    let limits = &services.config.limits;
    params::refuse(&[("tools", &request.tools, &["[]"])])?;
    let sampling = request.sampling(limits)?;
    let echo = request.echo.unwrap_or(false);
    let max_tokens = params::count("max_tokens", request.max_tokens.unwrap_or(16))?;
    if max_tokens == 0 && !echo {
        return Err(ApiError::bad("max_tokens", "must be at least 1 unless echo = true"));
    }
    if sampling.min_tokens > max_tokens {
        return Err(ApiError::bad("min_tokens", "must be at most max_tokens"));
    }
    if request.logprobs.is_some_and(|k| k > params::MAX_LOGPROBS) {
        return Err(ApiError::bad("logprobs", format!("must be 0 to {}", params::MAX_LOGPROBS)));
    }
    let suffix = request.suffix.as_deref().unwrap_or_default();
    check_size(suffix.len(), "suffix", limits.prompt_bytes)?;
    if echo && !suffix.is_empty() {
        return Err(ApiError::bad(
            "echo",
            "cannot be combined with suffix, because prompt and suffix are not one text",
        ));
    }
    let streamed = request.stream.unwrap_or(false);
    let prompts = prompts(request.prompt.as_ref(), limits.prompts)?;
    budget::gaps(prompts.len(), suffix.len())?;
    for (i, prompt) in prompts.iter().enumerate() {
        let bytes = match prompt {
            Given::Text(text) => text.len(),
            Given::Ids(ids) => ids.len() * size_of::<u32>(),
        };
        check_size(
            bytes,
            if prompts.len() == 1 { "prompt".into() } else { format!("prompt[{i}]") }.as_str(),
            limits.prompt_bytes,
        )?;
    }
    let n = params::check_samples("n", prompts.len(), request.n.unwrap_or(1), limits)?;
    let best_of = params::check_samples("best_of", prompts.len(), request.best_of.unwrap_or(n as u64), limits)?;
    if best_of < n {
        return Err(ApiError::bad("best_of", "must be at least n"));
    }
    if best_of > n && streamed {
        return Err(ApiError::bad(
            "best_of",
            "cannot be streamed, because all samples are generated before one is chosen",
        ));
    }
    let seed = match &request.seed {
        Some(given) => params::seed(given)?,
        None => services.random.seed(),
    };
    // A soft prompt belongs to one base: such a request is no case for the canary.
    let name = request.model.as_deref().or(request.prompt_adapter.as_ref().map(|_| "active"));
    let model = complete::route(services, name, caller.is_admin()).await?;
    let engine = services.engine()?;
    check_bias(&sampling, &model)?;
    for (field, wanted) in
        [("logprobs", request.logprobs.is_some()), ("best_of", best_of > n), ("max_tokens", max_tokens == 0)]
    {
        if wanted {
            params::needs_ids(field, &model)?;
        }
    }
    for (field, given) in [("add_special_tokens", request.add_special_tokens), ("parse_special", request.parse_special)]
    {
        if given.is_some() {
            params::needs_ids(field, &model)?;
        }
    }
    let special = request.add_special_tokens.unwrap_or(true);
    let form = TextForm::Open { special, parse_special: request.parse_special.unwrap_or(false) };
    let drawing = Drawing {
        prompts: prompts.len(),
        drawn: best_of,
        returned: n,
        max_tokens: max_tokens.min(model.max_context),
        alternatives: request.logprobs.map(|k| k as usize),
    };
    drawing.check("logprobs")?;
    let adapter = complete::resolve_adapter(services, request.prompt_adapter.as_deref(), &model).await?;
    let taken = adapter.as_ref().map_or(0, |a| a.tokens);
    let alternatives = request.logprobs.map_or(0, |k| k as usize);
    // Log-probs are always computed, because they are stored with the completion.
    let sampling = SamplingParams { max_tokens, seed, logprobs: Some(alternatives), ..sampling };
    let mut inputs = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        inputs.push(match request.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            None => input(engine.as_ref(), &model, prompt, form).await?,
            Some(suffix) => gap(engine.as_ref(), &model, prompt, suffix).await?,
        });
    }
    if echo {
        drawing.check_echo(inputs.iter().map(|i| i.text.len()).sum())?;
        drawing.check_reported(inputs.iter().map(|i| i.prompt.tokens()).sum(), "logprobs")?;
    }
    let mut runs = Vec::with_capacity(inputs.len());
    let mut texts = Vec::with_capacity(inputs.len());
    for Input { text, prompt, added } in inputs {
        let mut params = sampling.clone();
        if request.max_tokens.is_none() {
            // Only a requested length can be too long.
            params.max_tokens = params.max_tokens.min(prompt.room(&model).saturating_sub(taken).max(1));
        }
        let start = Start {
            request_id: request_id.clone(),
            model: model.clone(),
            prompt,
            stored_as: StoredAs::Request(raw_text(text.clone()), "completions"),
            n: best_of,
            params,
            prompt_logprobs: request.logprobs.filter(|_| echo).map(|k| k as usize),
            adapter: adapter.clone(),
        };
        runs.push(complete::start(services, start).await?);
        texts.push(Echo { text, added });
    }
    let shape = Shape {
        id: format!("cmpl-{request_id}"),
        created: services.now() / 1_000_000,
        model,
        engine,
        n,
        echo,
        logprobs: request.logprobs.is_some(),
        include_usage: request.include_usage(),
        seed,
    };
    if streamed {
        let offsets = (0..runs.len() * n).map(|_| AtomicUsize::new(0)).collect();
        return Ok(stream::respond(runs, Chunks { shape, texts, offsets }));
    }
    shape.answer(&mut runs, &texts).await
}

/// Refuses biases and stop ids of tokens outside the vocabulary.
pub fn check_bias(sampling: &SamplingParams, model: &ServedModel) -> ApiResult<()> {
    // An upstream server checks its ids itself.
    let known = |id: u32| model.takes_text || (id as usize) < model.vocab_size;
    if let Some(i) = sampling.stop_token_ids.iter().position(|id| !known(*id)) {
        let message = format!("is outside the vocabulary of {}", model.vocab_size);
        return Err(ApiError::bad(format!("stop_token_ids[{i}]"), message));
    }
    match sampling.warpers.logit_bias.iter().find(|(id, _)| !known(*id)) {
        Some((id, _)) => {
            Err(ApiError::bad(format!("logit_bias.{id}"), format!("the vocabulary has {} tokens", model.vocab_size)))
        }
        None => Ok(()),
    }
}

enum Given {
    Text(String),
    Ids(Vec<u32>),
}

fn prompts(value: Option<&Value>, max: usize) -> ApiResult<Vec<Given>> {
    const SHAPES: &str = "must be a string, a list of strings, a list of token ids, or a list of lists of token ids";
    let list = match value {
        None | Some(Value::Null) => return Err(ApiError::bad("prompt", "is missing")),
        Some(Value::String(text)) => return Ok(vec![Given::Text(text.clone())]),
        Some(Value::Array(list)) if list.is_empty() => return Err(ApiError::bad("prompt", "is empty")),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::bad("prompt", SHAPES)),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Given::Ids(ids(list, "prompt")?)]);
    }
    if list.len() > max {
        return Err(ApiError::bad("prompt", format!("at most {max} prompts in one request")));
    }
    let one = |(i, value): (usize, &Value)| match value {
        Value::String(text) if list[0].is_string() => Ok(Given::Text(text.clone())),
        Value::Array(inner) if list[0].is_array() => Ok(Given::Ids(ids(inner, &format!("prompt[{i}]"))?)),
        _ => Err(ApiError::bad(format!("prompt[{i}]"), SHAPES)),
    };
    list.iter().enumerate().map(one).collect()
}

fn ids(list: &[Value], field: &str) -> ApiResult<Vec<u32>> {
    let one = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::bad(format!("{field}[{i}]"), "is not a token id"))
    };
    list.iter().enumerate().map(one).collect()
}

/// A prompt with a gap at its end, before `suffix`. The stored text contains the tokens around the gap.
async fn gap(engine: &dyn Generator, model: &ServedModel, given: Given, suffix: &str) -> ApiResult<Input> {
    params::needs_ids("suffix", model)?;
    let Given::Text(before) = given else {
        return Err(ApiError::bad("suffix", "requires prompts of text, not of token ids"));
    };
    let ids = engine.infill_prompt(Some(&model.version.id), &before, suffix).await?;
    let text = engine.detokenize(Some(&model.version.id), &ids).await?;
    Ok(Input { text, prompt: PromptInput::Ids(ids), added: 0 })
}

async fn input(engine: &dyn Generator, model: &ServedModel, given: Given, form: TextForm<'_>) -> ApiResult<Input> {
    match given {
        Given::Text(text) => {
            let prompt = PromptInput::raw(engine, model, &text, form).await?;
            let before = &model.before_text;
            let special = matches!(form, TextForm::Open { special: true, .. });
            let framed = matches!(&prompt, PromptInput::Ids(ids) if ids.starts_with(before));
            Ok(Input { prompt, text, added: if special && framed { before.len() } else { 0 } })
        }
        Given::Ids(ids) => {
            params::needs_ids("prompt", model)?;
            if ids.len() > model.max_context {
                let message = format!("has {} tokens; the model's context holds {}", ids.len(), model.max_context);
                return Err(ApiError::bad("prompt", message).code("context_length_exceeded"));
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= model.vocab_size) {
                return Err(ApiError::bad(
                    "prompt",
                    format!("token id {id} is outside the vocabulary of {}", model.vocab_size),
                ));
            }
            let text = engine.detokenize(Some(&model.version.id), &ids).await?;
            Ok(Input { text, prompt: PromptInput::Ids(ids), added: 0 })
        }
    }
}

impl Shape {
    fn envelope(&self, choices: Vec<TextChoice>, completion_ids: Vec<Option<CompletionId>>) -> TextCompletion {
        TextCompletion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.version.name.clone(),
            choices,
            instructd: Generated { completion_ids, model_version: self.model.version.id.clone(), seed: self.seed },
            usage: None,
        }
    }

    async fn answer(&self, runs: &mut [Running], texts: &[Echo]) -> ApiResult<Response> {
        futures::future::try_join_all(runs.iter_mut().map(Running::finish)).await?;
        let mut kept: Vec<Vec<usize>> = Vec::new();
        for run in runs.iter_mut() {
            let mut order: Vec<usize> = (0..run.samples.len()).collect();
            if run.samples.len() > self.n {
                order.sort_by(|a, b| run.samples[*b].mean_logprob().total_cmp(&run.samples[*a].mean_logprob()));
                order.truncate(self.n);
            }
            let ids: Vec<_> = order.iter().map(|i| run.samples[*i].id.clone()).collect();
            run.store(|s| ids.contains(&s.id)).await?;
            kept.push(order);
        }
        let mut choices = JsonText::list();
        let mut completion_ids = Vec::new();
        for ((run, text), order) in runs.iter().zip(texts).zip(&kept) {
            for sample in order.iter().map(|i| &run.samples[*i]) {
                let index = completion_ids.len();
                completion_ids.push((!sample.text.is_empty()).then(|| sample.id.clone()));
                choices.push(self.choice(index, run, sample, text).await?);
            }
        }
        let answer = TextCompletion { usage: Some(usage(runs)), ..self.envelope(Vec::new(), completion_ids) };
        Ok(JsonText::object(&answer, "choices", choices.end()).into_response())
    }

    async fn choice(&self, index: usize, run: &Running, sample: &Sample, echoed: &Echo) -> ApiResult<JsonText> {
        let mut logprobs = JsonText::null();
        if self.logprobs {
            let mut tokens = if self.echo { run.prompt.clone() } else { Vec::new() };
            let place = match tokens.len() {
                0 => Place { left: run.prompt_tail(), ..Place::default() },
                prompt => Place { left: &[], added: echoed.added, prompt },
            };
            tokens.extend_from_slice(&sample.tokens);
            logprobs = written::completion_logprobs(self.engine.as_ref(), run.version_id(), &tokens, place).await?;
        }
        let text = if self.echo { format!("{}{}", echoed.text, sample.text) } else { sample.text.clone() };
        let choice = TextChoice { index, text, logprobs: None, finish_reason: sample.finish };
        Ok(JsonText::object(&choice, "logprobs", logprobs))
    }
}

/// Chunks of a streamed completion.
struct Chunks {
    shape: Shape,
    texts: Vec<Echo>,
    /// Characters sent of each choice, for `text_offset`.
    offsets: Vec<AtomicUsize>,
}

impl Format for Chunks {
    type Chunk = TextCompletion;

    async fn chunk(
        &self,
        running: &Running,
        run: usize,
        index: usize,
        piece: Piece<'_>,
    ) -> ApiResult<Vec<TextCompletion>> {
        let shape = &self.shape;
        let choice = run * shape.n + index;
        let started = matches!(piece, Piece::Start { .. });
        let (text, tokens, finish_reason) = match piece {
            Piece::Start { prompt } if shape.echo => (self.texts[run].text.as_str(), prompt, None),
            Piece::Start { .. } => return Ok(Vec::new()),
            Piece::Delta { text, tokens } => {
                if text.is_empty() && (!shape.logprobs || tokens.is_empty()) {
                    return Ok(Vec::new());
                }
                (text, tokens, None)
            }
            Piece::Finish(reason) => ("", [].as_slice(), Some(reason)),
        };
        let mut logprobs = None;
        if shape.logprobs && !tokens.is_empty() {
            let mut offset = self.offsets[choice].load(Ordering::Relaxed);
            let left = running.left_of(index, tokens.len());
            let place = match started {
                true => Place { left: &[], added: self.texts[run].added, prompt: tokens.len() },
                false => Place { left: &left, ..Place::default() },
            };
            let (engine, version) = (shape.engine.as_ref(), running.version_id());
            logprobs = Some(logprobs::completion(engine, version, tokens, place, &mut offset).await?);
            self.offsets[choice].store(offset, Ordering::Relaxed);
        } else if started {
            self.offsets[choice].store(text.chars().count(), Ordering::Relaxed);
        }
        let choice = TextChoice { index: choice, text: text.to_owned(), logprobs, finish_reason };
        Ok(vec![shape.envelope(vec![choice], vec![Some(running.samples[index].id.clone())])])
    }

    fn usage(&self, usage: TokenUsage) -> Option<TextCompletion> {
        let shape = &self.shape;
        shape.include_usage.then(|| TextCompletion { usage: Some(usage), ..shape.envelope(Vec::new(), Vec::new()) })
    }
}
