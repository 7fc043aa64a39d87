//! Many labelers at once through the whole router, on SQLite and (where `INSTRUCTD_BENCH_POSTGRES` names an empty
//! database) PostgreSQL: first without a pause, then with pauses of five seconds on the mean.
//! `cargo bench --bench labelers [-- FILE.json]`; prints a line per measurement, and writes them to the file.
//! `INSTRUCTD_BENCH_ONLY=PostgreSQL` measures that database alone, and `INSTRUCTD_BENCH_ONLY=rush` the labelers without
//! pauses alone. Every acknowledged judgment is looked for afterwards, over a new connection.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use instructd::config::Config;
use instructd::domain::LabelerId;
use instructd::service::random::secret_hash;
use instructd::service::{Random, Services, system_clock};
use instructd::store::{Page, Store, connect};
use serde_json::{Value, json};
use tower::ServiceExt;

const KEY: &str = "bench-admin-key";
const PEOPLE: usize = 200;
const OVERLAP: usize = 3;
const PAUSE: f64 = 5.0;

struct Server {
    router: Router,
    store: Arc<Store>,
}

impl Server {
    async fn call(&self, method: &str, path: &str, bearer: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {bearer}"))
            .header("content-type", "application/json")
            .body(body)
            .expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// As the page does when the database is busy: again, with the same key.
    async fn patient(&self, method: &str, path: &str, bearer: &str, body: Option<&Value>) -> (u16, Value) {
        loop {
            let (status, answer) = self.call(method, path, bearer, body).await;
            if status != 503 {
                return (status, answer);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// `round` makes ids and keys differ between the rounds on one database.
async fn server(url: &str, dir: &std::path::Path, round: u64) -> Server {
    let config = Config { data_dir: dir.to_owned(), ..Config::default() };
    let store = connect(url).await.expect("a database");
    let services = Services::new(
        config,
        store.clone(),
        system_clock(),
        Random::from_seed(11 + round),
        secret_hash(KEY),
        instructd::train::recipes(),
    );
    Server { router: instructd::http::router(Arc::new(services)), store }
}

#[derive(Default)]
struct Done {
    judgments: Vec<String>,
    turns: Vec<Duration>,
    submits: Vec<Duration>,
}

/// Ranks until nothing is open or the time is over. `random` gives the pauses.
async fn work(server: Arc<Server>, bearer: String, paced: bool, until: Instant, mut random: u64) -> Done {
    let mut done = Done::default();
    let mut pause = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((random >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        Duration::from_secs_f64(-PAUSE * uniform.ln())
    };
    if paced {
        tokio::time::sleep(pause()).await;
    }
    while Instant::now() < until {
        let start = Instant::now();
        let (status, turn) = server.patient("GET", "/v1/label/next", &bearer, None).await;
        if status == 204 {
            break;
        }
        assert_eq!(status, 200, "{turn}");
        done.turns.push(start.elapsed());
        if paced {
            tokio::time::sleep(pause()).await;
        }
        let completions = turn["completions"].as_array().expect("completions");
        let items: Vec<Value> =
            completions.iter().enumerate().map(|(i, c)| json!({"completion_id": c["id"], "tier": i % 3})).collect();
        let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "active_ms": 5,
                          "idempotency_key": format!("key of {}", turn["assignment_id"])});
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().expect("an id"));
        let start = Instant::now();
        let (status, stored) = server.patient("POST", &path, &bearer, Some(&body)).await;
        assert_eq!(status, 200, "{stored}");
        done.submits.push(start.elapsed());
        done.judgments.push(stored["judgment"]["id"].as_str().expect("an id").to_owned());
    }
    done
}

fn at(times: &[Duration], p: f64) -> f64 {
    let millis = times.get(((times.len().max(1) - 1) as f64 * p) as usize).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3);
    (millis * 10.0).round() / 10.0
}

async fn measure(url: &str, name: &str, paced: bool, sets: usize, longest: Duration) -> Value {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let round = ROUND.fetch_add(1, Relaxed);
    let dir = tempfile::tempdir().expect("a directory");
    let server = Arc::new(server(url, dir.path(), round).await);
    for i in 0..sets {
        let body = json!({"messages": [{"role": "user", "content": format!("question {i} of {round}")}],
                          "overlap": OVERLAP, "completions": [format!("a{i}"), format!("b{i}"), format!("c{i}")]});
        assert_eq!(server.call("POST", "/v1/comparison-sets", KEY, Some(&body)).await.0, 201);
    }
    let mut people = Vec::new();
    for i in 0..PEOPLE {
        let body = json!({"name": format!("person {i} of {round}"), "scopes": ["feedback"]});
        let (status, made) = server.call("POST", "/admin/keys", KEY, Some(&body)).await;
        assert_eq!(status, 201);
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        people.push((LabelerId::from(text("labeler_id")), text("key")));
    }
    let (start, sent) = (Instant::now(), server.store.statements());
    let tasks: Vec<_> = people
        .iter()
        .enumerate()
        .map(|(i, (_, key))| tokio::spawn(work(server.clone(), key.clone(), paced, start + longest, i as u64 + 1)))
        .collect();
    let mut all = Done::default();
    for task in tasks {
        let done = task.await.expect("a labeler");
        all.judgments.extend(done.judgments);
        all.turns.extend(done.turns);
        all.submits.extend(done.submits);
    }
    let seconds = start.elapsed().as_secs_f64();
    let statements = server.store.statements() - sent;
    server.store.close().await;
    // What was acknowledged is there, once.
    let store = connect(url).await.expect("the database again");
    let mut stored = Vec::new();
    for (id, _) in &people {
        let judgments =
            store.judgments().list(Page { after: None, limit: 1_000_000 }, Some(id)).await.expect("judgments");
        stored.extend(judgments.into_iter().map(|j| j.id.to_string()));
    }
    store.close().await;
    let (acknowledged, kept) = (all.judgments.iter().collect::<BTreeSet<_>>(), stored.iter().collect::<BTreeSet<_>>());
    assert_eq!(acknowledged, kept, "lost or doubled");
    assert_eq!(stored.len(), all.judgments.len(), "lost or doubled");
    all.turns.sort_unstable();
    all.submits.sort_unstable();
    let rate = (all.submits.len() as f64 / seconds).round();
    let row = json!({"database": name, "pauses": if paced { "5 s on the mean" } else { "none" },
        "submits": all.submits.len(), "seconds": (seconds * 10.0).round() / 10.0, "submits_per_second": rate,
        "submit_ms": {"p50": at(&all.submits, 0.5), "p99": at(&all.submits, 0.99), "max": at(&all.submits, 1.0)},
        "turn_ms": {"p50": at(&all.turns, 0.5), "p99": at(&all.turns, 0.99), "max": at(&all.turns, 1.0)},
        "statements": statements});
    println!("{row}");
    row
}

/// What one small write to the disk costs here: the bound of everything that is stored one by one.
fn sync_ms() -> f64 {
    use std::io::Write;
    let mut file = tempfile::tempfile().expect("a file");
    let start = Instant::now();
    for _ in 0..50 {
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("a write");
    }
    (start.elapsed().as_secs_f64() / 50.0 * 1e4).round() / 10.0
}

fn main() {
    let file = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let only = std::env::var("INSTRUCTD_BENCH_ONLY").ok();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut rows, sync) = (Vec::new(), sync_ms());
    println!("{{\"sync_ms\": {sync}}}");
    let dir = tempfile::tempdir().expect("a directory");
    let mut databases = vec![("SQLite", format!("sqlite://{}", dir.path().join("bench.db").display()))];
    databases.extend(std::env::var("INSTRUCTD_BENCH_POSTGRES").ok().map(|url| ("PostgreSQL", url)));
    for (name, url) in databases {
        for (paced, longest) in [(false, Duration::from_secs(120)), (true, Duration::from_secs(40))] {
            let label = format!("{name} {}", if paced { "paced" } else { "rush" });
            if only.as_ref().is_none_or(|only| label.contains(only)) {
                rows.push(runtime.block_on(measure(&url, name, paced, 2000, longest)));
            }
        }
    }
    if let Some(file) = file {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let text = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
        let data = json!({"commit": text("INSTRUCTD_BENCH_COMMIT"), "date": now,
            "machine": text("INSTRUCTD_BENCH_MACHINE"), "command": text("INSTRUCTD_BENCH_COMMAND"),
            "build": if cfg!(debug_assertions) { "debug build" } else { "release build" },
            "what": format!("{PEOPLE} labelers, 2000 sets of {OVERLAP} completions with {OVERLAP} places; router and labelers in one process"),
            "sync_ms": sync, "rows": rows});
        std::fs::write(&file, format!("{data:#}\n")).expect("the file");
    }
}
