//! From a chat request to its running generation, shared by chat, Responses and Messages.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::chat_request::ChatRequest;
use super::completions::check_bias;
use super::params;
use super::turns::{self, Choice, Tools};
use crate::engine::{ChatPrompt, Constraint, ConstraintKind, Generator, SamplingParams, ServedModel};
use crate::http::error::{ApiError, ApiResult};
use crate::prompt::Conversation;
use crate::prompt::answer::{AnswerReader, Dialect, Grammar, Part, Thinking, ToolTags};
use crate::service::Services;
use crate::service::budget::Drawing;
use crate::service::complete::{self, PromptInput, Running, Start, StoredAs};
use crate::service::prompts::check_size;

/// Names of reasoning efforts.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// A started generation, and how its text is parsed.
pub struct StartedChat {
    pub model: Arc<ServedModel>,
    pub engine: Arc<dyn Generator>,
    pub seed: u64,
    /// `None` when the required form of the text allows no thoughts.
    thinking: Option<Thinking>,
    /// `None` when no tools are offered.
    tools: Option<ToolTags>,
}

impl StartedChat {
    pub fn reader(&self) -> AnswerReader {
        AnswerReader::new(self.thinking.as_ref(), self.tools.as_ref())
    }

    /// Parsers of `n` streamed answers.
    pub fn texts(&self, n: usize) -> Texts {
        Texts((0..n).map(|_| Mutex::new(Reading { reader: self.reader(), called: false })).collect())
    }
}

struct Reading {
    reader: AnswerReader,
    called: bool,
}

/// Incremental parsers of streamed answers.
pub struct Texts(Vec<Mutex<Reading>>);

impl Texts {
    fn with<T>(&self, sample: usize, work: impl FnOnce(&mut Reading) -> T) -> Option<T> {
        self.0.get(sample).map(|reading| work(&mut reading.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn read(&self, sample: usize, work: impl FnOnce(&mut AnswerReader) -> Vec<Part>) -> Vec<Part> {
        let read = self.with(sample, |reading| {
            let parts = work(&mut reading.reader);
            reading.called |= parts.iter().any(|part| matches!(part, Part::Call { .. }));
            parts
        });
        read.unwrap_or_default()
    }

    pub fn push(&self, sample: usize, text: &str) -> Vec<Part> {
        self.read(sample, |reader| reader.push(text))
    }

    pub fn finish(&self, sample: usize) -> Vec<Part> {
        self.read(sample, AnswerReader::finish)
    }

    /// Whether a tool was called.
    pub fn called(&self, sample: usize) -> bool {
        self.with(sample, |reading| reading.called).unwrap_or(false)
    }
}

/// A request's `max_tokens`, and the name of its field.
fn max_tokens(request: &ChatRequest) -> ApiResult<Option<usize>> {
    let (field, max) = match (request.max_completion_tokens, request.max_tokens) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad("max_tokens", "give max_tokens or max_completion_tokens, not both"));
        }
        (Some(max), None) => ("max_completion_tokens", Some(params::count("max_completion_tokens", max)?)),
        (None, max) => ("max_tokens", max.map(|m| params::count("max_tokens", m)).transpose()?),
    };
    match max {
        Some(0) => Err(ApiError::bad(field, "must be at least 1")),
        max => Ok(max),
    }
}

/// Validates the fields that do not depend on the model.
fn check(request: &ChatRequest) -> ApiResult<()> {
    params::refuse(&[
        ("functions", &request.functions, &["[]"]),
        ("function_call", &request.function_call, &["\"none\"", "\"auto\""]),
        ("audio", &request.audio, &[]),
        ("modalities", &request.modalities, &[r#"["text"]"#]),
        ("prediction", &request.prediction, &[]),
        ("verbosity", &request.verbosity, &["\"medium\""]),
        ("web_search_options", &request.web_search_options, &[]),
    ])?;
    let reported = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some_and(|k| k > 0) && !reported {
        return Err(ApiError::bad("top_logprobs", "requires logprobs = true"));
    }
    if request.top_logprobs.is_some_and(|k| k > params::MAX_LOGPROBS) {
        return Err(ApiError::bad("top_logprobs", format!("must be 0 to {}", params::MAX_LOGPROBS)));
    }
    match &request.reasoning_effort {
        Some(effort) if !EFFORTS.contains(&effort.as_str()) => {
            Err(ApiError::bad("reasoning_effort", format!("must be one of {}", EFFORTS.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Parses the conversation. A text of a required form, calls included, allows no thoughts, so templates that can omit
/// them are asked to.
fn conversation(request: &mut ChatRequest, tools: &Tools, formed: bool, max_bytes: usize) -> ApiResult<Conversation> {
    let turns = turns::turns(std::mem::take(&mut request.messages), "messages")?;
    let mut kwargs = turns::kwargs(request.chat_template_kwargs.as_ref())?;
    if formed && request.reasoning_effort.is_none() {
        kwargs.entry("enable_thinking").or_insert(false.into());
    }
    let effort = request.reasoning_effort.take();
    let conversation = Conversation { turns, tools: tools.offered.clone(), kwargs, effort };
    check_size(conversation.bytes(), "messages", max_bytes)?;
    Ok(conversation)
}

/// Validates a request, renders its conversation and starts the generation.
///
/// # Errors
/// 400 at the invalid field; errors of the model, the budget and the engine.
pub async fn begin(
    services: &Arc<Services>,
    request_id: &str,
    admin: bool,
    mut request: ChatRequest,
) -> ApiResult<(Running, StartedChat)> {
    let limits = &services.config.limits;
    check(&request)?;
    let mut sampling = request.sampling(limits)?;
    let tools = turns::tools(request.tools.as_ref(), request.tool_choice.as_ref(), request.parallel_tool_calls)?;
    let forced = matches!(tools.choice, Choice::Forced(_));
    if let Some(constraint) = sampling.constraint.as_ref().filter(|_| forced) {
        let message = format!(
            "{} requires a form of the text, which cannot be calls of tools at the same time; give one of them",
            constraint.field
        );
        return Err(ApiError::bad("tool_choice", message));
    }
    let formed = forced || sampling.constraint.is_some();
    let conversation = conversation(&mut request, &tools, formed, limits.prompt_bytes)?;
    let max_tokens = max_tokens(&request)?;
    let reported = request.logprobs.unwrap_or(false);
    let n = params::check_samples("n", 1, request.n.unwrap_or(1), limits)?;
    let seed = match &request.seed {
        Some(given) => params::seed(given)?,
        None => services.random.seed(),
    };
    // A soft prompt belongs to one base, so such a request never goes to the canary.
    let name = request.model.as_deref().or(request.prompt_adapter.as_ref().map(|_| "active"));
    let model = complete::route(services, name, admin).await?;
    let engine = services.engine()?;
    check_bias(&sampling, &model)?;
    if reported {
        params::needs_ids("logprobs", &model)?;
    }
    let before = request.add_special_tokens.unwrap_or(false);
    if before {
        params::needs_ids("add_special_tokens", &model)?;
    }
    let top = request.top_logprobs.map_or(0, |k| k as usize);
    let drawing = |max_tokens: usize| Drawing {
        prompts: 1,
        drawn: n,
        returned: n,
        max_tokens: max_tokens.min(model.max_context),
        alternatives: reported.then_some(top),
    };
    // Unsupported fields are refused before the conversation is parsed.
    drawing(max_tokens.unwrap_or(0)).check(if top > 0 { "top_logprobs" } else { "logprobs" })?;
    let (mut prompt, dialect) = prompt(engine.as_ref(), &model, &conversation, max_tokens.is_some()).await?;
    if before && let PromptInput::Ids(ids) = &mut prompt {
        ids.splice(0..0, model.before_text.iter().copied());
    }
    let adapter = complete::resolve_adapter(services, request.prompt_adapter.as_deref(), &model).await?;
    let room = prompt.room(&model).saturating_sub(adapter.as_ref().map_or(0, |a| a.tokens)).max(1);
    let max_tokens = max_tokens.unwrap_or(room.min(services.live().config.limits.default_chat_tokens));
    if sampling.min_tokens > max_tokens {
        return Err(ApiError::bad("min_tokens", "must be at most max_tokens"));
    }
    drawing(max_tokens).check(if top > 0 { "top_logprobs" } else { "logprobs" })?;
    if let Choice::Forced(functions) = &tools.choice {
        sampling.constraint = Some(Arc::new(calls(&dialect, functions, tools.parallel)?));
    }
    let read_tools = tools.offered.is_some() && (forced || sampling.constraint.is_none());
    let tags = dialect.tools.clone().filter(|_| read_tools);
    let thinking = dialect.thinking.clone().filter(|_| sampling.constraint.is_none());
    let shown = Dialect { tools: tags.clone(), thinking: thinking.clone() }.shown();
    let start = Start {
        request_id: request_id.to_owned(),
        model: model.clone(),
        prompt,
        stored_as: StoredAs::Request(conversation.stored(), "chat"),
        n,
        params: SamplingParams { max_tokens, seed, logprobs: Some(top), shown, ..sampling },
        prompt_logprobs: None,
        adapter,
    };
    let running = complete::start(services, start).await?;
    Ok((running, StartedChat { model, engine, seed, thinking, tools: tags }))
}

/// The token ids of a request's rendered conversation, and the model.
///
/// # Errors
/// As [`begin`].
pub async fn rendered(
    services: &Arc<Services>,
    admin: bool,
    mut request: ChatRequest,
) -> ApiResult<(Vec<u32>, Arc<ServedModel>)> {
    check(&request)?;
    let tools = turns::tools(request.tools.as_ref(), request.tool_choice.as_ref(), request.parallel_tool_calls)?;
    let formed = matches!(tools.choice, Choice::Forced(_));
    let conversation = conversation(&mut request, &tools, formed, services.config.limits.prompt_bytes)?;
    let model = complete::route(services, request.model.as_deref(), admin).await?;
    params::needs_ids("model", &model)?;
    let prompt = services.engine()?.conversation_prompt(Some(&model.version.id), &conversation).await?;
    Ok((prompt.ids, model))
}

/// The rendered conversation, and how its answers are parsed.
async fn prompt(
    engine: &dyn Generator,
    model: &ServedModel,
    conversation: &Conversation,
    limited: bool,
) -> ApiResult<(PromptInput, Dialect)> {
    if model.takes_text {
        if let Some(field) = conversation.asks_for() {
            params::needs_ids(field, model)?;
        }
        let prompt = PromptInput::chat(engine, model, &conversation.stored(), limited).await?;
        return Ok((prompt, Dialect::default()));
    }
    let ChatPrompt { ids, dialect } = engine.conversation_prompt(Some(&model.version.id), conversation).await?;
    Ok((PromptInput::Ids(ids), dialect))
}

/// The grammar of an answer that calls some of these functions.
fn calls(dialect: &Dialect, functions: &[(String, Value)], parallel: bool) -> ApiResult<Constraint> {
    let Some(tags) = &dialect.tools else {
        return Err(ApiError::bad("tools", "this model cannot be made to call tools").code("unsupported_parameter"));
    };
    let grammar = tags.grammar(&Grammar { tools: functions, parallel });
    Ok(Constraint { field: "tools", kind: ConstraintKind::Grammar(grammar) })
}
