//! Downloads from the hub, against a stand-in of its interface on this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt as _;
use instructd::hub::Hub;
use instructd::hub::pull;
use instructd::model;
use serde_json::json;
use sha2::Digest;

use super::super::support::fixture;

/// What a stand-in does.
#[derive(Default)]
struct Stage {
    files: BTreeMap<String, Vec<u8>>,
    /// Who may read; everyone if none.
    token: Option<String>,
    gated: bool,
    /// The next so many answers break off in the middle.
    breaks: AtomicUsize,
    /// The next so many answers are 503.
    unwell: AtomicUsize,
    /// (file, first byte asked for) of every request for a file.
    asked: Mutex<Vec<(String, u64)>>,
    /// Requests under way, and the most there were.
    now: AtomicUsize,
    most: AtomicUsize,
    /// Bytes of files changed on the way.
    damaged: AtomicUsize,
}

fn model_files() -> BTreeMap<String, Vec<u8>> {
    let names = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"];
    let mut files: BTreeMap<String, Vec<u8>> = names
        .iter()
        .map(|name| ((*name).to_owned(), std::fs::read(fixture("llama-tiny").join(name)).unwrap()))
        .collect();
    files.insert("README.md".into(), b"not a part of the model".to_vec());
    files.insert("consolidated.safetensors".into(), vec![0; 10]);
    files
}

fn take_one(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn refused(stage: &Stage, headers: &HeaderMap) -> Option<Response> {
    if take_one(&stage.unwell) {
        return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
    }
    let wanted = stage.token.as_ref().map(|token| format!("Bearer {token}"))?;
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
    if given == wanted {
        return None;
    }
    Some(match stage.gated {
        true => (StatusCode::UNAUTHORIZED, [("x-error-code", "GatedRepo")]).into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    })
}

async fn list(State(stage): State<Arc<Stage>>, headers: HeaderMap) -> Response {
    if let Some(answer) = refused(&stage, &headers) {
        return answer;
    }
    let siblings: Vec<_> = stage
        .files
        .iter()
        .map(|(name, bytes)| match name.ends_with(".json") {
            true => json!({"rfilename": name, "size": bytes.len(), "blobId": hex::encode([bytes.len() as u8; 20])}),
            false => json!({"rfilename": name, "size": bytes.len(), "blobId": hex::encode([1; 20]),
                "lfs": {"sha256": hex::encode(sha2::Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 100}}),
        })
        .collect();
    Json(json!({"id": "someone/tiny", "sha": "c0ffee", "siblings": siblings})).into_response()
}

async fn file(
    State(stage): State<Arc<Stage>>,
    UrlPath((_, _, _, name)): UrlPath<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(answer) = refused(&stage, &headers) {
        return answer;
    }
    let Some(bytes) = stage.files.get(&name) else { return StatusCode::NOT_FOUND.into_response() };
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    stage.asked.lock().unwrap().push((name.clone(), from.unwrap_or(0) as u64));
    let together = stage.now.fetch_add(1, Ordering::SeqCst) + 1;
    stage.most.fetch_max(together, Ordering::SeqCst);
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    stage.now.fetch_sub(1, Ordering::SeqCst);
    let mut rest = bytes[from.unwrap_or(0)..].to_vec();
    if name.ends_with(".safetensors") && take_one(&stage.damaged) {
        rest[0] ^= 1;
    }
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut answer = Response::builder().status(status).header(header::CONTENT_LENGTH, rest.len());
    if let Some(from) = from {
        answer = answer.header(header::CONTENT_RANGE, format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
    }
    let breaks = name.ends_with(".safetensors") && take_one(&stage.breaks);
    let first = Bytes::copy_from_slice(&rest[..if breaks { rest.len() / 2 } else { rest.len() }]);
    let parts = futures::stream::iter([Ok(first)]).chain(futures::stream::once(async move {
        match breaks {
            // Lets the first half go out before the connection is dropped.
            true => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                Err(std::io::Error::other("the wire is cut"))
            }
            false => Ok(Bytes::new()),
        }
    }));
    answer.body(Body::from_stream(parts)).unwrap()
}

/// A stand-in with its own threads; stops with the process.
fn serve(stage: Stage) -> (Arc<Stage>, String) {
    let stage = Arc::new(stage);
    let router = Router::new()
        .route("/api/models/{owner}/{name}/revision/main", get(list))
        .route("/{owner}/{name}/resolve/{revision}/{file}", get(file))
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
    (stage, format!("http://{}", receive.recv().unwrap()))
}

fn hub(endpoint: &str, token: Option<&str>, cache: &Path) -> Hub {
    Hub { endpoint: endpoint.to_owned(), token: token.map(str::to_owned), cache: cache.to_owned() }
}

fn bring(hub: &Hub, data: &Path) -> Result<std::path::PathBuf, String> {
    pull::pull_from(hub, "someone/tiny", data, None, &mut |_| {}).map_err(|e| e.to_string())
}

#[test]
fn a_repository_is_downloaded_completely_and_in_parallel() {
    let (stage, endpoint) = serve(Stage { files: model_files(), ..Stage::default() });
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut seen = BTreeMap::new();
    let path = pull::pull_from(&hub(&endpoint, None, cache.path()), "someone/tiny", data.path(), None, &mut |at| {
        seen.insert(at.what.clone(), (at.done, at.total));
    })
    .unwrap();
    assert_eq!(path, data.path().join("models/tiny"));
    assert!(model::load(&path, &candle_core::Device::Cpu).is_ok());
    for (name, bytes) in &stage.files {
        let part = name != "README.md" && name != "consolidated.safetensors";
        assert_eq!(path.join(name).exists(), part, "{name}");
        let size = bytes.len() as u64;
        assert_eq!(seen.get(name), part.then_some(&(size, Some(size))), "{name}");
    }
    assert!(stage.most.load(Ordering::SeqCst) > 1, "one after another");
    // No parts are left behind.
    let blobs = cache.path().join("models--someone--tiny/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
}

#[test]
fn an_interrupted_download_is_resumed() {
    let files = model_files();
    let half = files["model.safetensors"].len() as u64 / 2;
    let stage = Stage { files, breaks: AtomicUsize::new(1), unwell: AtomicUsize::new(1), ..Stage::default() };
    let (stage, endpoint) = serve(stage);
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap();
    assert!(model::load(&path, &candle_core::Device::Cpu).is_ok());
    let asked = stage.asked.lock().unwrap();
    let of: Vec<u64> = asked.iter().filter(|(name, _)| name == "model.safetensors").map(|(_, at)| *at).collect();
    assert_eq!(of, [0, half], "the second try begins where the first ended");
}

/// Also after the process has ended: what came is kept in Hugging Face's own folder.
#[test]
fn another_pull_resumes_and_uses_existing_files() {
    let files = model_files();
    let weights = files["model.safetensors"].clone();
    let sha = hex::encode(sha2::Sha256::digest(&weights));
    let (stage, endpoint) = serve(Stage { files, ..Stage::default() });
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--someone--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{sha}.incomplete")), &weights[..1000]).unwrap();
    bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap();
    assert!(stage.asked.lock().unwrap().contains(&("model.safetensors".into(), 1000)));
    // A file that another program has brought is not asked for.
    std::fs::write(blobs.join(&sha), &weights).unwrap();
    stage.asked.lock().unwrap().clear();
    let data = tempfile::tempdir().unwrap();
    bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap();
    assert!(stage.asked.lock().unwrap().iter().all(|(name, _)| name != "model.safetensors"));
    assert!(blobs.join(&sha).exists());
}

#[test]
fn damage_in_transit_is_detected_and_downloaded_again() {
    let stage = Stage { files: model_files(), damaged: AtomicUsize::new(1), ..Stage::default() };
    let (stage, endpoint) = serve(stage);
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap();
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), stage.files["model.safetensors"]);
    let stage = Stage { files: model_files(), damaged: AtomicUsize::new(99), ..Stage::default() };
    let (_, endpoint) = serve(stage);
    let data = tempfile::tempdir().unwrap();
    let error = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap_err();
    assert!(error.contains("is damaged: "), "{error}");
    assert!(!data.path().join("models/tiny").exists());
}

#[test]
fn private_and_gated_repositories_require_a_token() {
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, endpoint) = serve(Stage { files: model_files(), token: Some("hf_right".into()), ..Stage::default() });
    let error = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap_err();
    assert!(error.contains("private") && error.contains("HF_TOKEN"), "{error}");
    let error = bring(&hub(&endpoint, Some("hf_wrong"), cache.path()), data.path()).unwrap_err();
    assert!(error.contains("may not read someone/tiny") && !error.contains("hf_wrong"), "{error}");
    bring(&hub(&endpoint, Some("hf_right"), cache.path()), data.path()).unwrap();

    let gated = Stage { files: model_files(), token: Some("hf_right".into()), gated: true, ..Stage::default() };
    let (_, endpoint) = serve(gated);
    let data = tempfile::tempdir().unwrap();
    let error = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap_err();
    assert!(error.contains("accept the licence") && error.contains("/someone/tiny"), "{error}");
}

#[test]
fn the_environment_configures_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().to_string_lossy().into_owned();
    let of = |set: &[(&str, &str)]| {
        let vars: BTreeMap<String, String> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Hub::from_vars(&|name| vars.get(name).cloned())
    };
    let usual = of(&[("HOME", &root)]);
    assert_eq!((usual.endpoint.as_str(), &usual.token), ("https://huggingface.co", &None));
    assert_eq!(usual.cache, home.path().join(".cache/huggingface/hub"));
    std::fs::write(home.path().join("token"), "hf_stored\n").unwrap();
    let mirror = of(&[("HF_HOME", &root), ("HF_ENDPOINT", "https://mirror.example/")]);
    assert_eq!((mirror.endpoint.as_str(), mirror.token.as_deref()), ("https://mirror.example", Some("hf_stored")));
    assert_eq!(mirror.cache, home.path().join("hub"));
    let own = of(&[("HF_HOME", &root), ("HF_TOKEN", "hf_own"), ("HF_HUB_CACHE", "/somewhere")]);
    assert_eq!((own.token.as_deref(), own.cache.to_str()), (Some("hf_own"), Some("/somewhere")));
}

#[test]
fn a_repository_with_one_gguf_file_is_that_model() {
    let mut files = BTreeMap::from([("tiny.q4.gguf".to_owned(), super::damaged::tiny_gguf())]);
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, endpoint) = serve(Stage { files: files.clone(), ..Stage::default() });
    let path = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap();
    assert_eq!(path, data.path().join("models/tiny/model.gguf"));
    files.insert("tiny.q8.gguf".to_owned(), super::damaged::tiny_gguf());
    let (_, endpoint) = serve(Stage { files, ..Stage::default() });
    let data = tempfile::tempdir().unwrap();
    let error = bring(&hub(&endpoint, None, cache.path()), data.path()).unwrap_err();
    assert!(error.contains("tiny.q4.gguf, tiny.q8.gguf") && error.contains("--from"), "{error}");
}
