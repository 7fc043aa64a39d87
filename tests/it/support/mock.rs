//! A generator without a model: deterministic text from prompt and seed, for tests of HTTP and for
//! measuring what HTTP itself costs. Its tokens are bytes: id = byte value, 256 = end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use instructd::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use instructd::engine::*;

const EOS: u32 = 256;
const VOCABULARY: usize = 257;
const WORDS: &[&str] = &["the", "river", "slowly", "carries", "light", "über", "stones", "and", "雨", "sings"];

/// How the mock behaves.
#[derive(Clone, Debug)]
pub struct MockOptions {
    pub max_context: usize,
    pub delay_per_token: Duration,
    /// Requests running at once before `Overloaded`.
    pub max_running: usize,
    /// Fail the generation after this many tokens.
    pub fail_after: Option<usize>,
}

impl Default for MockOptions {
    fn default() -> Self {
        Self { max_context: 4096, delay_per_token: Duration::ZERO, max_running: 1024, fail_after: None }
    }
}

/// See the module's words.
pub struct MockGenerator {
    options: MockOptions,
    loaded: Mutex<Vec<Arc<ServedModel>>>,
    active: Mutex<Option<ModelVersionId>>,
    running: Arc<AtomicUsize>,
    generated: Arc<AtomicU64>,
    prompted: AtomicU64,
    draining: AtomicBool,
}

impl MockGenerator {
    /// Serves `version` from the start.
    pub fn new(version: ModelVersion, options: MockOptions) -> Self {
        let id = version.id.clone();
        let mock = Self {
            options,
            loaded: Mutex::new(Vec::new()),
            active: Mutex::new(Some(id)),
            running: Arc::default(),
            generated: Arc::default(),
            prompted: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        };
        mock.add(&version);
        mock
    }

    fn add(&self, version: &ModelVersion) -> Arc<ServedModel> {
        let served = Arc::new(ServedModel {
            version: version.clone(),
            vocab_size: VOCABULARY,
            max_context: self.options.max_context,
            takes_text: false,
            eos_ids: vec![EOS],
            weights: "mock".into(),
            parameters: 0,
            has_chat_template: true,
            before_text: Vec::new(),
        });
        lock(&self.loaded).push(served.clone());
        served
    }

    fn find(&self, version: Option<&ModelVersionId>) -> Result<Arc<ServedModel>, EngineError> {
        let Some(id) = version else { return self.active().ok_or(EngineError::NotReady) };
        let found = lock(&self.loaded).iter().find(|m| m.version.id == *id).cloned();
        found.ok_or_else(|| EngineError::UnknownModel(id.to_string()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SplitMix64: enough to choose words.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The text of sample `index`; some texts end by themselves, others run to `max_tokens`.
fn text_of(request: &GenerateRequest, index: usize) -> (Vec<char>, bool) {
    let prompt = request.prompt_ids.iter().fold(7, |h, id| mix(h ^ u64::from(*id)));
    let seed =
        if request.params.warpers.temperature == 0.0 { 0 } else { mix(request.params.seed ^ ((index as u64) << 56)) };
    let mut state = mix(prompt ^ seed);
    let mut text = String::new();
    let words = if request.params.ignore_eos { usize::MAX } else { 4 + (state % 12) as usize };
    let mut n = 0;
    while n < words && text.len() < request.params.max_tokens + 8 {
        state = mix(state);
        text.push_str(WORDS[(state % WORDS.len() as u64) as usize]);
        text.push(' ');
        n += 1;
    }
    (text.chars().collect(), n == words)
}

fn token(id: u32, position: usize, top: Option<usize>) -> TokenLogprob {
    let logprob = -0.1 - (mix(u64::from(id) ^ position as u64) % 100) as f32 / 100.0;
    let alternatives = (0..top.unwrap_or(0) as u32).map(|k| ((id + k) % 256, logprob - k as f32));
    TokenLogprob { id, logprob: Some(logprob), top: alternatives.collect() }
}

/// Counts a request as running until it is dropped.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Task {
    request: GenerateRequest,
    events: mpsc::UnboundedSender<GenEvent>,
    options: MockOptions,
    generated: Arc<AtomicU64>,
    _slot: Slot,
}

impl Task {
    async fn run(self) {
        if let Some(top) = self.request.prompt_logprobs {
            let ids = self.request.prompt_ids.iter().enumerate();
            let mut tokens: Vec<_> = ids.map(|(i, id)| token(*id, i, Some(top))).collect();
            if let Some(first) = tokens.first_mut() {
                first.logprob = None;
                first.top.clear();
            }
            tokens.drain(..self.request.prompt_from.min(tokens.len()));
            if self.events.send(GenEvent::Prompt { tokens }).is_err() {
                return;
            }
        }
        for index in 0..self.request.n {
            if self.sample(index).await.is_err() {
                return;
            }
        }
    }

    /// `Err` when the receiver is gone or the mock was told to fail.
    async fn sample(&self, index: usize) -> Result<(), ()> {
        let params = &self.request.params;
        let send = |event| self.events.send(event).map_err(drop);
        let (chars, ends) = text_of(&self.request, index);
        let whole: String = chars.iter().collect();
        // Stop strings end the text before they begin; `min_tokens` holds them off.
        let from = whole.char_indices().map(|(at, _)| at).find(|at| *at >= params.min_tokens).unwrap_or(0);
        let stop_at = params.stop.iter().filter_map(|s| whole[from..].find(s.as_str())).min().map(|at| at + from);
        let text = &whole[..stop_at.unwrap_or(whole.len())];
        let mut drawn = 0;
        for ch in text.chars() {
            if drawn + ch.len_utf8() > params.max_tokens {
                return send(GenEvent::Finish { index, reason: FinishReason::Length });
            }
            if self.options.fail_after.is_some_and(|limit| drawn >= limit) {
                send(GenEvent::Failed { error: EngineError::Failed("the mock was told to fail".into()) })?;
                return Err(());
            }
            if !self.options.delay_per_token.is_zero() {
                tokio::time::sleep(self.options.delay_per_token).await;
            }
            let mut bytes = [0; 4];
            let tokens: Vec<_> = ch.encode_utf8(&mut bytes).bytes().map(u32::from).collect();
            let tokens: Vec<_> =
                tokens.iter().enumerate().map(|(i, id)| token(*id, drawn + i, params.logprobs)).collect();
            drawn += tokens.len();
            self.generated.fetch_add(tokens.len() as u64, Ordering::Relaxed);
            send(GenEvent::Delta { index, text: ch.to_string(), tokens })?;
        }
        let stopped = (stop_at.is_some() || ends) && params.max_tokens > 0;
        send(GenEvent::Finish { index, reason: if stopped { FinishReason::Stop } else { FinishReason::Length } })
    }
}

#[async_trait]
impl Generator for MockGenerator {
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(EngineError::Draining);
        }
        if let Some(constraint) = &request.params.constraint {
            let message = "the mock's text has no form".to_owned();
            return Err(EngineError::BadRequest { param: constraint.field, message });
        }
        let version = self.find(request.version.as_ref())?;
        if self.running.fetch_add(1, Ordering::SeqCst) >= self.options.max_running {
            self.running.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        }
        self.prompted.fetch_add(request.prompt_ids.len() as u64, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        let prompt_tokens = request.prompt_ids.len();
        let task = Task {
            request,
            events: sender,
            options: self.options.clone(),
            generated: self.generated.clone(),
            _slot: Slot(self.running.clone()),
        };
        tokio::spawn(task.run());
        Ok(Generation { version, prompt_tokens, events })
    }

    fn active(&self) -> Option<Arc<ServedModel>> {
        let id = lock(&self.active).clone()?;
        lock(&self.loaded).iter().find(|m| m.version.id == id).cloned()
    }

    fn loaded(&self) -> Vec<Arc<ServedModel>> {
        lock(&self.loaded).clone()
    }

    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError> {
        match self.find(Some(&version.id)) {
            Ok(found) => Ok(found),
            Err(_) => Ok(self.add(version)),
        }
    }

    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError> {
        self.find(Some(version))?;
        *lock(&self.active) = Some(version.clone());
        Ok(())
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        Some(self)
    }

    fn rewards(&self) -> Option<&dyn RewardScorer> {
        Some(self)
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.load(Ordering::SeqCst),
            tokens_generated: self.generated.load(Ordering::Relaxed),
            prompt_tokens: self.prompted.load(Ordering::Relaxed),
            kv_tokens_total: self.options.max_context,
            ..EngineStats::default()
        }
    }

    async fn drain(&self, deadline: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        let end = tokio::time::Instant::now() + deadline;
        while self.running.load(Ordering::SeqCst) > 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Tokens for MockGenerator {
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        _form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError> {
        self.find(version)?;
        Ok(text.bytes().map(u32::from).collect())
    }

    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError> {
        self.find(version)?;
        let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn token_pieces(
        &self,
        version: Option<&ModelVersionId>,
        _left: &[u32],
        tokens: &[TokenLogprob],
    ) -> Result<Vec<Vec<Piece>>, EngineError> {
        self.find(version)?;
        let piece = |id: u32| match u8::try_from(id) {
            Ok(byte) => {
                let bytes = vec![byte];
                Piece { text: String::from_utf8_lossy(&bytes).into_owned(), bytes, special: false }
            }
            Err(_) => Piece { special: true, ..Piece::of("<end>".to_owned()) },
        };
        let listed =
            |t: &TokenLogprob| std::iter::once(t.id).chain(t.top.iter().map(|(id, _)| *id)).map(piece).collect();
        Ok(tokens.iter().map(listed).collect())
    }

    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError> {
        let text: String = messages.iter().map(|m| format!("{}: {}\n", m.role, m.content)).collect();
        self.tokenize(version, &format!("{text}assistant: "), TextForm::PROMPT).await
    }
}

#[async_trait]
impl RewardScorer for MockGenerator {
    /// Longer responses score higher, and leave more doubt.
    async fn reward_scores(
        &self,
        _version: &ModelVersion,
        _prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError> {
        let length = |answer: &String| answer.len() as f64 / 100.0;
        Ok(answers
            .iter()
            .map(|answer| {
                let mean = length(answer);
                RewardScore { mean, std: mean / 10.0, parts: Default::default(), tokens: answer.len() }
            })
            .collect())
    }
}
