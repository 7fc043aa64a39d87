//! A server in the test's own process and a client that speaks to its router.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use crate::support::mock::{MockGenerator, MockOptions};
use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use instructd::config::Config;
use instructd::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId};
use instructd::engine::{EngineOptions, Generator, LocalEngine};
use instructd::http::peer::Peer;
use instructd::service::random::secret_hash;
use instructd::service::searches::SearchLimits;
use instructd::service::{Clock, Random, Services, system_clock};
use serde_json::{Value, json};
use tower::ServiceExt;

pub const ADMIN_KEY: &str = "test-admin-key";

pub struct Server {
    pub services: Arc<Services>,
    pub router: Router,
    _dir: tempfile::TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text))
    }

    /// Panics with the body when the status is another one.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// The data of server-sent events.
    pub fn events(&self) -> Vec<String> {
        self.text.lines().filter_map(|l| l.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    pub fn param(&self) -> Option<String> {
        self.json()["error"]["param"].as_str().map(str::to_owned)
    }

    pub fn error_code(&self) -> Option<String> {
        self.json()["error"]["code"].as_str().map(str::to_owned)
    }
}

pub fn version(name: &str, kind: ModelKind, parent: Option<&ModelVersion>) -> ModelVersion {
    ModelVersion {
        id: ModelVersionId::new(),
        kind,
        name: name.to_owned(),
        stage: "base".to_owned(),
        parent_id: parent.map(|p| p.id.clone()),
        job_id: None,
        artifact_uri: format!("models/{name}"),
        sha256: "00".repeat(32),
        metrics: json!({}),
        state: ModelState::Candidate,
        created: 1,
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}, MockOptions::default()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config), mock: MockOptions) -> Self {
        Self::without_engine(change).await.with_mock(mock).await
    }

    /// On a clock that the test moves (µs).
    pub async fn at(clock: Arc<AtomicI64>, change: impl FnOnce(&mut Config)) -> Self {
        let clock: Clock = Arc::new(move || clock.load(SeqCst));
        Self::build(change, clock).await.with_mock(MockOptions::default()).await
    }

    async fn with_mock(self, mock: MockOptions) -> Self {
        let server = self;
        let base = version("base", ModelKind::Policy, None);
        server.services.store.models().put(base.clone()).await.unwrap();
        server.services.store.models().activate(&base.id, 1).await.unwrap();
        server.services.set_engine(Arc::new(MockGenerator::new(base, mock)));
        server
    }

    /// Serves a model of tests/fixtures by the real engine, as the policy `base`.
    pub async fn serving(fixture: &str) -> Self {
        Self::serving_on(fixture, "cpu").await
    }

    /// As `serving`, on this device.
    pub async fn serving_on(fixture: &str, device: &str) -> Self {
        Self::serving_with(fixture, EngineOptions { devices: vec![device.to_owned()], ..EngineOptions::default() })
            .await
    }

    /// As `serving`, with these options of the engine.
    pub async fn serving_with(fixture: &str, options: EngineOptions) -> Self {
        let server = Self::without_engine(|_| {}).await;
        let mut base = version("base", ModelKind::Policy, None);
        base.artifact_uri = crate::support::fixture(fixture).display().to_string();
        server.services.store.models().put(base.clone()).await.unwrap();
        server.services.store.models().activate(&base.id, 1).await.unwrap();
        let data_dir = server.services.config.data_dir.clone();
        let options = EngineOptions { data_dir, ..options };
        let engine = LocalEngine::start(options).unwrap();
        engine.load(&base).await.unwrap();
        engine.activate(&base.id).await.unwrap();
        server.services.set_engine(engine);
        server
    }

    /// With other limits of searches.
    pub async fn searching(limits: SearchLimits) -> Self {
        let Self { services, _dir: dir, .. } = Self::without_engine(|_| {}).await;
        let mut services = Arc::into_inner(services).expect("the router of the first server is gone");
        services.search = limits;
        Self::of(Arc::new(services), dir).with_mock(MockOptions::default()).await
    }

    /// Stores a demonstration, so that a job of kind `sft` has something to learn from.
    pub async fn demonstrate(&self) {
        let body = json!({"messages": [{"role": "user", "content": "a demonstrated question"}], "completion": "so"});
        self.post("/v1/demonstrations", body).await.expect(201);
    }

    pub async fn without_engine(change: impl FnOnce(&mut Config)) -> Self {
        Self::build(change, system_clock()).await
    }

    async fn build(change: impl FnOnce(&mut Config), clock: Clock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        config.server.hosts = vec!["here".to_owned(), "x".to_owned()];
        change(&mut config);
        let store = instructd::store::connect(&config.database_url()).await.unwrap();
        let services = Services::new(
            config,
            store,
            clock,
            Random::from_seed(7),
            secret_hash(ADMIN_KEY),
            instructd::train::job_kinds(),
        );
        Self::of(Arc::new(services), dir)
    }

    /// Over services made elsewhere, such as on another store.
    pub fn of(services: Arc<Services>, dir: tempfile::TempDir) -> Self {
        Self { router: instructd::http::router(services.clone()), services, _dir: dir }
    }

    /// Holds the answer against its contract.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let kind = parts.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
        super::contract::check(method.as_str(), &path, parts.status.as_u16(), kind, &text);
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// `headers` may hold `authorization`, `cookie`, `origin`, …
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        self.send(request.body(body).unwrap()).await
    }

    /// As if from this address.
    pub async fn from(
        &self,
        address: &str,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        let request = request.extension(Peer(address.parse().unwrap())).body(body).unwrap();
        self.send(request).await
    }

    /// A key with these scopes.
    pub async fn key(&self, scopes: &[&str], daily_tokens: Option<i64>) -> String {
        let body = json!({"name": "k", "scopes": scopes, "daily_tokens": daily_tokens});
        self.post("/admin/keys", body).await.expect(201).json()["key"].as_str().unwrap().to_owned()
    }

    /// Without a key.
    pub async fn open_post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[], Some(body)).await
    }

    /// With the admin key.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[admin()], Some(body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[admin()], None).await
    }

    /// Body as it is, with the admin key and a content type.
    pub async fn raw(&self, method: &str, path: &str, kind: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.header(admin().0, admin().1);
        self.send(request.body(body.into()).unwrap()).await
    }
}

pub fn admin() -> (&'static str, &'static str) {
    ("authorization", "Bearer test-admin-key")
}
