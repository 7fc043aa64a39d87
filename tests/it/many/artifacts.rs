//! The artifact store: a directory, and a bucket as S3 speaks it. Published once, brought anywhere, checked.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use instructd::artifacts::{ArtifactError, Artifacts, Remote};
use instructd::config::ArtifactsConfig;
use instructd::domain::{ModelKind, ModelVersion};
use instructd::store::Store;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use crate::store::{backend, fixture};

/// Files of a model, one of them larger than what goes up in one piece.
fn put_model(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    let weights: Vec<u8> = (0..23u32 << 18).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect();
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    std::fs::write(dir.join("sub/merges with space.txt"), "a b").unwrap();
}

struct Machine {
    data: tempfile::TempDir,
    artifacts: Arc<Artifacts>,
}

fn machine(store: &Arc<Store>, remote: Option<Remote>) -> Machine {
    let data = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::with(data.path().to_owned(), store.clone(), remote);
    Machine { data, artifacts }
}

/// Publishes on one machine, brings to another.
async fn files_are_shared(remote: impl Fn() -> Remote) {
    let fresh = backend::sqlite().await.unwrap();
    let (here, there) = (machine(&fresh.store, Some(remote())), machine(&fresh.store, Some(remote())));
    let version = fixture::model("m", ModelKind::Policy);
    let dir = here.data.path().join("models/m");
    put_model(&dir);
    let files = here.artifacts.publish(&version.id, &dir).await.unwrap();
    assert_eq!(files.len(), 4);
    fresh.store.models().put(version.clone()).await.unwrap();
    fresh.store.models().put_files(&version.id, files.clone()).await.unwrap();
    assert_eq!(here.artifacts.path(&version).await.unwrap(), dir, "what is here is not brought");
    // Many at once: brought once, whole for everybody.
    let paths = futures::future::join_all((0..4).map(|_| there.artifacts.path(&version))).await;
    for path in paths {
        let path = path.unwrap();
        assert!(path.starts_with(there.data.path()));
        instructd::artifacts::verify("m", &path, &files).unwrap();
        assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap().len(), 23 << 20);
    }
    let left: Vec<_> = std::fs::read_dir(there.data.path().join("fetched")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing half-made beside it: {left:?}");

    // A single .gguf file is a file on the other machine too.
    let gguf = ModelVersion { artifact_uri: "/elsewhere/m.gguf".into(), ..fixture::model("g", ModelKind::Policy) };
    let file = here.data.path().join("m.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    let files = here.artifacts.publish(&gguf.id, &file).await.unwrap();
    fresh.store.models().put(gguf.clone()).await.unwrap();
    fresh.store.models().put_files(&gguf.id, files).await.unwrap();
    let path = there.artifacts.path(&gguf).await.unwrap();
    assert_eq!((path.file_name().unwrap(), std::fs::read(&path).unwrap()), ("m.gguf".as_ref(), b"GGUF".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_shared_by_a_directory() {
    let shared = tempfile::tempdir().unwrap();
    let url = Some(format!("file://{}", shared.path().join("deep/artifacts").display()));
    let config = ArtifactsConfig { url, ..Default::default() };
    files_are_shared(|| Remote::open(&config).unwrap().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_shared_by_a_bucket() {
    let bucket = Bucket::start().await;
    let config = ArtifactsConfig {
        url: Some("s3://models/some/prefix".into()),
        endpoint: Some(bucket.url.clone()),
        region: Some("eu-central-1".into()),
        access_key_id: Some("key".into()),
        secret_access_key: Some("secret".into()),
        allow_http: true,
    };
    files_are_shared(|| Remote::open(&config).unwrap().unwrap()).await;
    let objects = bucket.state.objects.lock().unwrap();
    assert!(objects.keys().all(|k| k.starts_with("/models/some/prefix/")), "{:?}", objects.keys());
    assert!(bucket.state.parts.lock().unwrap().len() > 1, "the large file went up in parts");
}

#[tokio::test]
async fn files_changed_in_the_store_are_refused() {
    let fresh = backend::sqlite().await.unwrap();
    let objects = Arc::new(InMemory::new());
    let here = machine(&fresh.store, Some(Remote::new(objects.clone())));
    let dir = here.data.path().join("models/m");
    put_model(&dir);
    let version = fixture::model("m", ModelKind::Policy);
    let files = here.artifacts.publish(&version.id, &dir).await.unwrap();
    fresh.store.models().put(version.clone()).await.unwrap();
    fresh.store.models().put_files(&version.id, files).await.unwrap();
    let key = object_store::path::Path::from(format!("{}/config.json", version.id));
    for other in ["[]", "{} and more", ""] {
        objects.put(&key, other.as_bytes().to_vec().into()).await.unwrap();
        let there = machine(&fresh.store, Some(Remote::new(objects.clone())));
        let error = there.artifacts.path(&version).await.unwrap_err();
        assert!(matches!(&error, ArtifactError::Damaged { file, .. } if file == "config.json"), "{error}");
        assert_eq!(std::fs::read_dir(there.data.path().join("fetched")).map_or(0, Iterator::count), 0);
    }
    // Gone from the store, or no store at all: the error says which model and where it was looked for.
    objects.delete(&key).await.unwrap();
    let there = machine(&fresh.store, Some(Remote::new(objects)));
    assert!(matches!(there.artifacts.path(&version).await.unwrap_err(), ArtifactError::Remote(_)));
    let alone = machine(&fresh.store, None);
    let error = alone.artifacts.path(&version).await.unwrap_err().to_string();
    assert!(error.contains("'m'") && error.contains("models/m"), "{error}");
}

#[test]
fn other_places_are_refused() {
    for url in ["/srv", "http://x/y", "gs://b"] {
        let config = ArtifactsConfig { url: Some(url.into()), ..Default::default() };
        assert!(Remote::open(&config).is_err(), "{url}");
    }
    assert!(Remote::open(&ArtifactsConfig::default()).unwrap().is_none());
}

// ---------------------------------------------------------------- a bucket that speaks enough of S3

#[derive(Default)]
struct Objects {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// (key, part number) → bytes
    parts: Mutex<BTreeMap<(String, u32), Bytes>>,
}

struct Bucket {
    url: String,
    state: Arc<Objects>,
}

impl Bucket {
    async fn start() -> Self {
        let state = Arc::new(Objects::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(state.clone());
        let router = router.layer(axum::extract::DefaultBodyLimit::max(64 << 20));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }
}

async fn answer(
    State(state): State<Arc<Objects>>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let signed = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !signed.starts_with("AWS4-HMAC-SHA256 Credential=key/") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let key = uri.path().to_owned();
    let part = query.get("partNumber").and_then(|n| n.parse().ok());
    let etag = [("etag", "\"1\"")];
    match (method, part) {
        (Method::PUT, Some(part)) => {
            state.parts.lock().unwrap().insert((key, part), body);
            etag.into_response()
        }
        (Method::PUT, None) => {
            state.objects.lock().unwrap().insert(key, body);
            etag.into_response()
        }
        (Method::POST, _) if query.contains_key("uploads") => "<InitiateMultipartUploadResult><Bucket>models</Bucket>\
             <Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            .into_response(),
        (Method::POST, _) if query.contains_key("uploadId") => {
            let parts = state.parts.lock().unwrap();
            let whole: Vec<u8> =
                parts.iter().filter(|((k, _), _)| *k == key).flat_map(|(_, bytes)| bytes.to_vec()).collect();
            state.objects.lock().unwrap().insert(key, whole.into());
            "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>".into_response()
        }
        (Method::GET, _) => match state.objects.lock().unwrap().get(&key) {
            Some(bytes) => {
                let modified = ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT");
                ([etag[0], modified], bytes.clone()).into_response()
            }
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_IMPLEMENTED.into_response(),
    }
}
