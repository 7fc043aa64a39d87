//! Completing a prompt: starts a generation, reads its events, and stores the completions with their version.

use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument;

use super::prompts::prompt_record;
use super::{Result, ServiceError, Services, uncancelled};
use crate::domain::{
    ApiKeyId, Completion, CompletionId, CompletionOrigin, Message, ModelKind, ModelState, ModelVersionId, ProjectId,
    Prompt, TRACE,
};
use crate::engine::{
    EngineError, FinishReason, GenEvent, GenerateRequest, Generation, Generator, SamplingParams, ServedModel, TextForm,
    TextPrompt, TokenLogprob,
};

/// Number of preceding ids that are kept to decode a token in its context.
pub const CONTEXT: usize = 8;

/// A prompt in its model's input form.
pub enum PromptInput {
    Ids(Vec<u32>),
    Text(TextPrompt),
}

impl PromptInput {
    /// The ids of raw text, or the text itself if the model takes text.
    ///
    /// # Errors
    /// Errors of the tokenizer.
    pub async fn raw(engine: &dyn Generator, model: &ServedModel, text: &str, form: TextForm<'_>) -> Result<Self> {
        if model.takes_text {
            return Ok(Self::Text(TextPrompt::Raw(text.to_owned())));
        }
        Ok(Self::Ids(engine.tokenize(Some(&model.version.id), text, form).await?))
    }

    /// A conversation as the model's template renders it. `limited`: the request has a maximum length.
    ///
    /// # Errors
    /// Errors of the template.
    pub async fn chat(
        engine: &dyn Generator,
        model: &ServedModel,
        messages: &[Message],
        limited: bool,
    ) -> Result<Self> {
        if model.takes_text {
            return Ok(Self::Text(TextPrompt::Chat { messages: messages.to_vec(), limited }));
        }
        Ok(Self::Ids(engine.chat_prompt(Some(&model.version.id), messages).await?))
    }

    /// Number of tokens; 0 when it is not known.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Text(_) => 0,
        }
    }

    /// Tokens of the context that are left for the completion, if that is known.
    pub fn room(&self, model: &ServedModel) -> usize {
        match self {
            Self::Ids(ids) => model.max_context.saturating_sub(ids.len()),
            Self::Text(_) => model.max_context,
        }
    }
}

/// One prompt to be completed `n` times.
pub struct Start {
    pub request_id: String,
    pub model: Arc<ServedModel>,
    pub prompt: PromptInput,
    /// How the prompt is stored.
    pub stored_as: StoredAs,
    pub n: usize,
    pub params: SamplingParams,
    pub prompt_logprobs: Option<usize>,
    pub adapter: Option<Adapter>,
}

/// How a prompt is stored.
pub enum StoredAs {
    /// A request by this route (`completions` or `chat`).
    Request(Vec<Message>, &'static str),
    /// The prompt is stored already, such as that of a set.
    Known(Box<Prompt>),
}

/// A soft prompt before the prompt, loaded in the engine.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub id: ModelVersionId,
    pub name: String,
    /// Positions of the context that it occupies.
    pub tokens: usize,
}

/// One of the `n` samples, as far as it is generated.
#[derive(Clone, Debug)]
pub struct Sample {
    pub id: CompletionId,
    pub text: String,
    pub tokens: Vec<TokenLogprob>,
    pub finish: Option<FinishReason>,
}

impl Sample {
    /// Log-probability per token, the measure `best_of` chooses by.
    pub fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.tokens.iter().filter_map(|t| t.logprob).map(f64::from).sum();
        sum / self.tokens.len().max(1) as f64
    }
}

/// A running generation. Dropping it frees its slots and stores the partial text as aborted.
pub struct Running {
    services: Arc<Services>,
    generation: Generation,
    stored_as: StoredAs,
    request_id: String,
    params: SamplingParams,
    /// Whether the request has a maximum length; otherwise an upstream server's default applies.
    limited: bool,
    adapter: Option<Adapter>,
    pub prompt_tokens: usize,
    /// The last ids of the prompt.
    tail: Vec<u32>,
    /// Number of sampled tokens, when the deltas carry none.
    counted: usize,
    /// Log-probs of the prompt, if they were requested.
    pub prompt: Vec<TokenLogprob>,
    pub samples: Vec<Sample>,
    started: Instant,
    last_token: Option<Instant>,
    /// Not charged yet.
    pays: Option<ApiKeyId>,
    /// Whether the samples were stored or must not be stored.
    settled: bool,
    /// Span from the admission to the last token.
    span: tracing::Span,
}

/// The version that answers a request: the one `model` names, else the canary's candidate if this request falls into
/// its share, else the active one. `"active"` names the active one; `"default"` names none.
///
/// # Errors
/// As [`resolve_model`].
pub async fn route(services: &Services, model: Option<&str>, may_load: bool) -> Result<Arc<ServedModel>> {
    if matches!(model, None | Some("" | "default"))
        && let Some(candidate) = super::live::canary_for(services)
    {
        return Ok(candidate);
    }
    resolve_model(services, model, may_load).await
}

/// The active version, or the one `model` names.
///
/// # Errors
/// `UnknownModel` when nothing loaded has this name or id; with `may_load` (admins) a stored policy, the built-in model
/// or a pulled one is loaded on demand.
pub async fn resolve_model(services: &Services, model: Option<&str>, may_load: bool) -> Result<Arc<ServedModel>> {
    resolve_model_at(services, model, may_load, "model").await
}

/// As `resolve_model`, for a model that is named in the field `param`.
///
/// # Errors
/// As `resolve_model`.
pub async fn resolve_model_at(
    services: &Services,
    model: Option<&str>,
    may_load: bool,
    param: &str,
) -> Result<Arc<ServedModel>> {
    let engine = services.engine()?;
    let name = match model {
        None | Some("" | "active" | "default") => return engine.active().ok_or(EngineError::NotReady.into()),
        Some(name) => name,
    };
    let matches = |m: &Arc<ServedModel>| m.version.name == name || m.version.id.as_str() == name;
    if let Some(found) = engine.active().filter(matches).or_else(|| engine.loaded().into_iter().find(matches)) {
        return Ok(found);
    }
    let version = match may_load {
        true => super::register::find_or_register(services, name, Some(ModelKind::Policy), Some(param)).await?,
        false => super::register::find(services, name, Some(ModelKind::Policy), Some(param)).await?,
    };
    if version.kind != ModelKind::Policy {
        let message = format!("{} is of kind {}, not a language model", version.name, version.kind);
        return Err(super::bad_input(param, message));
    }
    if !may_load {
        let message = super::register::not_loaded(&version.name);
        return Err(ServiceError::UnknownModel { message, param: Some(param.to_owned()) });
    }
    Ok(engine.load(&version).await?)
}

/// The soft prompt that a request names, made ready for `model`.
///
/// # Errors
/// `NotFound` and `BadInput` at `prompt_adapter`: no such version, a version of another kind, another base.
pub async fn resolve_adapter(services: &Services, name: Option<&str>, model: &ServedModel) -> Result<Option<Adapter>> {
    const FIELD: &str = "prompt_adapter";
    let Some(name) = name else { return Ok(None) };
    let version = super::register::find(services, name, Some(ModelKind::PromptAdapter), Some(FIELD)).await?;
    if version.kind != ModelKind::PromptAdapter {
        return Err(super::bad_input(FIELD, format!("{} is a {}, not a prompt adapter", version.name, version.kind)));
    }
    if version.state == ModelState::Retired {
        return Err(super::bad_input(FIELD, format!("{} is retired", version.name)));
    }
    let tokens = services.engine()?.load_soft_prompt(&version, model).await?;
    Ok(Some(Adapter { id: version.id, name: version.name, tokens }))
}

/// Admits the request, or refuses it before any computation.
///
/// # Errors
/// `Engine(TooLong)` when prompt and `max_tokens` do not fit the context; errors of the engine.
pub async fn start(services: &Arc<Services>, start: Start) -> Result<Running> {
    let Start { request_id, model, prompt, stored_as, n, mut params, prompt_logprobs, adapter } = start;
    let source = match &stored_as {
        StoredAs::Request(_, source) => *source,
        StoredAs::Known(_) => "page",
    };
    let (prompt_ids, text) = match prompt {
        PromptInput::Ids(ids) => {
            let context = model.max_context - adapter.as_ref().map_or(0, |a| a.tokens);
            check_fit(&model, context, &ids, &params, source)?;
            (ids, None)
        }
        PromptInput::Text(text) => {
            // Log-probs that are only to be stored are not requested from models that have none.
            params.logprobs = params.logprobs.filter(|k| *k > 0);
            (Vec::new(), Some(text))
        }
    };
    let limited = !matches!(text, Some(TextPrompt::Chat { limited: false, .. }));
    let prompt_tokens = prompt_ids.len();
    let tail = prompt_ids[prompt_tokens.saturating_sub(CONTEXT)..].to_vec();
    let request = GenerateRequest {
        request_id: request_id.clone(),
        version: Some(model.version.id.clone()),
        prompt_ids,
        n,
        params: params.clone(),
        prompt_logprobs,
        prompt_from: 0,
        soft_prompt: adapter.as_ref().map(|a| a.id.clone()),
        background: super::urgency::is_background(),
    };
    let engine = services.engine()?;
    let started = Instant::now();
    let span = tracing::trace_span!(
        target: TRACE,
        "generate",
        model.name = %model.version.name,
        samples = n,
        prompt.tokens = prompt_tokens,
        completion.tokens = tracing::field::Empty
    );
    let admitted = async {
        match text {
            None => engine.generate(request).await,
            Some(text) => engine.generate_text(request, text).await,
        }
    };
    let generation = admitted.instrument(span.clone()).await?;
    metrics::counter!("instructd_prompt_tokens_total").increment(prompt_tokens as u64);
    let samples = (0..n)
        .map(|_| Sample { id: CompletionId::new(), text: String::new(), tokens: Vec::new(), finish: None })
        .collect();
    Ok(Running {
        services: services.clone(),
        generation,
        stored_as,
        request_id,
        params,
        limited,
        adapter,
        prompt_tokens,
        tail,
        counted: 0,
        prompt: Vec::new(),
        samples,
        started,
        last_token: None,
        pays: super::meter::payer(),
        settled: false,
        span,
    })
}

/// Refuses prompts that do not fit the model.
fn check_fit(model: &ServedModel, context: usize, ids: &[u32], params: &SamplingParams, source: &str) -> Result<()> {
    let prompt_param = if source == "completions" { "prompt" } else { "messages" };
    if ids.is_empty() {
        return Err(too_long(prompt_param, "the prompt has no tokens".into()));
    }
    if ids.len() > context || (params.max_tokens > 0 && ids.len() == context) {
        let message = format!("the prompt has {} tokens; the model's context holds {context}", ids.len());
        return Err(too_long(prompt_param, message));
    }
    if ids.len() + params.max_tokens > context {
        let message = format!(
            "{} prompt tokens and max_tokens {} are more than the model's context of {context}",
            ids.len(),
            params.max_tokens
        );
        return Err(too_long("max_tokens", message));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= model.vocab_size) {
        let message = format!("token id {id} is outside the model's vocabulary of {}", model.vocab_size);
        return Err(EngineError::BadRequest { param: prompt_param, message }.into());
    }
    Ok(())
}

fn too_long(param: &'static str, message: String) -> ServiceError {
    EngineError::TooLong { param, message }.into()
}

impl Running {
    pub fn model(&self) -> &Arc<ServedModel> {
        &self.generation.version
    }

    pub fn version_id(&self) -> &ModelVersionId {
        &self.generation.version.version.id
    }

    pub fn seed(&self) -> u64 {
        self.params.seed
    }

    /// The last ids of the prompt, which precede the first sampled token.
    pub fn prompt_tail(&self) -> &[u32] {
        &self.tail
    }

    /// The ids that precede the last `n` tokens of a sample.
    pub fn left_of(&self, index: usize, n: usize) -> Vec<u32> {
        let drawn = self.samples.get(index).map_or(&[] as &[TokenLogprob], |s| &s.tokens);
        let before = &drawn[..drawn.len().saturating_sub(n)];
        let near = before[before.len().saturating_sub(CONTEXT)..].iter().map(|t| t.id);
        self.tail.iter().copied().chain(near).collect()
    }

    pub fn generated_tokens(&self) -> usize {
        self.counted + self.samples.iter().map(|s| s.tokens.len()).sum::<usize>()
    }

    fn tokens(&self) -> usize {
        self.prompt_tokens + self.generated_tokens()
    }

    pub fn finished(&self) -> bool {
        self.samples.iter().all(|s| s.finish.is_some())
    }

    /// The next event, already added to `samples`; `None` once every sample has finished.
    ///
    /// # Errors
    /// Errors of the engine; `Failed` when it ends without finishing.
    pub async fn next(&mut self) -> Result<Option<GenEvent>> {
        if self.finished() {
            return Ok(None);
        }
        let Some(event) = self.generation.events.recv().await else {
            return Err(EngineError::Failed("the generation ended early".into()).into());
        };
        match &event {
            GenEvent::Prompt { tokens } => self.prompt.clone_from(tokens),
            GenEvent::Delta { index, text, tokens } => {
                self.observe(text, tokens.len());
                if let Some(sample) = self.samples.get_mut(*index) {
                    sample.text.push_str(text);
                    sample.tokens.extend_from_slice(tokens);
                }
            }
            GenEvent::Finish { index, reason } => {
                if let Some(sample) = self.samples.get_mut(*index) {
                    sample.finish = Some(*reason);
                }
            }
            GenEvent::Usage { prompt_tokens, completion_tokens } => {
                metrics::counter!("instructd_prompt_tokens_total").increment(*prompt_tokens as u64);
                metrics::counter!("instructd_generated_tokens_total").increment(*completion_tokens as u64);
                self.prompt_tokens = *prompt_tokens;
                self.counted = *completion_tokens;
            }
            GenEvent::Failed { error } => return Err(error.clone().into()),
        }
        Ok(Some(event))
    }

    fn observe(&mut self, text: &str, tokens: usize) {
        metrics::counter!("instructd_generated_tokens_total").increment(tokens as u64);
        // Deltas without tokens come from an upstream server, about one for each token.
        let tokens = if tokens == 0 && !text.is_empty() { 1 } else { tokens };
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => metrics::histogram!("instructd_time_to_first_token_seconds").record(now - self.started),
            // Samples of one request are decoded together: for each sample the time between tokens is n times longer.
            Some(before) => metrics::histogram!("instructd_inter_token_latency_seconds")
                .record((now - before).as_secs_f64() * self.samples.len() as f64 / tokens as f64),
        }
    }

    /// Reads events until the generation ends.
    pub async fn finish(&mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Stores the samples that have text and satisfy `keep` (all of them when streaming).
    pub async fn store(&mut self, keep: impl Fn(&Sample) -> bool) -> Result<()> {
        self.pay().await?;
        if !self.services.config.server.store_completions {
            self.settled = true;
            return Ok(());
        }
        self.store_always(keep).await
    }

    /// Called before the response, so that the caller's next request finds the tokens charged.
    async fn pay(&mut self) -> Result<()> {
        match self.pays.take() {
            Some(key) => super::meter::charge_to(&self.services, &key, self.tokens()).await,
            None => Ok(()),
        }
    }

    /// Stores the samples even if serving does not store completions, because sets need them.
    pub async fn store_always(&mut self, keep: impl Fn(&Sample) -> bool) -> Result<()> {
        self.pay().await?;
        self.settled = true;
        match self.record(keep) {
            Some(answers) => {
                let span =
                    tracing::trace_span!(target: TRACE, parent: &self.span, "store", completions = answers.1.len());
                write(self.services.clone(), answers).instrument(span).await
            }
            None => Ok(()),
        }
    }

    fn record(&self, keep: impl Fn(&Sample) -> bool) -> Option<Answers> {
        let now = self.services.now();
        let (prompt, served) = match &self.stored_as {
            StoredAs::Request(messages, source) => {
                (prompt_record(&ProjectId::first(), messages.clone(), source, now), Some(*source))
            }
            StoredAs::Known(prompt) => ((**prompt).clone(), None),
        };
        let mut sampling = serde_json::to_value(&self.params).unwrap_or_default();
        if !self.limited {
            sampling["max_tokens"] = serde_json::Value::Null;
        }
        if let Some(constraint) = &self.params.constraint {
            // The tokens were not sampled from the distribution of their log-probs.
            sampling["constrained"] = serde_json::json!(constraint.kind.name());
        }
        if let Some(adapter) = &self.adapter {
            // The soft prompt is part of the policy that generated the text.
            sampling["prompt_adapter"] = serde_json::json!(adapter.id);
        }
        let completions: Vec<Completion> = self
            .samples
            .iter()
            .filter(|s| !s.text.is_empty() && keep(s))
            .map(|s| Completion {
                id: s.id.clone(),
                prompt_id: prompt.id.clone(),
                model_version_id: Some(self.version_id().clone()),
                origin: CompletionOrigin::Model,
                parent_completion_id: None,
                text: s.text.clone(),
                token_ids: s.tokens.iter().map(|t| t.id).collect(),
                logprobs: s.tokens.iter().filter_map(|t| t.logprob).collect(),
                sampling: sampling.clone(),
                seed: Some(self.params.seed),
                finish_reason: Some(s.finish.unwrap_or(FinishReason::Abort).as_str().to_owned()),
                request_id: Some(self.request_id.clone()),
                reward: None,
                created: now,
            })
            .collect();
        (!completions.is_empty()).then_some((prompt, completions, served))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.span.record("completion.tokens", self.generated_tokens());
        // Tokens that were sampled before the client disconnected or before a failure are charged too.
        if let (Some(key), Ok(runtime)) = (self.pays.take(), tokio::runtime::Handle::try_current()) {
            let (services, tokens) = (self.services.clone(), self.tokens());
            runtime.spawn(async move {
                if let Err(error) = super::meter::charge_to(&services, &key, tokens).await {
                    tracing::warn!(%error, "tokens were not charged");
                }
            });
        }
        if self.settled || !self.services.config.server.store_completions {
            return;
        }
        // The client disconnected: the partial text is stored, so that feedback on it can refer to it.
        if let (Some(answers), Ok(runtime)) = (self.record(|_| true), tokio::runtime::Handle::try_current()) {
            let services = self.services.clone();
            runtime.spawn(async move {
                if let Err(error) = write(services, answers).await {
                    tracing::warn!(%error, "an aborted completion was not stored");
                }
            });
        }
    }
}

/// (prompt, its completions, the request's route).
type Answers = (Prompt, Vec<Completion>, Option<&'static str>);

async fn write(services: Arc<Services>, (prompt, completions, served): Answers) -> Result<()> {
    uncancelled(async move { Ok(services.store.completions().put_answers(prompt, completions, served).await?) }).await
}
