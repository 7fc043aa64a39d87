//! A stand-in for vLLM, SGLang or llama.cpp whose model versions can be changed while it runs. Its completions say
//! which version wrote them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

/// The model that it was started with, and where its weights are.
pub const MODEL: &str = "Org/Big Model";
pub const WEIGHTS: &str = "/models/big";

/// Where a change goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with status 400 and its reason.
    Refuses,
    /// Answers 200 with `success: false` (SGLang).
    SaysNo,
    /// Says that it loaded the version, and serves what it did before.
    Pretends,
    /// Never answers.
    Hangs,
    /// The version is loaded and cannot generate.
    CannotGenerate,
    /// The version is loaded and generates with other log-probs than elsewhere.
    OtherWeights,
}

/// Which server it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    Vllm,
    Sglang,
    LlamaCpp,
}

#[derive(Default)]
struct Content {
    /// vLLM: (name, path). llama.cpp: (path, applied), one of which may be.
    adapters: Vec<(String, String)>,
    /// SGLang: path of the weights.
    weights: String,
    /// Paths of changes that were tried.
    tried: Vec<String>,
    /// A fault, and a part of the names or paths of the versions that it shows with.
    fault: Option<(Fault, &'static str)>,
    /// Number of completions for clients.
    completions: usize,
}

impl Content {
    fn fault_with(&self, version: &str) -> Option<Fault> {
        self.fault.filter(|(_, part)| version.contains(part)).map(|(fault, _)| fault)
    }
}

pub struct Replica {
    stands: Stands,
    content: Mutex<Content>,
    pub url: String,
}

impl Replica {
    pub async fn start(stands: Stands) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let content = Content { weights: WEIGHTS.to_owned(), ..Content::default() };
        let replica = Arc::new(Self { stands, content: Mutex::new(content), url });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/completions", post(complete))
            .route("/v1/chat/completions", post(complete))
            .route("/v1/{change}", post(change_adapter))
            .route("/get_model_info", get(model_info))
            .route("/update_weights_from_disk", post(update_weights))
            .route("/lora-adapters", get(list_adapters).post(scale_adapters))
            .with_state(replica.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        replica
    }

    /// Adapters that llama.cpp was started with, none of which is applied.
    pub fn with_adapters(self: Arc<Self>, paths: &[String]) -> Arc<Self> {
        self.content.lock().unwrap().adapters = paths.iter().map(|path| (path.clone(), "0".to_owned())).collect();
        self
    }

    pub fn fail(&self, fault: Option<(Fault, &'static str)>) {
        self.content.lock().unwrap().fault = fault;
    }

    /// It was started again: nothing that was loaded is left.
    pub fn restart(&self) {
        let mut content = self.content.lock().unwrap();
        content.weights = WEIGHTS.to_owned();
        match self.stands {
            Stands::LlamaCpp => content.adapters.iter_mut().for_each(|adapter| adapter.1 = "0".to_owned()),
            _ => content.adapters.clear(),
        }
    }

    /// What it serves beside or instead of its own model: adapters of vLLM, the weights of SGLang, the applied adapter
    /// of llama.cpp.
    pub fn serves(&self) -> Vec<String> {
        let content = self.content.lock().unwrap();
        match self.stands {
            Stands::Vllm => content.adapters.iter().map(|(name, _)| name.clone()).collect(),
            Stands::Sglang => vec![content.weights.clone()],
            Stands::LlamaCpp => content.adapters.iter().filter(|a| a.1 != "0").map(|a| a.0.clone()).collect(),
        }
    }

    pub fn tried(&self) -> Vec<String> {
        self.content.lock().unwrap().tried.clone()
    }

    pub fn completions(&self) -> usize {
        self.content.lock().unwrap().completions
    }

    pub fn host(&self) -> String {
        self.url.trim_start_matches("http://").trim_end_matches("/v1").to_owned()
    }

    /// Applies a change to the version `name`, if no fault prevents it.
    async fn change(&self, name: &str, apply: impl FnOnce(&mut Content)) -> Option<Response> {
        let fault = {
            let mut content = self.content.lock().unwrap();
            content.tried.push(name.to_owned());
            let fault = content.fault_with(name);
            if !matches!(fault, Some(Fault::Refuses | Fault::SaysNo | Fault::Pretends | Fault::Hangs)) {
                apply(&mut content);
            }
            fault
        };
        match fault {
            Some(Fault::Refuses) => {
                let body = json!({"error": {"message": "the files are damaged", "type": "BadRequestError"}});
                Some((StatusCode::BAD_REQUEST, axum::Json(body)).into_response())
            }
            Some(Fault::SaysNo) => {
                Some(axum::Json(json!({"success": false, "message": "the files are damaged"})).into_response())
            }
            Some(Fault::Hangs) => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                None
            }
            _ => None,
        }
    }

    /// The version that answers a request for `model`.
    fn answering(&self, model: &str) -> Option<String> {
        let content = self.content.lock().unwrap();
        match self.stands {
            Stands::Vllm if model == MODEL => Some(MODEL.to_owned()),
            Stands::Vllm => content.adapters.iter().find(|(name, _)| name == model).map(|(name, _)| name.clone()),
            Stands::Sglang => Some(content.weights.clone()),
            Stands::LlamaCpp => {
                let applied = content.adapters.iter().find(|adapter| adapter.1 != "0");
                Some(applied.map_or(MODEL.to_owned(), |adapter| adapter.0.clone()))
            }
        }
    }
}

async fn models(State(replica): State<Arc<Replica>>) -> axum::Json<Value> {
    let mut listed = vec![json!({"id": MODEL, "object": "model", "max_model_len": 512})];
    if replica.stands == Stands::Vllm {
        listed.extend(replica.serves().iter().map(|name| json!({"id": name, "object": "model", "parent": MODEL})));
    }
    axum::Json(json!({"object": "list", "data": listed}))
}

/// vLLM's `load_lora_adapter` and `unload_lora_adapter`.
async fn change_adapter(
    State(replica): State<Arc<Replica>>,
    Path(change): Path<String>,
    axum::Json(body): axum::Json<Value>,
) -> Response {
    let name = body["lora_name"].as_str().unwrap_or_default().to_owned();
    match change.as_str() {
        "load_lora_adapter" if replica.stands == Stands::Vllm => {
            let path = body["lora_path"].as_str().unwrap_or_default().to_owned();
            let apply = |content: &mut Content| content.adapters.push((name.clone(), path));
            let failed = replica.change(&name, apply).await;
            failed.unwrap_or_else(|| format!("Success: LoRA adapter '{name}' added successfully.").into_response())
        }
        "unload_lora_adapter" if replica.stands == Stands::Vllm => {
            let mut content = replica.content.lock().unwrap();
            let before = content.adapters.len();
            content.adapters.retain(|adapter| adapter.0 != name);
            match content.adapters.len() < before {
                true => "Success: LoRA adapter removed successfully.".into_response(),
                false => (StatusCode::NOT_FOUND, "no such adapter").into_response(),
            }
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn model_info(State(replica): State<Arc<Replica>>) -> axum::Json<Value> {
    axum::Json(json!({"model_path": replica.content.lock().unwrap().weights, "is_generation": true}))
}

async fn update_weights(State(replica): State<Arc<Replica>>, axum::Json(body): axum::Json<Value>) -> Response {
    let path = body["model_path"].as_str().unwrap_or_default().to_owned();
    let failed = replica.change(&path, |content| content.weights = path.clone()).await;
    let done = json!({"success": true, "message": "Succeeded to update model weights.", "num_paused_requests": 0});
    failed.unwrap_or_else(|| axum::Json(done).into_response())
}

async fn list_adapters(State(replica): State<Arc<Replica>>) -> axum::Json<Value> {
    let content = replica.content.lock().unwrap();
    let one = |(id, (path, scale)): (usize, &(String, String))| {
        let scale: f64 = scale.parse().unwrap();
        json!({"id": id, "path": path, "scale": scale})
    };
    axum::Json(content.adapters.iter().enumerate().map(one).collect())
}

async fn scale_adapters(State(replica): State<Arc<Replica>>, axum::Json(body): axum::Json<Value>) -> Response {
    let scales: Vec<(usize, String)> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["id"].as_u64().unwrap() as usize, a["scale"].to_string().replace("0.0", "0")))
        .collect();
    let name = {
        let content = replica.content.lock().unwrap();
        scales.iter().find(|s| s.1 != "0").map(|s| content.adapters[s.0].0.clone()).unwrap_or_default()
    };
    let apply = |content: &mut Content| scales.iter().for_each(|(id, scale)| content.adapters[*id].1 = scale.clone());
    let failed = replica.change(&name, apply).await;
    failed.unwrap_or_else(|| axum::Json(json!({"success": true})).into_response())
}

async fn complete(State(replica): State<Arc<Replica>>, axum::Json(body): axum::Json<Value>) -> Response {
    let Some(version) = replica.answering(body["model"].as_str().unwrap_or_default()) else {
        return (StatusCode::NOT_FOUND, axum::Json(json!({"error": {"message": "no such model"}}))).into_response();
    };
    let fault = replica.content.lock().unwrap().fault_with(&version);
    if fault == Some(Fault::CannotGenerate) {
        return (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(json!({"error": "CUDA error"}))).into_response();
    }
    if body["stream"] != true {
        let logprob = if fault == Some(Fault::OtherWeights) { -3.5 } else { -0.25 };
        let logprobs = match replica.stands {
            Stands::LlamaCpp => {
                json!({"content": [{"id": 5, "token": " dog", "logprob": logprob, "top_logprobs": []}]})
            }
            _ => json!({"tokens": [" dog"], "token_logprobs": [logprob], "top_logprobs": [{" dog": logprob}]}),
        };
        let choice = json!({"index": 0, "text": " dog", "logprobs": logprobs, "finish_reason": "length"});
        return axum::Json(json!({"object": "text_completion", "choices": [choice]})).into_response();
    }
    replica.content.lock().unwrap().completions += 1;
    let is_chat = body.get("messages").is_some();
    let mut choice = json!({"index": 0, "finish_reason": "stop"});
    if is_chat {
        choice["delta"] = json!({"content": version});
    } else {
        choice["text"] = version.into();
    }
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    let events = format!("data: {}\n\ndata: {usage}\n\ndata: [DONE]\n\n", json!({"choices": [choice]}));
    ([("content-type", "text/event-stream")], events).into_response()
}
