//! A scripted OpenAI-compatible server: each call takes the next act of the script, the last one repeats.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use serde_json::{Value, json};

/// What a call gets.
#[derive(Clone, Debug)]
pub enum Act {
    /// Pieces of text for each sample, then this reason.
    Write(Vec<&'static str>, &'static str),
    /// A status with a body, and perhaps `Retry-After`.
    Status(u16, Value, Option<u64>),
    /// Text, and then the connection breaks.
    Break(&'static str),
    /// Text, and then an error event.
    ErrorEvent(&'static str),
    /// Text, and then silence for as long as the client stays.
    Silence(&'static str),
    /// No answer at all.
    Hang,
    /// Whatever this is, as the stream.
    Raw(&'static str),
}

#[derive(Default)]
pub struct Seen {
    pub bodies: Vec<Value>,
    pub paths: Vec<String>,
    pub keys: Vec<Option<String>>,
}

pub struct Fake {
    script: Mutex<VecDeque<Act>>,
    pub seen: Mutex<Seen>,
    /// Streams whose client has not left and that have not ended.
    pub open: AtomicUsize,
    /// Whether it lists the model.
    pub lists: AtomicBool,
    pub url: String,
}

struct Open(Arc<Fake>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl Fake {
    pub async fn start(script: Vec<Act>) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let fake = Arc::new(Self {
            script: Mutex::new(script.into()),
            seen: Mutex::default(),
            open: AtomicUsize::new(0),
            lists: AtomicBool::new(true),
            url,
        });
        let router = axum::Router::new()
            .route("/v1/models", get(models))
            .route("/v1/completions", post(answer))
            .route("/v1/chat/completions", post(answer))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    pub fn then(&self, script: Vec<Act>) {
        *self.script.lock().unwrap() = script.into();
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().bodies.len()
    }

    pub fn last_body(&self) -> Value {
        self.seen.lock().unwrap().bodies.last().cloned().unwrap_or_default()
    }

    fn next(&self) -> Act {
        let mut script = self.script.lock().unwrap();
        match script.len() {
            0 => Act::Write(vec!["fine"], "stop"),
            1 => script[0].clone(),
            _ => script.pop_front().unwrap(),
        }
    }
}

async fn models(State(fake): State<Arc<Fake>>) -> axum::Json<Value> {
    let mut listed = vec![json!({"id": "other", "object": "model"})];
    if fake.lists.load(SeqCst) {
        listed.insert(0, json!({"id": "Org/Big Model", "object": "model", "max_model_len": 512}));
    }
    axum::Json(json!({"object": "list", "data": listed}))
}

async fn answer(State(fake): State<Arc<Fake>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    {
        let mut seen = fake.seen.lock().unwrap();
        seen.bodies.push(body.clone());
        seen.paths.push(uri.path().to_owned());
        seen.keys.push(headers.get("authorization").map(|v| v.to_str().unwrap().to_owned()));
    }
    let chat = uri.path().contains("chat");
    let n = body["n"].as_u64().unwrap_or(1);
    let chunk = |index: u64, text: &str, finish: Option<&str>| {
        let mut choice = json!({"index": index, "finish_reason": finish});
        if chat {
            choice["delta"] = json!({"content": text})
        } else {
            choice["text"] = text.into()
        }
        event(&json!({"choices": [choice]}))
    };
    let mut pieces: Vec<String> = Vec::new();
    let tail: Tail = match fake.next() {
        Act::Status(status, body, after) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
            if let Some(after) = after {
                response.headers_mut().insert("retry-after", after.into());
            }
            return response;
        }
        Act::Hang => {
            std::future::pending::<()>().await;
            unreachable!()
        }
        Act::Write(texts, finish) => {
            for text in &texts {
                pieces.extend((0..n).map(|i| chunk(i, text, None)));
            }
            pieces.extend((0..n).map(|i| chunk(i, "", Some(finish))));
            let usage = json!({"prompt_tokens": 7, "completion_tokens": n as usize * texts.len()});
            pieces.push(event(&json!({"choices": [], "usage": usage})));
            pieces.push("data: [DONE]\n\n".into());
            Tail::End
        }
        Act::Break(text) => {
            pieces.push(chunk(0, text, None));
            Tail::Break
        }
        Act::ErrorEvent(text) => {
            pieces.push(chunk(0, text, None));
            pieces.push(event(&json!({"error": {"message": "secret detail", "type": "x"}})));
            Tail::End
        }
        Act::Silence(text) => {
            pieces.push(chunk(0, text, None));
            Tail::Silence
        }
        Act::Raw(text) => {
            pieces.push(text.to_owned());
            Tail::End
        }
    };
    fake.open.fetch_add(1, SeqCst);
    let open = Open(fake.clone());
    // Cut anywhere, also inside characters, as networks do.
    let bytes: Vec<u8> = pieces.concat().into_bytes();
    let cuts: Vec<Result<Bytes, std::io::Error>> = bytes.chunks(11).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let ending = futures::stream::once(async move {
        match tail {
            Tail::End => {}
            // Let the text arrive first.
            Tail::Break => tokio::time::sleep(Duration::from_millis(20)).await,
            Tail::Silence => std::future::pending().await,
        }
        drop(open);
        if matches!(tail, Tail::Break) { Err(std::io::Error::other("broken")) } else { Ok(Bytes::new()) }
    });
    let stream = futures::stream::iter(cuts).chain(ending);
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

enum Tail {
    End,
    Break,
    Silence,
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}
