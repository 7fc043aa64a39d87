//! `POST /v1/choices`: the probabilities of given answers, zero- or few-shot, optionally calibrated.

use std::collections::BTreeSet;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::observe::RequestId;
use super::openai::TokenUsage;
use super::openai::chat_request::{self, ChatMessage};
use crate::config::LimitsConfig;
use crate::domain::{Message, ModelVersionId};
use crate::engine::{Generator, ServedModel, TextForm};
use crate::eval::choices::{Normalize, Scored};
use crate::prompt::{Gap, LabelTemplate, Shots};
use crate::service::budget::{self, Cases};
use crate::service::choices::{Context, Label, Question, answer};
use crate::service::complete::{resolve_adapter, resolve_model};
use crate::service::prompts::check_size;

/// Content-free inputs of contextual calibration (arXiv 2102.09690).
const CONTENT_FREE: [&str; 3] = ["N/A", "[MASK]", ""];
const MOST_EXAMPLES: usize = 256;

/// Exactly one of `prompt`, `messages` and `template` is required. Unknown fields are refused.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChoicesRequest {
    /// Name or id of a model version; absent = the active policy.
    pub model: Option<String>,
    /// A text, or token ids. A run of three or more underscores in a text is a blank: the whole text is then
    /// scored with each choice in it. Else choices follow the prompt.
    #[schemars(with = "Option<Value>")]
    pub prompt: Option<Value>,
    /// A conversation; choices are the assistant's next message.
    pub messages: Option<Vec<ChatMessage>>,
    /// A pattern with `{input}` and `{label}`, such as "Review: {input}\nSentiment: {label}".
    pub template: Option<String>,
    /// The text for `{input}`.
    pub input: Option<String>,
    /// Text before everything else; with `template`.
    pub instruction: Option<String>,
    /// Few-shot examples; with `template` or `messages`.
    pub examples: Vec<ChoiceExample>,
    /// Text between examples. Default: an empty line.
    pub separator: Option<String>,
    /// The answers to choose from.
    pub choices: Option<Vec<String>>,
    /// Instead of `choices`: label → the words that express it; their probabilities are added.
    #[schemars(with = "Option<std::collections::BTreeMap<String, Vec<String>>>")]
    pub verbalizers: Option<Map<String, Value>>,
    /// `none` (default: the sum of log-probs), `tokens` or `bytes` (their mean).
    pub normalize: Normalize,
    /// Subtract each choice's score in a content-free prompt.
    pub calibrate: Option<bool>,
    /// Content-free texts: inputs for `template`, last user messages for `messages`, whole prompts for `prompt` (the
    /// text before the blank, if it has one). Averaged. Default: "N/A", `[MASK]` and, with
    /// `template`, "".
    pub content_free: Option<Vec<String>>,
    /// Name or id of a soft prompt, put before the prompt.
    pub prompt_adapter: Option<String>,
    /// Also return the log-prob of every scored token.
    pub logprobs: Option<bool>,
    /// Add the begin token that the model expects. Default true. With `prompt` and `template`.
    pub add_special_tokens: Option<bool>,
    /// Read special tokens written in the text as those tokens, the choices included. Default false.
    pub parse_special: Option<bool>,
    /// Accepted, without effect.
    pub user: Option<Value>,
    /// The newer name of `user`. Accepted, without effect.
    pub safety_identifier: Option<Value>,
}

/// A few-shot example.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceExample {
    pub input: String,
    /// One of the labels; the first of its words is inserted.
    pub label: String,
}

/// The choices, the most likely first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedChoices {
    #[schemars(extend("const" = "choices"))]
    pub object: &'static str,
    pub model: String,
    /// Label of the most likely choice.
    pub answer: Option<String>,
    pub choices: Vec<RankedChoice>,
    pub usage: TokenUsage,
    pub instructd: ChoicesOrigin,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RankedChoice {
    /// Position in the request.
    pub index: usize,
    pub label: String,
    /// Among the choices.
    pub probability: f64,
    /// Log-probs of its words, normalized as requested, minus `calibration`.
    pub score: f64,
    /// The choice's score in content-free prompts; null unless calibrated.
    pub calibration: Option<f64>,
    pub words: Vec<ScoredWord>,
}

/// A text that expresses a choice.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScoredWord {
    pub text: String,
    pub logprob: f64,
    pub logprob_per_token: f64,
    pub tokens: usize,
    /// Only with `logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_logprobs: Option<Vec<f64>>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ChoicesOrigin {
    pub model_version: ModelVersionId,
    /// Id of the soft prompt.
    pub prompt_adapter: Option<ModelVersionId>,
}

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(mut request): Json<ChoicesRequest>,
) -> ApiResult<axum::Json<RankedChoices>> {
    let services = &state.services;
    let limits = &services.config.limits;
    let labels = labels(&mut request)?;
    let examples = examples(&request, &labels)?;
    if request.calibrate == Some(false) && request.content_free.is_some() {
        return Err(ApiError::bad("content_free", "requires calibrate = true"));
    }
    let calibrated = request.calibrate.unwrap_or(request.content_free.is_some());
    let free = match request.content_free.take() {
        Some(list) if list.is_empty() || list.len() > 16 => {
            return Err(ApiError::bad("content_free", "must be 1 to 16 texts"));
        }
        Some(list) => list,
        None if request.template.is_some() => CONTENT_FREE.map(str::to_owned).to_vec(),
        None => CONTENT_FREE[..2].iter().map(|t| (*t).to_owned()).collect(),
    };
    let free: &[String] = if calibrated { &free } else { &[] };
    let form = Form::new(&mut request, examples, limits)?;
    check_size(free.iter().map(String::len).sum(), "content_free", limits.prompt_bytes)?;
    // Checked before anything is built.
    let mut contexts = vec![form.cases(None)];
    contexts.extend(free.iter().map(|text| form.cases(Some(text))));
    for cases in &contexts {
        cases.check(limits)?;
    }
    let contexts: Vec<usize> = contexts.iter().map(Cases::bytes).collect();
    let words: Vec<usize> = labels.iter().flat_map(|l| &l.words).map(String::len).collect();
    budget::choices(&contexts, &words)?;
    let model = resolve_model(services, request.model.as_deref(), caller.is_admin()).await?;
    let adapter = resolve_adapter(services, request.prompt_adapter.as_deref(), &model).await?;
    let engine = services.engine()?;
    let special = request.add_special_tokens.unwrap_or(true);
    let text = TextForm::Open { special, parse_special: request.parse_special.unwrap_or(false) };
    let context = form.context(engine.as_ref(), &model, None, text).await?;
    let mut content_free = Vec::with_capacity(free.len());
    for content in free {
        content_free.push(form.context(engine.as_ref(), &model, Some(content), text).await?);
    }
    let normalize = request.normalize;
    let question = Question { request_id, model, adapter, context, content_free, labels, normalize };
    let found = answer(services, &question).await?;
    let mut choices = Vec::new();
    for decided in &found.ranking {
        let label = &question.labels[decided.index];
        let words: Vec<ScoredWord> = label
            .words
            .iter()
            .zip(&found.words[decided.index])
            .map(|(text, scored)| word(text, scored, request.logprobs.unwrap_or(false)))
            .collect();
        choices.push(RankedChoice {
            index: decided.index,
            label: label.name.clone(),
            probability: decided.probability,
            score: finite(decided.score),
            calibration: calibrated.then(|| finite(decided.offset)),
            words,
        });
    }
    Ok(axum::Json(RankedChoices {
        object: "choices",
        model: question.model.version.name.clone(),
        answer: choices.first().map(|c| c.label.clone()),
        choices,
        usage: TokenUsage::new(found.tokens, 0),
        instructd: ChoicesOrigin {
            model_version: question.model.version.id.clone(),
            prompt_adapter: question.adapter.as_ref().map(|a| a.id.clone()),
        },
    }))
}

/// JSON has no −∞, so it becomes null.
fn finite(value: f64) -> f64 {
    value.max(f64::from(f32::MIN))
}

fn word(text: &str, scored: &Scored, tokens: bool) -> ScoredWord {
    ScoredWord {
        text: text.to_owned(),
        logprob: finite(scored.sum()),
        logprob_per_token: finite(scored.per_token()),
        tokens: scored.logprobs.len(),
        token_logprobs: tokens.then(|| scored.logprobs.iter().map(|l| finite(f64::from(*l))).collect()),
    }
}

fn labels(request: &mut ChoicesRequest) -> ApiResult<Vec<Label>> {
    let labels: Vec<Label> = match (request.choices.take(), request.verbalizers.take()) {
        (Some(choices), None) => choices.into_iter().map(|c| Label { name: c.clone(), words: vec![c] }).collect(),
        (None, Some(map)) => map.into_iter().map(|(name, words)| verbalizer(name, words)).collect::<ApiResult<_>>()?,
        _ => return Err(ApiError::bad("choices", "give either choices or verbalizers")),
    };
    if !(1..=256).contains(&labels.len()) {
        return Err(ApiError::bad("choices", "must be 1 to 256"));
    }
    let mut seen = BTreeSet::new();
    for (i, label) in labels.iter().enumerate() {
        for text in &label.words {
            if text.is_empty() || text.len() > 4096 {
                return Err(ApiError::bad(format!("choices[{i}]"), "must be a text of 1 to 4096 bytes"));
            }
            if !seen.insert(text.as_str()) {
                return Err(ApiError::bad(format!("choices[{i}]"), "is listed twice"));
            }
        }
    }
    Ok(labels)
}

fn verbalizer(name: String, words: Value) -> ApiResult<Label> {
    let field = format!("verbalizers.{name}");
    let list = match words {
        word @ Value::String(_) => vec![word],
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(ApiError::bad(field, "must be a word or a list of words")),
    };
    let word = |v: Value| v.as_str().map(str::to_owned).ok_or_else(|| ApiError::bad(&field, "must contain texts"));
    Ok(Label { words: list.into_iter().map(word).collect::<ApiResult<_>>()?, name })
}

/// (input, the word inserted for its label).
fn examples(request: &ChoicesRequest, labels: &[Label]) -> ApiResult<Vec<(String, String)>> {
    if request.examples.len() > MOST_EXAMPLES {
        return Err(ApiError::bad("examples", format!("at most {MOST_EXAMPLES}")));
    }
    let one = |(i, example): (usize, &ChoiceExample)| {
        let label = labels.iter().find(|l| l.name == example.label);
        let label = label.ok_or_else(|| ApiError::bad(format!("examples[{i}].label"), "is not one of the choices"))?;
        Ok((example.input.clone(), label.words[0].clone()))
    };
    request.examples.iter().enumerate().map(one).collect()
}

/// The form of the question.
enum Form {
    Ids(Vec<u32>),
    Text(String),
    Blank(Gap),
    Chat {
        messages: Vec<Message>,
        /// Position of the last user message.
        last: usize,
    },
    Template {
        template: LabelTemplate,
        input: String,
        instruction: Option<String>,
        examples: Vec<(String, String)>,
        separator: String,
    },
}

impl Form {
    fn new(request: &mut ChoicesRequest, examples: Vec<(String, String)>, limits: &LimitsConfig) -> ApiResult<Self> {
        let max_bytes = limits.prompt_bytes;
        let only_template = |field: &'static str, given: bool| match given {
            true => Err(ApiError::bad(field, "requires template")),
            false => Ok(()),
        };
        if request.template.is_none() {
            only_template("input", request.input.is_some())?;
            only_template("instruction", request.instruction.is_some())?;
            only_template("separator", request.separator.is_some())?;
        }
        match (request.prompt.take(), request.messages.take(), request.template.take()) {
            (Some(prompt), None, None) => {
                if !examples.is_empty() {
                    return Err(ApiError::bad("examples", "require template or messages"));
                }
                Self::prompt(prompt, max_bytes)
            }
            (None, Some(given), None) => Self::chat(chat_request::messages(given, "messages", max_bytes)?, examples),
            (None, None, Some(template)) => {
                let template = LabelTemplate::new(&template).map_err(|e| ApiError::bad("template", e.to_string()))?;
                let input = request.input.take().ok_or_else(|| ApiError::bad("input", "is missing"))?;
                let separator = request.separator.take().unwrap_or_else(|| "\n\n".to_owned());
                let instruction = request.instruction.take();
                Ok(Self::Template { template, input, instruction, examples, separator })
            }
            _ => Err(ApiError::bad("prompt", "give exactly one of prompt, messages and template")),
        }
    }

    fn prompt(prompt: Value, max_bytes: usize) -> ApiResult<Self> {
        match prompt {
            Value::String(text) => {
                check_size(text.len(), "prompt", max_bytes)?;
                let gap = Gap::find(&text).map_err(|e| ApiError::bad("prompt", e.to_string()))?;
                Ok(gap.map_or(Self::Text(text), Self::Blank))
            }
            Value::Array(list) if !list.is_empty() => {
                let id = |(i, v): (usize, &Value)| {
                    let id = v.as_u64().and_then(|id| u32::try_from(id).ok());
                    id.ok_or_else(|| ApiError::bad(format!("prompt[{i}]"), "is not a token id"))
                };
                Ok(Self::Ids(list.iter().enumerate().map(id).collect::<ApiResult<_>>()?))
            }
            _ => Err(ApiError::bad("prompt", "must be a text or a list of token ids")),
        }
    }

    /// Examples become turns before the last user message.
    fn chat(mut messages: Vec<Message>, examples: Vec<(String, String)>) -> ApiResult<Self> {
        let Some(last) = messages.iter().rposition(|m| m.role == "user") else {
            return Err(ApiError::bad("messages", "must contain a message of the user"));
        };
        let added = examples.len() * 2;
        let turns = examples.into_iter().flat_map(|(input, label)| {
            [("user", input), ("assistant", label)].map(|(role, content)| Message { role: role.to_owned(), content })
        });
        messages.splice(last..last, turns.collect::<Vec<_>>());
        Ok(Self::Chat { messages, last: last + added })
    }

    /// Sizes of the parts of a context, in bytes.
    fn cases(&self, free: Option<&str>) -> Cases {
        let text = |own: usize, rest: usize| Cases { input: free.map_or(own, str::len) + rest, ..Cases::default() };
        match self {
            Self::Ids(ids) => text(size_of_val(ids.as_slice()), 0),
            Self::Text(own) => text(own.len(), 0),
            Self::Blank(gap) => text(gap.before.len(), gap.after.len()),
            Self::Chat { messages, last } => {
                let all: usize = messages.iter().map(|m| m.content.len()).sum();
                let own = messages[*last].content.len();
                Cases { examples: 0, example_bytes: all - own, ..text(own, 0) }
            }
            Self::Template { template, input, instruction, examples, separator } => Cases {
                template: template.bytes(),
                instruction: instruction.as_ref().map_or(0, String::len),
                separator: separator.len(),
                examples: examples.len(),
                example_bytes: examples.iter().map(|(input, words)| input.len() + words.len()).sum(),
                input: free.map_or(input.len(), str::len),
            },
        }
    }

    /// The context of the choices; `free` replaces the content.
    async fn context(
        &self,
        engine: &dyn Generator,
        model: &ServedModel,
        free: Option<&str>,
        form: TextForm<'static>,
    ) -> ApiResult<Context> {
        let text = |before: &str, after: &str| Context::Text {
            gap: Gap { before: before.to_owned(), after: after.to_owned() },
            form,
        };
        Ok(match self {
            Self::Ids(ids) => match free {
                None => Context::Ids(ids.clone()),
                Some(free) => text(free, ""),
            },
            Self::Text(prompt) => text(free.unwrap_or(prompt), ""),
            Self::Blank(gap) => text(free.unwrap_or(&gap.before), &gap.after),
            Self::Chat { messages, last } => {
                let mut messages = std::borrow::Cow::Borrowed(messages);
                if let Some(free) = free {
                    messages.to_mut()[*last].content = free.to_owned();
                }
                Context::Ids(engine.chat_prompt(Some(&model.version.id), &messages).await?)
            }
            Self::Template { template, input, instruction, examples, separator } => {
                let shots = Shots { instruction: instruction.as_deref(), examples, separator };
                Context::Text { gap: template.gap(shots, free.unwrap_or(input)), form }
            }
        })
    }
}
