//! Generation of token ids through upstream servers, and the conversion of texts for it.

use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use futures::future::try_join_all;
use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedSender};

use super::sample::{Sample, Samples};
use super::{Part, Reader, TokenApi, TokenCall, TokenMode, llama_cpp, sglang, vllm};
use crate::domain::{Message, ModelVersionId};
use crate::engine::upstream::address::Address;
use crate::engine::upstream::breaker::Pass;
use crate::engine::upstream::fleet::{Calls, Opened, Seat};
use crate::engine::upstream::http::{Failure, Http};
use crate::engine::upstream::switch::Known;
use crate::engine::upstream::{Shared, Slot, UpstreamEngine, sse};
use crate::engine::{
    ChatPrompt, EngineError, FinishReason, GenEvent, GenerateRequest, Generation, Piece, SamplingParams, TextForm,
    TokenLogprob, Tokens,
};
use crate::prompt::Conversation;

/// Number of tokens that llama.cpp is asked for in one call, so that a client sees text while it is generated and a
/// client that leaves ends the work.
const SLICE: usize = 32;
/// Differences between the seeds of the calls for one sample: an odd number.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A request of token ids, with what was found for it.
struct Job {
    request: GenerateRequest,
    known: Known,
    end_ids: Vec<u32>,
    max_tokens: usize,
}

impl Job {
    fn new(request: GenerateRequest, known: Known) -> Self {
        let params = &request.params;
        let own = if params.ignore_eos { &[] } else { known.served.eos_ids.as_slice() };
        let end_ids = own.iter().chain(&params.stop_token_ids).copied().collect();
        let room = known.served.max_context.saturating_sub(request.prompt_ids.len());
        let max_tokens = params.max_tokens.min(room);
        Self { request, known, end_ids, max_tokens }
    }

    fn top(&self) -> usize {
        self.request.params.logprobs.unwrap_or(0)
    }

    fn calls<'a>(&'a self, calls: &'a [(Address, Value)], samples: usize) -> Calls<'a> {
        Calls { calls, samples, version: &self.known.target.version, blame: "prompt" }
    }

    /// Most tokens of one call. Penalties, constraints and `min_tokens` count the tokens of a call, so such a request
    /// is one call.
    fn slice(&self, api: TokenApi) -> usize {
        let params = &self.request.params;
        let (warpers, plain) = (&params.warpers, SamplingParams::default().warpers);
        let counts = params.constraint.is_some()
            || params.min_tokens > 0
            || warpers.presence_penalty != plain.presence_penalty
            || warpers.frequency_penalty != plain.frequency_penalty
            || warpers.repetition_penalty != plain.repetition_penalty;
        if api.streams() || counts { self.max_tokens } else { SLICE }
    }

    /// Address and body of the call for the tokens of `n` samples after `left`, which were generated before.
    ///
    /// # Errors
    /// `BadRequest` at the parameter that the server does not have.
    fn call(&self, api: TokenApi, first: usize, n: usize, left: &[u32]) -> Result<(Address, Value), EngineError> {
        let ids = [self.request.prompt_ids.as_slice(), left].concat();
        // Calls for one sample must not draw the same random numbers.
        let calls = (left.len() / SLICE) as u64;
        let seed = self.request.params.seed.wrapping_add(first as u64).wrapping_add(calls.wrapping_mul(SEED_STEP));
        api.call(&TokenCall {
            model: &self.known.target.model,
            ids: &ids,
            params: &self.request.params,
            end_ids: &self.end_ids,
            max_tokens: self.slice(api).min(self.max_tokens - left.len()),
            top: self.top(),
            n,
            seed,
            stream: api.streams(),
        })
    }
}

/// One answer that has begun: that of samples `first..first + n`.
struct Answer {
    response: reqwest::Response,
    first: usize,
    n: usize,
}

impl UpstreamEngine {
    /// Generates from token ids. Waits until the servers have accepted the calls, and for log-probs of the prompt.
    ///
    /// # Errors
    /// `BadRequest` where the server lacks what is needed; errors of the servers.
    pub(in crate::engine::upstream) async fn generate_ids(
        &self,
        request: GenerateRequest,
        known: Known,
        slot: Slot,
    ) -> Result<Generation, EngineError> {
        let mode = self.mode.clone().map_err(|why| no_ids("prompt", &why))?;
        if request.soft_prompt.is_some() {
            let message = "an upstream server takes no soft prompts".to_owned();
            return Err(EngineError::BadRequest { param: "prompt_adapter", message });
        }
        let (sender, events) = mpsc::unbounded_channel();
        let prompt_tokens = request.prompt_ids.len();
        let job = Job::new(request, known);
        let version = job.known.served.clone();
        if let Some(top) = job.request.prompt_logprobs {
            let tokens = self.score(&mode, &job, top).await?;
            sender.send(GenEvent::Prompt { tokens }).ok();
        }
        self.shared.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        if job.max_tokens == 0 {
            for index in 0..job.request.n {
                sender.send(GenEvent::Finish { index, reason: FinishReason::Length }).ok();
            }
            return Ok(Generation { version, prompt_tokens, events });
        }
        let (answers, seat) = self.begin(&mode, &job).await?;
        tokio::spawn(async move { slot.0.follow_ids(&mode, &job, answers, seat, &sender).await });
        Ok(Generation { version, prompt_tokens, events })
    }

    async fn begin(&self, mode: &TokenMode, job: &Job) -> Result<(Vec<Answer>, Seat), EngineError> {
        let n = job.request.n;
        let parts: Vec<(usize, usize)> = match mode.api.streams() {
            true => vec![(0, n)],
            false => (0..n).map(|first| (first, 1)).collect(),
        };
        let calls =
            parts.iter().map(|(first, n)| job.call(mode.api, *first, *n, &[])).collect::<Result<Vec<_>, _>>()?;
        let opened = self.shared.switch.fleet.open(&job.calls(&calls, n)).await.map_err(|failure| failure.error)?;
        let answers = parts.into_iter().zip(opened.responses);
        let answers = answers.map(|((first, n), response)| Answer { response, first, n }).collect();
        Ok((answers, opened.seat))
    }

    /// The log-probs of the request's prompt, from `prompt_from` on.
    async fn score(&self, mode: &TokenMode, job: &Job, top: usize) -> Result<Vec<TokenLogprob>, EngineError> {
        let (ids, from) = (&job.request.prompt_ids, job.request.prompt_from);
        let (vocab, model) = (mode.base.vocab_size, &job.known.target.model);
        match mode.api {
            TokenApi::Vllm => {
                let call = vllm::prompt_call(model, ids, top);
                self.scored(job, call, |answer| vllm::read_prompt(answer, ids, from, vocab, top)).await
            }
            TokenApi::Sglang => {
                let call = sglang::prompt_call(ids, from, top);
                self.scored(job, call, |answer| sglang::read_prompt(answer, ids, from, vocab, top)).await
            }
            TokenApi::LlamaCpp => {
                let wanted = ids.len() - from;
                if wanted > llama_cpp::MAX_SCORED {
                    let most = llama_cpp::MAX_SCORED;
                    let message = format!(
                        "log-probs of {wanted} prompt tokens: llama.cpp does not report them, and each is found by a \
                         call of its own, for at most {most}"
                    );
                    return Err(EngineError::BadRequest { param: "logprobs", message });
                }
                let mut tokens = Vec::with_capacity(wanted);
                for at in from..ids.len() {
                    if at == 0 {
                        tokens.push(TokenLogprob { id: ids[0], logprob: None, top: Vec::new() });
                        continue;
                    }
                    let (left, id) = (&ids[..at], ids[at]);
                    let call = llama_cpp::forced_call(left, id, top);
                    tokens.push(self.scored(job, call, |answer| llama_cpp::read_forced(answer, id, vocab, top)).await?);
                }
                Ok(tokens)
            }
        }
    }

    /// The answer to one call that is no stream, as `read` reads it.
    async fn scored<T>(
        &self,
        job: &Job,
        call: (Address, Value),
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, EngineError> {
        let opened = self.shared.switch.fleet.open(&job.calls(&[call], 1)).await.map_err(|failure| failure.error)?;
        let Opened { mut responses, seat } = opened;
        let found = match responses.pop() {
            Some(response) => {
                seat.http().json(response).await.and_then(|answer| read(&answer).map_err(Failure::broken))
            }
            None => Err(Failure::broken("no answer")),
        };
        seat.settle(found.is_err());
        found.map_err(|failure| failure.error)
    }
}

fn no_ids(param: &'static str, why: &str) -> EngineError {
    let message = format!("the token ids of the upstream servers of this model are not used: {why}");
    EngineError::BadRequest { param, message }
}

impl Shared {
    /// Forwards the tokens of all samples until they end, the client leaves, or the deadline of the drain passes.
    async fn follow_ids(
        &self,
        mode: &TokenMode,
        job: &Job,
        answers: Vec<Answer>,
        seat: Seat,
        events: &UnboundedSender<GenEvent>,
    ) {
        let shared = Samples { request: &job.request, events, end_ids: &job.end_ids, max_tokens: job.max_tokens };
        let following = answers.into_iter().map(|answer| {
            let (first, n) = (answer.first, answer.n);
            let samples = (first..first + n).map(|i| Sample::new(i, &mode.base.text, &job.request)).collect();
            let follower = Follower { mode, job, shared: &shared, http: seat.http(), pass: &seat.pass, samples };
            async move { if mode.api.streams() { follower.stream(answer).await } else { follower.slices(answer).await } }
        });
        let ended = tokio::select! {
            // Dropping the responses closes the connections: the upstream server sees its client leave.
            () = events.closed() => return,
            () = self.stop.cancelled() => {
                events.send(GenEvent::Failed { error: EngineError::Draining }).ok();
                return;
            }
            ended = try_join_all(following) => ended,
        };
        seat.settle(ended.is_err());
        match ended {
            Err(failure) => drop(events.send(GenEvent::Failed { error: failure.error })),
            Ok(tokens) => drop(self.generated.fetch_add(tokens.iter().sum::<usize>() as u64, Relaxed)),
        }
    }
}

/// Reads the answer for some samples of a request.
struct Follower<'a> {
    mode: &'a TokenMode,
    job: &'a Job,
    shared: &'a Samples<'a>,
    http: &'a Http,
    pass: &'a Pass,
    samples: Vec<Sample>,
}

impl Follower<'_> {
    /// Reads a stream of events. Returns the number of tokens.
    async fn stream(mut self, answer: Answer) -> Result<usize, Failure> {
        let mut reader = Reader::new(self.mode.api, self.mode.base.vocab_size, self.job.top(), answer.n);
        let (mut response, mut events) = (answer.response, sse::Events::default());
        'stream: while let Some(piece) = self.http.piece(&mut response).await? {
            self.pass.answered();
            for data in events.push(&piece).map_err(Failure::broken)? {
                if data == "[DONE]" {
                    break 'stream;
                }
                let event = serde_json::from_str(&data).map_err(|e| Failure::broken(format!("an event: {e}")))?;
                for Part { index, tokens, finish } in reader.read(&event).map_err(Failure::broken)? {
                    self.samples[index].accept(tokens, self.shared);
                    if let Some(reason) = finish {
                        self.samples[index].finish(reason, self.shared);
                    }
                }
                // A stop string is found here only; the server would go on.
                if self.samples.iter().all(|sample| sample.is_finished) {
                    break 'stream;
                }
            }
        }
        match self.samples.iter().all(|sample| sample.is_finished) {
            true => Ok(self.samples.iter().map(|sample| sample.ids.len()).sum()),
            false => Err(Failure::broken("the stream ended before its samples")),
        }
    }

    /// Reads the answer for one sample and asks for more tokens until it ends. Returns the number of tokens.
    async fn slices(mut self, answer: Answer) -> Result<usize, Failure> {
        let Answer { mut response, first, .. } = answer;
        let [sample] = self.samples.as_mut_slice() else { return Err(Failure::broken("one sample in each call")) };
        let (api, job) = (self.mode.api, self.job);
        loop {
            let wanted = job.slice(api).min(job.max_tokens - sample.ids.len());
            let answer = self.http.json(response).await?;
            self.pass.answered();
            let mut reader = Reader::new(api, self.mode.base.vocab_size, job.top(), 1);
            for Part { tokens, finish, .. } in reader.read(&answer).map_err(Failure::broken)? {
                // With fewer tokens than wanted, the server's own limit was reached.
                let is_last = finish != Some(FinishReason::Length) || tokens.len() < wanted;
                sample.accept(tokens, self.shared);
                if let Some(reason) = finish.filter(|_| is_last) {
                    sample.finish(reason, self.shared);
                }
            }
            if sample.is_finished {
                return Ok(sample.ids.len());
            }
            let (at, body) = job.call(api, first, 1, &sample.ids).map_err(Failure::refused)?;
            response = self.http.open(at, &body, "prompt").await?;
        }
    }
}

#[async_trait]
impl Tokens for UpstreamEngine {
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError> {
        let mode = self.mode_of(version)?;
        mode.tokenizing.tokenize(&mode.base.text, text, form).await
    }

    async fn infill_prompt(
        &self,
        version: Option<&ModelVersionId>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        let mode = self.mode_of(version)?;
        mode.tokenizing.infill_prompt(&mode.base.text, prefix, suffix).await
    }

    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        let mode = self.mode_of(version)?;
        mode.tokenizing.detokenize(&mode.base.text, ids).await
    }

    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError> {
        Ok(self.mode_of(version)?.base.text.pieces(left, tokens))
    }

    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError> {
        let mode = self.mode_of(version)?;
        mode.tokenizing.chat(&mode.base.text, messages).await
    }

    async fn conversation_prompt(
        &self,
        version: Option<&ModelVersionId>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        let mode = self.mode_of(version)?;
        mode.tokenizing.conversation(&mode.base.text, conversation).await
    }
}

impl UpstreamEngine {
    /// The state for a version that is served. All versions have the tokenizer of the model that they were trained from.
    fn mode_of(&self, version: Option<&ModelVersionId>) -> Result<&TokenMode, EngineError> {
        self.find(version)?;
        self.mode.as_deref().map_err(|why| no_ids("model", why))
    }
}
