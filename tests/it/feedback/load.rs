//! Many labelers at once through the whole router: no judgment lost, doubled or given to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use instructd::config::Config;
use instructd::domain::*;
use instructd::service::random::secret_hash;
use instructd::service::{Random, Services, system_clock};
use instructd::store::{Page, Store};
use serde_json::{Value, json};

use crate::api::client::{ADMIN_KEY, Answer, Server};
use crate::store::backend::{self, Fresh};

const OVERLAP: i64 = 3;

pub(super) fn server(store: Arc<Store>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let recipes = instructd::train::job_kinds();
    let services = Services::new(config, store, system_clock(), Random::from_seed(11), secret_hash(ADMIN_KEY), recipes);
    Server::of(Arc::new(services), dir)
}

/// What one labeler saw accepted: judgment → (set, tiers by completion).
type Accepted = BTreeMap<String, (String, BTreeMap<String, i64>)>;

/// Asks again when the database is busy (503), as the page does: the same request, the same key.
async fn patient(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
    busy: &mut usize,
) -> Answer {
    loop {
        let answer = server.call(method, path, headers, body.clone()).await;
        if answer.status != 503 {
            return answer;
        }
        *busy += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What one labeler did.
struct Done {
    accepted: Accepted,
    skips: usize,
    /// Answers "busy".
    busy: usize,
    /// Times of submits, waits for a busy database included.
    times: Vec<Duration>,
}

/// Ranks until no set is open. Every third submit is sent twice, every seventh set is skipped.
async fn work(server: Arc<Server>, bearer: String, number: usize) -> Done {
    let headers = [("authorization", bearer.as_str())];
    let (mut accepted, mut skips, mut busy, mut times) = (Accepted::new(), 0, 0, Vec::new());
    let mut turns = number;
    loop {
        let answer = patient(&server, "GET", "/v1/label/next", &headers, None, &mut busy).await;
        if answer.status == 204 {
            // A busy database says nothing about what is left.
            if server.services.store.counts().await.is_ok_and(|counts| counts.sets_open == 0) {
                return Done { accepted, skips, busy, times };
            }
            // Others hold what is left, and may give it back.
            tokio::time::sleep(Duration::from_millis(300)).await;
            continue;
        }
        let turn = answer.expect(200).json();
        turns += 1;
        let skip = turns.is_multiple_of(7);
        let completions = turn["completions"].as_array().unwrap();
        let tier = |i: usize| ((number * 31 + turns * 17 + i * 7) % 3) as i64;
        let items: Vec<Value> =
            completions.iter().enumerate().map(|(i, c)| json!({"completion_id": c["id"], "tier": tier(i)})).collect();
        let body = json!({"lease_token": turn["lease_token"], "outcome": if skip { "skip" } else { "ranked" },
                          "items": if skip { json!([]) } else { json!(items) }, "active_ms": 5,
                          "idempotency_key": format!("{number}-{turns}")});
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        let start = Instant::now();
        let stored = patient(&server, "POST", &path, &headers, Some(body.clone()), &mut busy).await.expect(200).json();
        times.push(start.elapsed());
        if turns.is_multiple_of(3) {
            let again = patient(&server, "POST", &path, &headers, Some(body), &mut busy).await.expect(200).json();
            assert_eq!((&again["replayed"], &again["judgment"]), (&json!(true), &stored["judgment"]));
        }
        if skip {
            skips += 1;
            continue;
        }
        let tiers = completions.iter().enumerate().map(|(i, c)| (c["id"].as_str().unwrap().to_owned(), tier(i)));
        let id = stored["judgment"]["id"].as_str().unwrap().to_owned();
        let before = accepted.insert(id, (turn["set_id"].as_str().unwrap().to_owned(), tiers.collect()));
        assert!(before.is_none());
    }
}

/// Sets of three completions for `people` labelers who work at once; returns the times of submits.
async fn rush(fresh: &Fresh, people: usize, sets: usize) -> (Vec<Duration>, usize) {
    let server = Arc::new(server(fresh.store.clone()));
    for i in 0..sets {
        let body = json!({"messages": [{"role": "user", "content": format!("q{i}")}], "overlap": OVERLAP,
                          "completions": [format!("a{i}"), format!("b{i}"), format!("c{i}")]});
        server.post("/v1/comparison-sets", body).await.expect(201);
    }
    let mut bearers = Vec::new();
    for i in 0..people {
        let made = server.post("/admin/keys", json!({"name": format!("p{i}"), "scopes": ["feedback"]})).await;
        let made = made.expect(201).json();
        bearers.push((
            made["labeler_id"].as_str().unwrap().to_owned(),
            format!("Bearer {}", made["key"].as_str().unwrap()),
        ));
    }
    let tasks = bearers.iter().enumerate().map(|(i, (_, b))| tokio::spawn(work(server.clone(), b.clone(), i)));
    let outcomes = futures::future::join_all(tasks.collect::<Vec<_>>()).await;

    let mut times = Vec::new();
    let (mut skips, mut busy) = (0, 0);
    let mut by_set: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut total = 0;
    for (outcome, (labeler, _)) in outcomes.into_iter().zip(&bearers) {
        let Done { accepted, skips: skipped, busy: waited, times: took } = outcome.unwrap();
        times.extend(took);
        (skips, busy) = (skips + skipped, busy + waited);
        total += accepted.len();
        let id: LabelerId = labeler.as_str().into();
        let stored = fresh.store.judgments().list(Page { after: None, limit: 100_000 }, Some(&id)).await.unwrap();
        let ranked: Vec<&Judgment> = stored.iter().filter(|j| j.outcome == Outcome::Ranked).collect();
        assert_eq!(ranked.len(), accepted.len(), "{labeler}: lost or doubled");
        assert_eq!(stored.len() - ranked.len(), skipped);
        for judgment in ranked {
            let (set, tiers) = &accepted[judgment.id.as_str()];
            assert_eq!(set, judgment.set_id.as_str(), "given to another set");
            let kept: BTreeMap<_, _> = judgment.items.iter().map(|i| (i.completion_id.to_string(), i.tier)).collect();
            assert_eq!(&kept, tiers, "another ranking was stored");
            assert!(by_set.entry(set.clone()).or_default().insert(labeler.clone()), "twice by the same person");
        }
    }
    assert!(by_set.values().all(|people| people.len() as i64 <= OVERLAP), "more judgments than places");
    assert_eq!((by_set.len(), total), (sets, sets * OVERLAP as usize), "every place is filled, {skips} skips");
    let counts = fresh.store.counts().await.unwrap();
    assert_eq!((counts.sets_open, counts.sets_done, counts.leases), (0, sets as i64, 0));
    times.sort_unstable();
    (times, busy)
}

async fn report(backend: &str, fresh: Fresh, people: usize, sets: usize) {
    let start = Instant::now();
    let (times, busy) = rush(&fresh, people, sets).await;
    let at = |p: f64| times[((times.len() - 1) as f64 * p) as usize].as_secs_f64() * 1e3;
    println!(
        "{backend}: {people} labelers, {sets} sets, {} submits in {:.1} s; submit p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; \
         {busy} answers \"busy\"",
        times.len(),
        start.elapsed().as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    fresh.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_labelers_on_sqlite() {
    report("sqlite", backend::sqlite().await.unwrap(), 200, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_labelers_on_postgres() {
    let Some(fresh) = backend::postgres().await else { return };
    report("postgres", fresh, 200, 40).await;
}

/// The full figures: `cargo test --test it two_hundred_labelers_in_full -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; prints the figures of the README"]
async fn two_hundred_labelers_in_full() {
    report("sqlite", backend::sqlite().await.unwrap(), 200, 2000).await;
    let Some(fresh) = backend::postgres().await else { return };
    report("postgres", fresh, 200, 2000).await;
}
