//! Pushing to the hub, against a stand-in of its interface on this machine that checks sizes and hashes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use instructd::data::Format;
use instructd::hub::Hub;
use instructd::hub::push::{Push, Pushed, RepoKind};
use instructd::service::hub_dataset;
use serde_json::{Value, json};
use sha2::Digest;

use crate::api::client::Server;
use crate::support::fixture;

const TOKEN: &str = "hf_right";

#[derive(Default)]
struct Stage {
    /// Address of the stand-in.
    url: Mutex<String>,
    /// Bytes of a part of an upload; whole files if 0.
    chunk: usize,
    /// The next so many requests get 503.
    unwell: AtomicUsize,
    /// Every request gets this answer.
    fault: Option<(StatusCode, &'static str)>,
    /// Repositories by kind and name: whether private.
    repos: Mutex<BTreeMap<String, bool>>,
    /// Large files by SHA-256.
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Parts of large files by SHA-256 and number.
    parts: Mutex<BTreeMap<(String, usize), Vec<u8>>>,
    verified: Mutex<Vec<String>>,
    /// Uploads of files or parts.
    uploads: AtomicUsize,
    /// Files of the newest commit, of a repository's kind and name.
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    committed: Mutex<Vec<String>>,
}

impl Stage {
    /// A refusal, if this request gets one.
    fn refused(&self, headers: &HeaderMap) -> Option<Response> {
        let take = |n: usize| n.checked_sub(1);
        if self.unwell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
        }
        if let Some((status, message)) = self.fault {
            return Some((status, Json(json!({"error": message}))).into_response());
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        (given != Some(&format!("Bearer {TOKEN}"))).then(|| StatusCode::UNAUTHORIZED.into_response())
    }

    fn href(&self, path: &str) -> String {
        format!("{}{path}", self.url.lock().unwrap())
    }
}

type Shared = State<Arc<Stage>>;

async fn create(State(stage): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(refused) = stage.refused(&headers) {
        return refused;
    }
    let text = |name: &str| body[name].as_str().unwrap_or("model").to_owned();
    let repo = format!("{}s/{}/{}", text("type"), text("organization"), text("name"));
    let mut repos = stage.repos.lock().unwrap();
    if repos.contains_key(&repo) {
        return (StatusCode::CONFLICT, "You already created this repo").into_response();
    }
    repos.insert(repo, body["private"].as_bool().unwrap());
    Json(json!({"url": "…"})).into_response()
}

async fn preupload(
    State(stage): Shared,
    UrlPath((kinds, owner, name)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(refused) = stage.refused(&headers) {
        return refused;
    }
    assert!(stage.repos.lock().unwrap().contains_key(&format!("{kinds}/{owner}/{name}")));
    let files: Vec<Value> = body["files"].as_array().unwrap().iter().map(|file| {
        let path = file["path"].as_str().unwrap();
        let sample = STANDARD.decode(file["sample"].as_str().unwrap()).unwrap();
        assert_eq!(sample.len() as u64, file["size"].as_u64().unwrap().min(512), "{path}");
        let large = path.ends_with(".safetensors") || path.ends_with(".bin");
        json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": path == "notes.txt"})
    }).collect();
    Json(json!({"files": files})).into_response()
}

async fn batch(State(stage): Shared, headers: HeaderMap, body: String) -> Response {
    if let Some(refused) = stage.refused(&headers) {
        return refused;
    }
    assert_eq!(headers["content-type"], "application/vnd.git-lfs+json");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["operation"], &body["hash_algo"]), (&json!("upload"), &json!("sha256")));
    let known = stage.objects.lock().unwrap();
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
            if known.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let verify = json!({"href": stage.href(&format!("/verify/{oid}"))});
            let upload = if stage.chunk == 0 {
                json!({"href": stage.href(&format!("/storage/{oid}"))})
            } else {
                let mut header = json!({"chunk_size": stage.chunk.to_string()});
                for part in 1..=size.div_ceil(stage.chunk) {
                    header[format!("{part:05}")] = stage.href(&format!("/storage/{oid}/{part}")).into();
                }
                json!({"href": stage.href(&format!("/complete/{oid}")), "header": header})
            };
            json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        })
        .collect();
    Json(json!({"transfer": "basic", "objects": objects})).into_response()
}

/// A whole file. Storage elsewhere must not see the token.
async fn store(State(stage): Shared, UrlPath(oid): UrlPath<String>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert!(!headers.contains_key(header::AUTHORIZATION));
    assert_eq!(headers[header::CONTENT_LENGTH], body.len().to_string(), "storage needs the length");
    stage.uploads.fetch_add(1, Ordering::SeqCst);
    keep(&stage, oid, body.to_vec())
}

fn keep(stage: &Stage, oid: String, bytes: Vec<u8>) -> StatusCode {
    if hex::encode(sha2::Sha256::digest(&bytes)) != oid {
        return StatusCode::BAD_REQUEST;
    }
    stage.objects.lock().unwrap().insert(oid, bytes);
    StatusCode::OK
}

async fn store_part(
    State(stage): Shared,
    UrlPath((oid, part)): UrlPath<(String, usize)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert!(!headers.contains_key(header::AUTHORIZATION) && body.len() <= stage.chunk);
    let take = |n: usize| n.checked_sub(1);
    if stage.unwell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    stage.uploads.fetch_add(1, Ordering::SeqCst);
    stage.parts.lock().unwrap().insert((oid, part), body.to_vec());
    [(header::ETAG, format!("\"etag-{part}\""))].into_response()
}

async fn complete(State(stage): Shared, UrlPath(oid): UrlPath<String>, body: String) -> StatusCode {
    let body: Value = serde_json::from_str(&body).unwrap();
    let parts = stage.parts.lock().unwrap();
    let mut whole = Vec::new();
    for (i, part) in body["parts"].as_array().unwrap().iter().enumerate() {
        assert_eq!(*part, json!({"partNumber": i + 1, "etag": format!("\"etag-{}\"", i + 1)}));
        whole.extend_from_slice(&parts[&(oid.clone(), i + 1)]);
    }
    drop(parts);
    keep(&stage, oid, whole)
}

async fn verify(
    State(stage): Shared,
    UrlPath(oid): UrlPath<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(refused) = stage.refused(&headers) {
        return refused;
    }
    assert_eq!(body["size"], stage.objects.lock().unwrap()[&oid].len());
    stage.verified.lock().unwrap().push(oid);
    StatusCode::OK.into_response()
}

async fn commit(
    State(stage): Shared,
    UrlPath((kinds, owner, name)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(refused) = stage.refused(&headers) {
        return refused;
    }
    assert_eq!(headers["content-type"], "application/x-ndjson");
    let mut lines = body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let head = lines.next().unwrap();
    assert_eq!(head["key"], "header");
    let mut files = stage.files.lock().unwrap();
    for line in lines {
        let value = &line["value"];
        let bytes = match line["key"].as_str().unwrap() {
            "file" => STANDARD.decode(value["content"].as_str().unwrap()).unwrap(),
            "lfsFile" => {
                let bytes = stage.objects.lock().unwrap()[value["oid"].as_str().unwrap()].clone();
                assert_eq!((&value["algo"], &value["size"]), (&json!("sha256"), &json!(bytes.len())));
                bytes
            }
            other => panic!("{other}"),
        };
        files.insert(value["path"].as_str().unwrap().to_owned(), bytes);
    }
    stage
        .committed
        .lock()
        .unwrap()
        .push(format!("{kinds}/{owner}/{name}: {}", head["value"]["summary"].as_str().unwrap()));
    Json(json!({"commitOid": "c0ffee"})).into_response()
}

/// A stand-in with its own threads; stops with the process.
fn serve(stage: Stage) -> (Arc<Stage>, Hub) {
    let stage = Arc::new(stage);
    let router = Router::new()
        .route("/api/repos/create", post(create))
        .route("/api/{kinds}/{owner}/{name}/preupload/main", post(preupload))
        .route("/api/{kinds}/{owner}/{name}/commit/main", post(commit))
        .route("/{owner}/{name}/info/lfs/objects/batch", post(batch))
        .route("/datasets/{owner}/{name}/info/lfs/objects/batch", post(batch))
        .route("/storage/{oid}", put(store))
        .route("/storage/{oid}/{part}", put(store_part))
        .route("/complete/{oid}", post(complete))
        .route("/verify/{oid}", post(verify))
        .layer(DefaultBodyLimit::disable())
        .with_state(stage.clone());
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    let endpoint = format!("http://{}", receive.recv().unwrap());
    stage.url.lock().unwrap().clone_from(&endpoint);
    (stage, Hub { endpoint, token: Some(TOKEN.to_owned()), cache: std::env::temp_dir() })
}

async fn pushed(hub: &Hub, kind: RepoKind, dir: &Path) -> Result<Pushed, String> {
    let push = Push { kind, repo: "someone/tiny", private: true, dir, summary: "first" };
    hub.push(&push, &|_, _| {}).await.map_err(|e| e.to_string())
}

/// Files of every kind: small, large, in a directory, hidden, and one that the repository ignores.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(fixture("llama-tiny").join(name), dir.path().join(name)).unwrap();
    }
    std::fs::create_dir(dir.path().join("adapter")).unwrap();
    std::fs::write(dir.path().join("adapter/weights.bin"), vec![7; 3000]).unwrap();
    std::fs::write(dir.path().join("README.md"), "a card").unwrap();
    std::fs::write(dir.path().join(".hidden"), "not pushed").unwrap();
    std::fs::write(dir.path().join("notes.txt"), "ignored by the repository").unwrap();
    dir
}

fn assert_has_all(stage: &Stage, dir: &Path) {
    let names = ["README.md", "adapter/weights.bin", "config.json", "model.safetensors", "tokenizer.json"];
    let files = stage.files.lock().unwrap();
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), names);
    for name in names {
        assert!(files[name] == std::fs::read(dir.join(name)).unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a_directory_is_pushed_whole_and_once() {
    let dir = directory();
    let (stage, hub) = serve(Stage::default());
    let first = pushed(&hub, RepoKind::Model, dir.path()).await.unwrap();
    assert_eq!(first, Pushed { url: format!("{}/someone/tiny", hub.endpoint), sent: 5, present: 0 });
    assert_has_all(&stage, dir.path());
    assert_eq!(*stage.repos.lock().unwrap(), BTreeMap::from([("models/someone/tiny".to_owned(), true)]));
    assert_eq!(*stage.committed.lock().unwrap(), ["models/someone/tiny: first"]);
    assert_eq!((stage.uploads.load(Ordering::SeqCst), stage.verified.lock().unwrap().len()), (2, 2));
    // Again: large files are there, and the repository too.
    let again = pushed(&hub, RepoKind::Model, dir.path()).await.unwrap();
    assert_eq!((again.sent, again.present), (3, 2));
    assert_eq!(stage.uploads.load(Ordering::SeqCst), 2);
    // A dataset of the same name is another repository.
    let dataset = pushed(&hub, RepoKind::Dataset, dir.path()).await.unwrap();
    assert_eq!(dataset.url, format!("{}/datasets/someone/tiny", hub.endpoint));
    assert_eq!(stage.repos.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn large_files_are_sent_in_parts_and_failed_parts_again() {
    let dir = directory();
    let (stage, hub) = serve(Stage { chunk: 1000, ..Stage::default() });
    let weights = std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
    stage.unwell.store(3, Ordering::SeqCst);
    pushed(&hub, RepoKind::Model, dir.path()).await.unwrap();
    assert_has_all(&stage, dir.path());
    assert_eq!(stage.uploads.load(Ordering::SeqCst) as u64, 3 + weights.div_ceil(1000));
    assert_eq!(stage.unwell.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let dir = directory();
    for (status, said, part) in [
        (StatusCode::UNAUTHORIZED, "Invalid credentials", "the token in HF_TOKEN is not valid"),
        (StatusCode::FORBIDDEN, "no\nrights", "may not write to someone/tiny"),
        (StatusCode::NOT_FOUND, "Repository not found", "someone/tiny does not exist"),
        (StatusCode::FORBIDDEN, "Private repository storage limit reached", "the storage of the account is used up"),
        (StatusCode::PAYMENT_REQUIRED, "", "the storage of the account is used up"),
        (StatusCode::PAYLOAD_TOO_LARGE, "", "larger than the hub allows"),
    ] {
        let (_, hub) = serve(Stage { fault: Some((status, said)), ..Stage::default() });
        let error = pushed(&hub, RepoKind::Model, dir.path()).await.unwrap_err();
        assert!(error.contains(part) && error.contains(&said.replace('\n', " ")), "{error}");
        assert!(!error.contains(TOKEN) && !error.contains('\n'), "{error}");
    }
    let (stage, hub) = serve(Stage::default());
    let without = Hub { token: None, ..hub.clone() };
    assert!(pushed(&without, RepoKind::Model, dir.path()).await.unwrap_err().contains("set HF_TOKEN"));
    for repo in ["tiny", "a/b/c", "../x", "a/..", "a b/c", "/x", "x/"] {
        let push = Push { kind: RepoKind::Model, repo, private: false, dir: dir.path(), summary: "s" };
        assert!(hub.push(&push, &|_, _| {}).await.unwrap_err().to_string().contains("OWNER/NAME"), "{repo}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(pushed(&hub, RepoKind::Model, empty.path()).await.unwrap_err().contains("no files"));
    assert!(stage.repos.lock().unwrap().is_empty(), "nothing was created");
}

/// The command exports the model, so that a directory of any origin is one that transformers loads.
#[test]
fn the_command_pushes_a_model_with_its_card() {
    let (stage, hub) = serve(Stage::default());
    let dir = directory();
    let data = tempfile::tempdir().unwrap();
    let model = dir.path().display().to_string();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_instructd"));
    command.args(["models", "push", &model, "someone/tiny", "--half"]).env_remove("INSTRUCTD_CONFIG");
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", TOKEN).env("INSTRUCTD_DATA_DIR", data.path());
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains(&format!("{}/someone/tiny", hub.endpoint)), "{text}");
    assert!(!text.contains(TOKEN), "{text}");
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in stage.files.lock().unwrap().iter() {
        std::fs::write(copy.path().join(name), bytes).unwrap();
    }
    assert_eq!(std::fs::read_to_string(copy.path().join("README.md")).unwrap(), "a card");
    let loaded = instructd::model::load(copy.path(), &candle_core::Device::Cpu).unwrap();
    let own = instructd::model::load(dir.path(), &candle_core::Device::Cpu).unwrap();
    assert_eq!(loaded.config, own.config);
    assert_eq!(*stage.repos.lock().unwrap(), BTreeMap::from([("models/someone/tiny".to_owned(), false)]));
    assert_eq!(
        std::fs::read_dir(data.path()).unwrap().flatten().filter(|e| e.path().is_dir()).count(),
        0,
        "nothing is left"
    );
}

#[tokio::test]
async fn a_dataset_version_is_a_directory_with_a_card() {
    let server = Server::start().await;
    server.post("/admin/sample-data", json!({})).await.expect(200);
    let made = server.post("/admin/datasets", json!({"name": "mine"})).await.expect(201).json();
    let dir = tempfile::tempdir().unwrap();
    let left_out = hub_dataset::write_dir(&server.services, "mine", Format::Trl, dir.path()).await.unwrap();
    let card = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
    for part in ["path: train.jsonl", "split: train", made["sha256"].as_str().unwrap(), "# Rankings `mine`"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(card.contains(&format!("| sets | {} |", made["n_sets"])), "{card}");
    assert!(card.contains(&format!("cannot hold | {left_out} |")), "{card}");
    let lines = std::fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
    assert!(lines.lines().count() > 0);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(["prompt", "chosen", "rejected"].iter().all(|name| !line[name].is_null()), "{line}");
    }
    // Held-out rankings are the hub's split `test`.
    server.post("/admin/datasets", json!({"name": "held", "filter": {"split": "heldout"}})).await.expect(201);
    let dir = tempfile::tempdir().unwrap();
    hub_dataset::write_dir(&server.services, "held", Format::Trl, dir.path()).await.unwrap();
    let card = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
    assert!(card.contains("- split: test\n") && card.contains("path: test.jsonl"), "{card}");
    assert!(dir.path().join("test.jsonl").exists());
    let unknown = hub_dataset::write_dir(&server.services, "none", Format::Trl, dir.path()).await;
    assert!(unknown.unwrap_err().to_string().contains("none"));
    let (stage, hub) = serve(Stage::default());
    pushed(&hub, RepoKind::Dataset, dir.path()).await.unwrap();
    assert_eq!(stage.files.lock().unwrap().len(), 2);
}
