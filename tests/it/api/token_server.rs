//! A stand-in for vLLM, SGLang or llama.cpp that runs the built-in engine behind that server's wire format for token
//! ids and log-probs, with faults at every point.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use instructd::domain::{ModelKind, ModelVersion, ModelVersionId};
use instructd::engine::{
    EngineError, EngineOptions, FinishReason, GenEvent, GenerateRequest, Generator, LocalEngine, ModelFiles,
    SamplingParams, TextForm, TokenLogprob, Warpers,
};
use serde_json::{Value, json};

use super::client::{Server, version};
pub use super::fake_replica::Stands;
use crate::support::copy_dir;

/// What is wrong with the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The tokenizer has other ids.
    OtherTokenizer,
    /// No route tells the ids of a text.
    NoTokenizer,
    /// Log-probs are those of the distribution after the temperature.
    AfterTemperature,
    /// Log-probs are missing.
    NoLogprobs,
    /// The last token has no log-prob.
    FewerLogprobs,
    /// A log-prob is not a number, which these servers write as null.
    NotANumber,
    /// A token is outside the vocabulary.
    BeyondVocabulary,
    /// The answer ends before the sample.
    Cut,
    /// Every route answers with status 500.
    Down,
}

pub struct TokenServer {
    stands: Stands,
    engine: Arc<dyn Generator>,
    /// Adapters that were loaded (vLLM): their names, and the versions of the engine.
    adapters: Mutex<Vec<(String, ModelVersionId)>>,
    loader: Option<Arc<AdapterLoader>>,
    fault: Mutex<Option<Fault>>,
    /// Number of answers with tokens.
    pub answers: AtomicUsize,
    pub url: String,
}

/// One generated sample.
struct Generated {
    tokens: Vec<TokenLogprob>,
    finish: FinishReason,
}

impl TokenServer {
    /// Runs the engine of `origin`.
    pub async fn start(stands: Stands, origin: Arc<Server>) -> Arc<Self> {
        Self::start_at(stands, origin, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn start_at(stands: Stands, origin: Arc<Server>, listener: tokio::net::TcpListener) -> Arc<Self> {
        Self::run(stands, origin.services.engine().unwrap(), None, listener)
    }

    /// A vLLM that runs the model at `base` and loads adapters.
    pub async fn with_adapters(base: &Path) -> Arc<Self> {
        let loader = Arc::new(AdapterLoader { base: base.to_owned(), ..AdapterLoader::default() });
        let options =
            EngineOptions { share_base: true, max_loaded: 20, files: Some(loader.clone()), ..Default::default() };
        let engine = LocalEngine::start(options).unwrap();
        let version = loader.version("tiny");
        engine.load(&version).await.unwrap();
        engine.activate(&version.id).await.unwrap();
        loader.versions.lock().unwrap().push((version, base.to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::run(Stands::Vllm, engine, Some(loader), listener)
    }

    fn run(
        stands: Stands,
        engine: Arc<dyn Generator>,
        loader: Option<Arc<AdapterLoader>>,
        listener: tokio::net::TcpListener,
    ) -> Arc<Self> {
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (adapters, fault) = (Mutex::default(), Mutex::default());
        let server = Arc::new(Self { stands, engine, adapters, loader, fault, answers: AtomicUsize::new(0), url });
        let generate = match stands {
            Stands::Vllm => "/v1/completions",
            Stands::Sglang => "/generate",
            Stands::LlamaCpp => "/completion",
        };
        let mut router = axum::Router::new()
            .route("/v1/models", get(models))
            .route("/tokenize", post(tokenize))
            .route(generate, post(answer));
        if stands != Stands::Vllm {
            router = router.route("/v1/completions", post(text));
        }
        if server.loader.is_some() {
            router = router
                .route("/v1/load_lora_adapter", post(load_adapter))
                .route("/v1/unload_lora_adapter", post(unload_adapter));
        }
        let down = axum::middleware::from_fn_with_state(server.clone(), down);
        let router = router.layer(down).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    pub fn fail(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
    }

    fn fault(&self) -> Option<Fault> {
        *self.fault.lock().unwrap()
    }

    /// The names of the adapters that it serves.
    pub fn adapters(&self) -> Vec<String> {
        self.adapters.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    /// The engine's version of a name: `None` for the base.
    fn version_of(&self, name: &Value) -> Option<ModelVersionId> {
        let adapters = self.adapters.lock().unwrap();
        adapters.iter().find(|(known, _)| name == known).map(|(_, id)| id.clone())
    }

    async fn generate(&self, request: GenerateRequest) -> (Vec<TokenLogprob>, Vec<Generated>) {
        let empty = || Generated { tokens: Vec::new(), finish: FinishReason::Abort };
        let mut samples: Vec<Generated> = (0..request.n).map(|_| empty()).collect();
        let (mut prompt, mut left) = (Vec::new(), request.n);
        let mut generation = self.engine.generate(request).await.unwrap();
        while left > 0 {
            match generation.events.recv().await.unwrap() {
                GenEvent::Prompt { tokens } => prompt = tokens,
                GenEvent::Delta { index, tokens, .. } => samples[index].tokens.extend(tokens),
                GenEvent::Finish { index, reason } => {
                    samples[index].finish = reason;
                    left -= 1;
                }
                GenEvent::Usage { .. } => {}
                GenEvent::Failed { error } => panic!("{error}"),
            }
        }
        (prompt, samples)
    }
}

/// Versions that the stand-in's engine loads from pushed adapters: a copy of the base's files with the adapter inside.
#[derive(Debug, Default)]
struct AdapterLoader {
    base: PathBuf,
    /// The base first.
    versions: Mutex<Vec<(ModelVersion, PathBuf)>>,
    dirs: Mutex<Vec<tempfile::TempDir>>,
}

impl AdapterLoader {
    fn version(&self, name: &str) -> ModelVersion {
        version(name, ModelKind::Policy, self.versions.lock().unwrap().first().map(|(base, _)| base))
    }

    /// Reads the adapter at `path` as a new version.
    fn add(&self, name: &str, path: &Path) -> ModelVersion {
        let dir = copy_dir(&self.base);
        let adapter = dir.path().join("adapter");
        std::fs::create_dir(&adapter).unwrap();
        for file in std::fs::read_dir(path).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), adapter.join(file.file_name())).unwrap();
        }
        let version = self.version(name);
        self.versions.lock().unwrap().push((version.clone(), dir.path().to_owned()));
        self.dirs.lock().unwrap().push(dir);
        version
    }
}

#[async_trait::async_trait]
impl ModelFiles for AdapterLoader {
    async fn path(&self, version: &ModelVersion) -> Result<PathBuf, EngineError> {
        let versions = self.versions.lock().unwrap();
        let found = versions.iter().find(|(known, _)| known.id == version.id).map(|(_, path)| path.clone());
        Ok(found.unwrap_or_else(|| self.base.clone()))
    }

    async fn parent(&self, version: &ModelVersion) -> Option<ModelVersion> {
        let versions = self.versions.lock().unwrap();
        let (base, _) = versions.first()?;
        (base.id != version.id).then(|| base.clone())
    }
}

async fn down(State(server): State<Arc<TokenServer>>, request: Request, next: Next) -> Response {
    match server.fault() {
        Some(Fault::Down) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => next.run(request).await,
    }
}

async fn load_adapter(State(server): State<Arc<TokenServer>>, axum::Json(body): axum::Json<Value>) -> String {
    let (name, path) = (body["lora_name"].as_str().unwrap(), body["lora_path"].as_str().unwrap());
    let version = server.loader.as_ref().unwrap().add(name, Path::new(path));
    server.engine.load(&version).await.unwrap();
    server.adapters.lock().unwrap().push((name.to_owned(), version.id));
    "Success".to_owned()
}

async fn unload_adapter(State(server): State<Arc<TokenServer>>, axum::Json(body): axum::Json<Value>) -> String {
    server.adapters.lock().unwrap().retain(|(name, _)| body["lora_name"] != *name);
    "Success".to_owned()
}

async fn models(State(server): State<Arc<TokenServer>>) -> axum::Json<Value> {
    let names = std::iter::once("tiny".to_owned()).chain(server.adapters());
    let listed: Vec<Value> = names.map(|name| json!({"id": name, "object": "model", "max_model_len": 64})).collect();
    axum::Json(json!({"object": "list", "data": listed}))
}

async fn tokenize(State(server): State<Arc<TokenServer>>, axum::Json(body): axum::Json<Value>) -> Response {
    if server.fault() == Some(Fault::NoTokenizer) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let (text, special) = match server.stands {
        Stands::LlamaCpp => (&body["content"], &body["add_special"]),
        _ => (&body["prompt"], &body["add_special_tokens"]),
    };
    assert_eq!(special, false, "{body}");
    let form = TextForm::Whole { special: false, parse_special: false };
    let mut ids = server.engine.tokenize(None, text.as_str().unwrap(), form).await.unwrap();
    if server.fault() == Some(Fault::OtherTokenizer) {
        ids[3] += 1;
    }
    axum::Json(json!({"tokens": ids, "count": ids.len(), "max_model_len": 64})).into_response()
}

/// What text completions get from servers whose token route is another one.
async fn text() -> Response {
    let choice = json!({"index": 0, "text": "plain", "finish_reason": "stop"});
    let events = format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [choice]}));
    ([("content-type", "text/event-stream")], events).into_response()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The request in the server's format.
fn read_request(stands: Stands, body: &Value) -> GenerateRequest {
    let number = |value: &Value| value.as_f64().map(|n| n as f32);
    let (ids, params, seed, max, top) = match stands {
        Stands::Vllm => (ids(&body["prompt"]), body, "seed", "max_tokens", &body["logprobs"]),
        Stands::Sglang => {
            let params = &body["sampling_params"];
            (ids(&body["input_ids"]), params, "sampling_seed", "max_new_tokens", &body["top_logprobs_num"])
        }
        Stands::LlamaCpp => (ids(&body["prompt"]), body, "seed", "n_predict", &body["n_probs"]),
    };
    let mut warpers = Warpers {
        temperature: number(&params["temperature"]).unwrap(),
        top_p: number(&params["top_p"]).unwrap_or(1.0),
        ..Warpers::default()
    };
    if let Some(list) = params["logit_bias"].as_array() {
        warpers.logit_bias = list.iter().map(|b| (b[0].as_u64().unwrap() as u32, number(&b[1]).unwrap())).collect();
    }
    // llama.cpp ends at the model's own end tokens, the others at those that are named.
    let ends = params["stop_token_ids"].as_array().map(|list| list.iter().map(|id| id.as_u64().unwrap() as u32));
    let prompt_logprobs = match stands {
        Stands::Vllm => body["prompt_logprobs"].as_u64(),
        Stands::Sglang => body["logprob_start_len"].as_i64().filter(|start| *start >= 0).map(|_| top.as_u64().unwrap()),
        Stands::LlamaCpp => None,
    };
    GenerateRequest {
        request_id: "r".into(),
        version: None,
        prompt_ids: ids,
        n: params["n"].as_u64().unwrap_or(1) as usize,
        params: SamplingParams {
            max_tokens: params[max].as_u64().unwrap() as usize,
            warpers,
            stop_token_ids: ends.map(Iterator::collect).unwrap_or_default(),
            ignore_eos: stands != Stands::LlamaCpp || params["ignore_eos"] == true,
            seed: params[seed].as_i64().unwrap_or(0) as u64,
            logprobs: Some(top.as_u64().unwrap_or(0) as usize),
            ..SamplingParams::default()
        },
        prompt_logprobs: prompt_logprobs.map(|k| k as usize),
        prompt_from: 0,
        soft_prompt: None,
        background: false,
    }
}

async fn answer(State(server): State<Arc<TokenServer>>, uri: Uri, axum::Json(body): axum::Json<Value>) -> Response {
    let version = server.version_of(&body["model"]);
    if server.stands == Stands::Vllm && version.is_none() && body["model"] != "tiny" {
        return (StatusCode::NOT_FOUND, axum::Json(json!({"error": {"message": "no such model"}}))).into_response();
    }
    if body["prompt"].is_string() && body["stream"] != true {
        return probe(&server, version, body["prompt"].as_str().unwrap()).await;
    }
    if body["prompt"].is_string() || body.get("messages").is_some() {
        return text().await;
    }
    let request = GenerateRequest { version, ..read_request(server.stands, &body) };
    let temperature = request.params.warpers.temperature;
    let (prompt_ids, wants_prompt) = (request.prompt_ids.clone(), request.prompt_logprobs.is_some());
    let (prompt, mut samples) = server.generate(request).await;
    server.answers.fetch_add(1, SeqCst);
    let fault = server.fault();
    for token in samples.iter_mut().flat_map(|sample| &mut sample.tokens) {
        if fault == Some(Fault::AfterTemperature) && temperature > 0.0 {
            // Their differences are those of the distribution after the temperature.
            token.top.iter_mut().for_each(|(_, lp)| *lp /= temperature);
            token.logprob = token.logprob.map(|lp| lp / temperature);
        }
    }
    if fault == Some(Fault::BeyondVocabulary)
        && let Some(token) = samples.iter_mut().flat_map(|sample| sample.tokens.last_mut()).next()
    {
        token.id = 96;
    }
    let streams = body["stream"] == true;
    let mut written = match server.stands {
        Stands::Vllm => vllm(&samples, &prompt, wants_prompt, streams),
        Stands::Sglang => sglang(&samples, &prompt, prompt_ids.len(), streams),
        Stands::LlamaCpp => vec![llama_cpp(&samples[0])],
    };
    if let Some(fault) = fault {
        written.iter_mut().for_each(|event| spoil(event, fault, server.stands));
    }
    assert!(streams || written.len() == 1, "{uri}");
    if !streams {
        return axum::Json(written.remove(0)).into_response();
    }
    if fault == Some(Fault::Cut) {
        written.truncate(1);
    }
    let mut events: String = written.iter().map(|event| format!("data: {event}\n\n")).collect();
    events.push_str("data: [DONE]\n\n");
    ([("content-type", "text/event-stream")], events).into_response()
}

/// The first token after a text, with its log-prob, as vLLM gives it.
async fn probe(server: &TokenServer, version: Option<ModelVersionId>, prompt: &str) -> Response {
    let ids = server.engine.tokenize(None, prompt, TextForm::PROMPT).await.unwrap();
    let body = json!({"prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": 0});
    let request = GenerateRequest { version, ..read_request(Stands::Vllm, &body) };
    let (_, samples) = server.generate(request).await;
    let token = &samples[0].tokens[0];
    let logprobs = json!({"tokens": [token.id.to_string()], "token_logprobs": [token.logprob]});
    axum::Json(json!({"choices": [{"text": "x", "logprobs": logprobs, "finish_reason": "length"}]})).into_response()
}

fn finish(reason: FinishReason) -> &'static str {
    if reason == FinishReason::Stop { "stop" } else { "length" }
}

/// vLLM's choices: two tokens in each event of a stream, then the end.
fn vllm(samples: &[Generated], prompt: &[TokenLogprob], wants_prompt: bool, streams: bool) -> Vec<Value> {
    let name = |id: u32| format!("token_id:{id}");
    let choice = |index: usize, tokens: &[TokenLogprob], finish: Option<&str>| {
        let top = |t: &TokenLogprob| -> Value {
            // The chosen token is listed, too.
            let own = (t.id, t.logprob.unwrap());
            t.top.iter().chain([&own]).map(|(id, lp)| (name(*id), json!(lp))).collect::<serde_json::Map<_, _>>().into()
        };
        let logprobs = json!({
            "tokens": tokens.iter().map(|t| name(t.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(), "text_offset": vec![0; tokens.len()],
        });
        let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
        json!({"index": index, "text": "x", "logprobs": logprobs, "finish_reason": finish, "token_ids": ids})
    };
    if wants_prompt {
        let entry = |t: &TokenLogprob| -> Value {
            let Some(own) = t.logprob else { return Value::Null };
            let listed = t.top.iter().copied().chain([(t.id, own)]);
            let entry = |(id, lp): (u32, f32)| (id.to_string(), json!({"logprob": lp, "rank": 1}));
            listed.map(entry).collect::<serde_json::Map<_, _>>().into()
        };
        let prompt: Vec<Value> = prompt.iter().map(entry).collect();
        return vec![json!({"choices": [{"index": 0, "text": "x", "prompt_logprobs": prompt}]})];
    }
    if !streams {
        let all = samples.iter().enumerate().map(|(i, s)| choice(i, &s.tokens, Some(finish(s.finish))));
        return vec![json!({"choices": all.collect::<Vec<_>>()})];
    }
    let mut events = Vec::new();
    for (i, sample) in samples.iter().enumerate() {
        events.extend(sample.tokens.chunks(2).map(|tokens| json!({"choices": [choice(i, tokens, None)]})));
        let end = json!({"index": i, "text": "", "logprobs": null, "finish_reason": finish(sample.finish),
            "token_ids": []});
        events.push(json!({"choices": [end]}));
    }
    events
}

/// SGLang's answers: all tokens so far in each event of a stream.
fn sglang(samples: &[Generated], prompt: &[TokenLogprob], prompt_tokens: usize, streams: bool) -> Vec<Value> {
    let entry = |(id, lp): (u32, Option<f32>)| json!([lp, id, null]);
    let own = |tokens: &[TokenLogprob]| tokens.iter().map(|t| entry((t.id, t.logprob))).collect::<Vec<_>>();
    let top = |tokens: &[TokenLogprob]| {
        let one = |t: &TokenLogprob| t.top.iter().map(|(id, lp)| entry((*id, Some(*lp)))).collect::<Vec<_>>();
        tokens.iter().map(one).collect::<Vec<_>>()
    };
    let event = |index: usize, tokens: &[TokenLogprob], end: Option<FinishReason>| {
        let reason = end.map_or(Value::Null, |reason| json!({"type": finish(reason)}));
        json!({"text": "x", "index": index, "meta_info": {"finish_reason": reason, "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens.len(), "output_token_logprobs": own(tokens), "output_top_logprobs": top(tokens),
            "input_token_logprobs": own(prompt), "input_top_logprobs": top(prompt)}})
    };
    let mut events = Vec::new();
    for (i, sample) in samples.iter().enumerate() {
        let lengths = (1..sample.tokens.len()).filter(|_| streams);
        events.extend(lengths.map(|n| event(i, &sample.tokens[..n], None)));
        events.push(event(i, &sample.tokens, Some(sample.finish)));
    }
    events
}

fn llama_cpp(sample: &Generated) -> Value {
    let entry = |id: u32, lp: f32| json!({"id": id, "token": "x", "bytes": [120], "logprob": lp});
    let one = |t: &TokenLogprob| {
        let mut own = entry(t.id, t.logprob.unwrap());
        own["top_logprobs"] = t.top.iter().map(|(id, lp)| entry(*id, *lp)).collect();
        own
    };
    let stop_type = if sample.finish == FinishReason::Stop { "eos" } else { "limit" };
    json!({"content": "x", "stop": true, "stop_type": stop_type, "tokens": sample.tokens.iter().map(|t| t.id)
        .collect::<Vec<_>>(), "completion_probabilities": sample.tokens.iter().map(one).collect::<Vec<_>>()})
}

/// Makes an event of a stream, or an answer, wrong.
fn spoil(event: &mut Value, fault: Fault, stands: Stands) {
    let (holder, name, place) = match stands {
        Stands::Vllm => (&mut event["choices"][0]["logprobs"], "token_logprobs", None),
        Stands::Sglang => (&mut event["meta_info"], "output_token_logprobs", Some("0")),
        Stands::LlamaCpp => (event, "completion_probabilities", Some("logprob")),
    };
    let Some(list) = holder.get_mut(name).and_then(Value::as_array_mut) else { return };
    match fault {
        Fault::NoLogprobs => drop(holder.as_object_mut().unwrap().remove(name)),
        Fault::FewerLogprobs => drop(list.pop()),
        Fault::NotANumber => match (list.last_mut(), place) {
            (Some(last), None) => *last = Value::Null,
            (Some(last), Some("0")) => last[0] = Value::Null,
            (Some(last), Some(field)) => last[field] = Value::Null,
            (None, _) => {}
        },
        _ => {}
    }
}
