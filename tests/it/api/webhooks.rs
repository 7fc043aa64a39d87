//! Webhooks against a receiver on this machine: signatures, retries, giving up, sending again, several servers, and
//! which addresses are refused.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use instructd::domain::*;
use instructd::service::random::secret_hash;
use instructd::service::webhooks::Runner;
use instructd::service::{Random, Services};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::client::{ADMIN_KEY, Server, version};
use crate::store::fixture::{self, stored_set};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
/// In every text that people and models write here.
const MARK: &str = "WORDS-OF-PEOPLE";

pub struct Received {
    headers: HeaderMap,
    body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Answers with the given statuses, then with 204.
#[derive(Default)]
pub struct Receiver {
    received: Mutex<Vec<Received>>,
    statuses: Mutex<VecDeque<u16>>,
}

impl Receiver {
    /// The receiver and its `host:port`.
    pub async fn start() -> (Arc<Self>, String) {
        let receiver = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (receiver, host)
    }

    pub fn answers(&self, statuses: impl IntoIterator<Item = u16>) {
        *self.statuses.lock().unwrap() = statuses.into_iter().collect();
    }

    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

async fn receive(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: String) -> Response {
    receiver.received.lock().unwrap().push(Received { headers, body });
    let status = receiver.statuses.lock().unwrap().pop_front().unwrap_or(204);
    let status = StatusCode::from_u16(status).unwrap();
    if status.is_redirection() {
        (status, [("location", "/elsewhere")]).into_response()
    } else {
        status.into_response()
    }
}

/// HMAC-SHA256 as RFC 2104 defines it, for keys of up to 64 bytes.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// Verifies a message as a receiver does.
fn verify(received: &Received, secret: &str, now: i64) {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let (id, timestamp) = (received.header("webhook-id"), received.header("webhook-timestamp"));
    let signed = hmac(&key, format!("{id}.{timestamp}.{}", received.body).as_bytes());
    assert_eq!(received.header("webhook-signature"), format!("v1,{}", STANDARD.encode(signed)));
    assert_eq!(timestamp.parse::<i64>().unwrap(), now / SECOND);
    assert_eq!(received.header("content-type"), "application/json");
}

struct World {
    server: Server,
    clock: Arc<AtomicI64>,
    receiver: Arc<Receiver>,
    host: String,
    runner: Runner,
}

impl World {
    async fn new() -> Self {
        let (receiver, host) = Receiver::start().await;
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let clock = Arc::new(AtomicI64::new(wall.as_micros() as i64));
        let allowed = host.clone();
        let server = Server::at(clock.clone(), |c| {
            c.webhooks.hosts = vec![allowed];
            c.webhooks.attempts = 3;
        })
        .await;
        let runner = Runner::new(server.services.clone()).unwrap();
        Self { server, clock, receiver, host, runner }
    }

    fn now(&self) -> i64 {
        self.clock.load(SeqCst)
    }

    /// Moves the clock and lets the server do what is due.
    async fn after(&self, micros: i64) {
        self.clock.fetch_add(micros, SeqCst);
        self.runner.round().await.unwrap();
    }

    /// Id and secret of a new webhook.
    async fn webhook(&self, events: &[&str]) -> (String, String) {
        let body = json!({"url": format!("http://{}/hook?token=in-url", self.host), "events": events});
        let made = self.server.post("/admin/webhooks", body).await.expect(201).json();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    async fn judge(&self, key: &str) -> Judgment {
        let set = stored_set(&self.server.services.store, &format!("{MARK} {key}"), &[MARK, "b"], 1).await;
        let given = Judgment {
            created: self.now(),
            rationale: Some(MARK.into()),
            ..fixture::judgment(&set, &"admin".into(), None, key)
        };
        let submit = fixture::submit(given, None, self.now());
        self.server.services.store.judgments().submit(submit).await.unwrap().judgment
    }

    async fn deliveries(&self, query: &str) -> Vec<Value> {
        let path = format!("/admin/webhook-deliveries{query}");
        self.server.get(&path).await.expect(200).json()["data"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn deliveries_are_signed_tried_again_and_given_up() {
    let world = World::new().await;
    world.judge("before").await;
    world.after(SECOND).await;
    let (id, secret) = world.webhook(&["judgment.created"]).await;
    let listed = world.server.get("/admin/webhooks").await.expect(200);
    assert_eq!(listed.json()["data"][0]["id"], json!(id));
    assert!(!listed.text.contains("whsec_"), "a secret is shown once");
    world.after(SECOND).await;
    assert!(world.receiver.take().is_empty(), "events from before the webhook are not sent");

    // Two failures, then a success: the same id and body, a new timestamp and signature.
    world.receiver.answers([500, 429]);
    let judged = world.judge("one").await;
    world.after(SECOND).await;
    let first = world.receiver.take();
    assert_eq!(first.len(), 1);
    verify(&first[0], &secret, world.now());
    let body = first[0].json();
    assert_eq!(body["type"], "judgment.created");
    assert_eq!(body["data"]["judgment_id"], json!(judged.id));
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'), "{body}");
    assert!(!first[0].body.contains(MARK), "{body}");
    world.after(5 * SECOND).await;
    assert!(world.receiver.take().is_empty(), "the second attempt waits");
    let pending = world.deliveries("?state=pending").await;
    assert_eq!((&pending[0]["attempts"], &pending[0]["last_code"]), (&json!(1), &json!(500)));
    world.after(7 * SECOND).await;
    let second = world.receiver.take();
    assert_eq!(second.len(), 1);
    verify(&second[0], &secret, world.now());
    assert_eq!((second[0].header("webhook-id"), &second[0].body), (first[0].header("webhook-id"), &first[0].body));
    world.after(20 * SECOND).await;
    assert!(world.receiver.take().is_empty(), "the third attempt waits longer");
    world.after(25 * SECOND).await;
    assert_eq!(world.receiver.take().len(), 1);
    let done = world.deliveries("?state=delivered").await;
    assert_eq!((&done[0]["attempts"], &done[0]["last_code"]), (&json!(3), &json!(204)));
    assert_eq!((&done[0]["last_error"], &done[0]["webhook_id"]), (&Value::Null, &json!(id)));
    world.after(MINUTE).await;
    assert!(world.receiver.take().is_empty(), "what was delivered is not sent again");

    // Redirects are failures; after the last attempt a delivery is given up.
    world.receiver.answers([500, 307, 500]);
    world.judge("two").await;
    for _ in 0..6 {
        world.after(MINUTE).await;
    }
    assert_eq!(world.receiver.take().len(), 3);
    let failed = world.deliveries(&format!("?state=failed&webhook={id}")).await;
    assert_eq!(failed.len(), 1);
    assert!(failed[0]["ended"].is_i64());

    // It can be sent again.
    let again = format!("/admin/webhook-deliveries/{}/resend", failed[0]["id"].as_str().unwrap());
    world.server.post(&again, json!({})).await.expect(202);
    world.after(SECOND).await;
    let third = world.receiver.take();
    assert_eq!(third[0].header("webhook-id"), failed[0]["id"].as_str().unwrap());
    assert_eq!(world.deliveries("?state=failed").await.len(), 0);
    world.server.post("/admin/webhook-deliveries/nothing/resend", json!({})).await.expect(404);

    // A test, which any webhook gets.
    world.server.post(&format!("/admin/webhooks/{id}/test"), json!({})).await.expect(202);
    world.after(SECOND).await;
    assert_eq!(world.receiver.take()[0].json()["type"], "webhook.test");
    world.server.post("/admin/webhooks/nothing/test", json!({})).await.expect(404);

    // Old deliveries go; the webhook goes with the rest of them, and what happens later is not sent.
    world.after(31 * 24 * 60 * MINUTE).await;
    world.after(61 * MINUTE).await;
    assert_eq!(world.deliveries("").await, [] as [Value; 0]);
    world.server.raw("DELETE", &format!("/admin/webhooks/{id}"), "application/json", "").await.expect(204);
    world.judge("three").await;
    world.after(MINUTE).await;
    assert!(world.receiver.take().is_empty());
    let trail = world.server.get("/admin/audit").await.expect(200);
    for action in ["create_webhook", "resend_delivery", "delete_webhook"] {
        assert!(trail.text.contains(action), "{action}");
    }
    assert!(!trail.text.contains("in-url"), "a URL may hold a secret");
}

#[tokio::test]
async fn jobs_promotions_and_notices_are_told() {
    let world = World::new().await;
    let store = world.server.services.store.clone();
    let events = ["job.succeeded", "job.failed", "model.promoted", "queue.empty", "gold.drift"];
    world.webhook(&events).await;
    let open = stored_set(&store, "p", &["a", "b"], 1).await;
    world.after(SECOND).await;
    assert!(world.receiver.take().is_empty());

    let better = version("better", ModelKind::Policy, None);
    store.models().put(better.clone()).await.unwrap();
    world.server.post("/admin/models/better/promote", json!({})).await.expect(200);
    let notes = JobNotes { name: Some("nightly".into()), note: Some(MARK.into()), ..JobNotes::default() };
    for (kind, state) in [("sft", JobState::Succeeded), ("ppo", JobState::Failed), ("dpo", JobState::Cancelled)] {
        store.jobs().enqueue(Job { notes: notes.clone(), ..fixture::job(kind, None, 0) }).await.unwrap();
        let (_, fence) = store.jobs().claim("me", 60, &[], 3).await.unwrap().unwrap();
        store.jobs().finish(&fence, state, Some(json!({"text": MARK})), Some(MARK)).await.unwrap();
    }
    let given = fixture::judgment(&open, &"admin".into(), None, "k");
    store.judgments().submit(fixture::submit(given, None, world.now())).await.unwrap();
    world.after(MINUTE).await;
    let told = world.receiver.take();
    let of = |name: &str| {
        let mut found = told.iter().map(Received::json).filter(|m| m["type"] == name);
        let one = found.next().unwrap_or_else(|| panic!("nothing was told of {name}"));
        assert_eq!(found.next(), None, "{name} was told twice");
        one["data"].clone()
    };
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|m| !m.body.contains(MARK)), "only ids, kinds, names and numbers are sent");
    assert_eq!((&of("model.promoted")["name"], &of("model.promoted")["roll_back"]), (&json!("better"), &json!(false)));
    assert_eq!((&of("job.succeeded")["kind"], &of("job.succeeded")["name"]), (&json!("sft"), &json!("nightly")));
    assert_eq!(of("job.failed")["kind"], "ppo");
    assert_eq!(of("queue.empty")["open_sets"], 0);
    world.after(MINUTE).await;
    assert!(world.receiver.take().is_empty());

    // Answers to known sets that become worse: fifty right ones, then fifty of which half are wrong.
    for i in 0..100 {
        let set = stored_set(&store, &format!("gold {i}"), &["a", "b"], 1).await;
        let known: Vec<_> = set.completion_ids.iter().cloned().zip(0..).collect();
        store.sets().make_gold(&set.id, SetKind::Gold, &known, None).await.unwrap();
        let at = world.now() + i;
        let mut given =
            Judgment { created: at, ..fixture::judgment(&set, &"admin".into(), None, &format!("gold {i}")) };
        if i >= 50 && i % 2 == 0 {
            (given.items[0].tier, given.items[1].tier) = (1, 0);
        }
        store.judgments().submit(fixture::submit(given, None, at)).await.unwrap();
        if i == 49 {
            world.after(MINUTE).await;
            assert!(world.receiver.take().is_empty());
        }
    }
    world.after(MINUTE).await;
    let told = world.receiver.take();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].json()["type"], "gold.drift");
    assert_eq!(told[0].json()["data"]["recent"], json!({"accuracy": 0.5, "rankings": 50}));
}

#[tokio::test]
async fn two_servers_send_once_and_a_third_goes_on() {
    let world = World::new().await;
    let (id, secret) = world.webhook(&["judgment.created"]).await;
    let first = &world.server.services;
    let another = || {
        let clock = first.clock.clone();
        let (config, store) = (first.config.clone(), first.store.clone());
        let recipes = instructd::train::recipes();
        let services = Services::new(config, store, clock, Random::from_seed(11), secret_hash(ADMIN_KEY), recipes);
        Runner::new(Arc::new(services)).unwrap()
    };
    let second = another();
    let mut judged: Vec<String> = Vec::new();
    for round in 0..3 {
        for i in 0..15 {
            judged.push(world.judge(&format!("{round} {i}")).await.id.to_string());
        }
        world.clock.fetch_add(SECOND, SeqCst);
        let (one, two) = tokio::join!(world.runner.round(), second.round());
        one.unwrap();
        two.unwrap();
    }
    let received = world.receiver.take();
    let mut told: Vec<_> =
        received.iter().map(|m| m.json()["data"]["judgment_id"].as_str().unwrap().to_owned()).collect();
    told.sort();
    judged.sort();
    assert_eq!(told, judged, "each judgment is told once");
    received.iter().for_each(|m| assert!(m.header("webhook-signature").starts_with("v1,")));

    // A server that is killed while it sends leaves its delivery to another one, after a minute.
    let judged = world.judge("last").await;
    world.receiver.answers([500]);
    world.after(SECOND).await;
    world.receiver.take();
    world.clock.fetch_add(20 * SECOND, SeqCst);
    let now = world.now();
    let held = first.store.webhooks().claim(&id, "killed", now, now + MINUTE, 8).await.unwrap();
    assert_eq!(held.len(), 1);
    world.after(30 * SECOND).await;
    assert!(world.receiver.take().is_empty(), "it is held");
    world.clock.fetch_add(31 * SECOND, SeqCst);
    another().round().await.unwrap();
    let received = world.receiver.take();
    assert_eq!(received.len(), 1);
    verify(&received[0], &secret, world.now());
    assert_eq!(received[0].json()["data"]["judgment_id"], json!(judged.id));
}

#[tokio::test]
async fn addresses_that_only_the_server_reaches_are_refused() {
    let world = World::new().await;
    let make = async |url: &str| {
        let body = json!({"url": url, "events": ["job.failed"]});
        world.server.post("/admin/webhooks", body).await
    };
    for url in [
        "http://example.org/hook",
        "http://127.0.0.1:1/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.8/",
        "https://0x7f000001/",
        "https://user:word@example.org/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "no URL",
        "",
    ] {
        assert_eq!(make(url).await.expect(400).param().as_deref(), Some("url"), "{url}");
    }
    make(&format!("https://example.org/{}", "x".repeat(2048))).await.expect(400);
    for events in [json!([]), json!(["webhook.test"]), json!(["unknown"])] {
        let body = json!({"url": "https://example.org/", "events": events});
        world.server.post("/admin/webhooks", body).await.expect(400);
    }
    assert_eq!(world.server.get("/admin/webhooks").await.json()["data"], json!([]));

    // A name is looked up when it is called, and only public addresses are called.
    let (_, port) = world.host.split_once(':').unwrap();
    let made = make(&format!("https://localhost:{port}/hook")).await.expect(201).json();
    let id = made["id"].as_str().unwrap();
    world.server.post(&format!("/admin/webhooks/{id}/test"), json!({})).await.expect(202);
    world.after(SECOND).await;
    assert!(world.receiver.take().is_empty());
    let tried = &world.deliveries("").await[0];
    assert_eq!((&tried["attempts"], &tried["last_code"]), (&json!(1), &Value::Null));
    assert!(tried["last_error"].as_str().unwrap().contains("not public"), "{tried}");

    // There is a limit.
    for _ in 1..50 {
        make("https://example.org/").await.expect(201);
    }
    make("https://example.org/").await.expect(400);
}
