//! SIGKILL of the server under 32 ranking writers: what was acknowledged is there once, the rest is not
//! there twice, and the database is sound. `INSTRUCTD_CRASH_KILLS` sets the number of kills of a long run,
//! `INSTRUCTD_CRASH_SEED` the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::server::{ADMIN_KEY, Client, Dice, Place, Server, setting};
use crate::store::backend::{self, Fresh};
use crate::store::integrity;

const WRITERS: u64 = 32;

/// A request that stores a judgment, and what the server said to it.
#[derive(Clone)]
struct Written {
    path: String,
    body: Value,
    /// Of the stored judgment, once acknowledged.
    judgment: String,
}

struct Writer {
    /// An API key of a labeler of its own.
    key: String,
    name: u64,
    dice: Dice,
    client: Client,
    stop: Arc<AtomicBool>,
    acknowledged: Vec<Written>,
    replays: usize,
}

impl Writer {
    async fn run(mut self) -> Self {
        let mut round = 0;
        while !self.stop.load(Ordering::Relaxed) {
            round += 1;
            let key = format!("w{}-{round}", self.name);
            let written =
                if self.name.is_multiple_of(2) { self.rank(key).await } else { self.judge_a_lease(key).await };
            if let Some(written) = written {
                self.acknowledged.push(written);
            }
            // Now and then an old request comes again, as from a client that never heard the answer.
            if !self.acknowledged.is_empty() && self.dice.roll(8) == 0 {
                let old = self.acknowledged[self.dice.roll(self.acknowledged.len() as u64) as usize].clone();
                self.replay(&old).await;
            }
        }
        self
    }

    async fn replay(&mut self, old: &Written) {
        let key = self.key.clone();
        let again = self.client.insist("POST", &old.path, &key, Some(&old.body)).await.expect(200);
        assert_eq!((&again["replayed"], &again["judgment"]["id"]), (&json!(true), &json!(old.judgment)));
        self.replays += 1;
    }

    /// A ranking by API, with its texts.
    async fn rank(&mut self, idempotency_key: String) -> Option<Written> {
        let tiers = [self.dice.roll(3), self.dice.roll(3), self.dice.roll(3)];
        let completions: Vec<_> =
            (0..3).map(|i| json!({"text": format!("{idempotency_key} answer {i}"), "tier": tiers[i]})).collect();
        let body = json!({"messages": [{"role": "user", "content": format!("question {idempotency_key}")}],
            "completions": completions, "idempotency_key": idempotency_key});
        let (path, key) = ("/v1/comparisons".to_owned(), self.key.clone());
        let answer = self.client.insist("POST", &path, &key, Some(&body)).await;
        assert!([200, 201].contains(&answer.status), "{} {}", answer.status, answer.json);
        let judgment = answer.json["judgment"]["id"].as_str().unwrap().to_owned();
        Some(Written { path, body, judgment })
    }

    /// A set is made, leased and judged, as the labeling page does it.
    async fn judge_a_lease(&mut self, idempotency_key: String) -> Option<Written> {
        let set = json!({"messages": [{"role": "user", "content": format!("question {idempotency_key}")}],
            "completions": ["one", "two"]});
        let set = self.client.insist("POST", "/v1/comparison-sets", ADMIN_KEY, Some(&set)).await.expect(201);
        let key = self.key.clone();
        let next = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
        let turn = self.client.insist("GET", &next, &key, None).await.expect(200);
        let items: Vec<_> = turn["completions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| json!({"completion_id": c["id"], "tier": self.dice.roll(2)}))
            .collect();
        let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items,
            "idempotency_key": idempotency_key, "ideal_answer": format!("best {idempotency_key}")});
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        let answer = self.client.insist("POST", &path, &key, Some(&body)).await.expect(200);
        Some(Written { path, body, judgment: answer["judgment"]["id"].as_str().unwrap().to_owned() })
    }
}

async fn killed_under_writers(fresh: Fresh) {
    let (kills, seed) = (setting("INSTRUCTD_CRASH_KILLS", 5), setting("INSTRUCTD_CRASH_SEED", 1));
    let data = tempfile::tempdir().unwrap();
    // Nobody limits a test's writers; how much one client may do is tested elsewhere.
    let place = Place::new(&fresh.url, data.path()).with("INSTRUCTD_JOBS__ENABLED", false);
    let mut server = Server::start(&place).await;
    let (url, watching) = watch::channel(server.url.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for name in 0..WRITERS {
        let made = json!({"name": format!("writer {name}"), "scopes": ["feedback"]});
        let key = server.call("POST", "/admin/keys", Some(made)).await.expect(201);
        let writer = Writer {
            key: key["key"].as_str().unwrap().to_owned(),
            name,
            dice: Dice(seed.wrapping_mul(1000) + name),
            client: Client::new(&watching),
            stop: stop.clone(),
            acknowledged: Vec::new(),
            replays: 0,
        };
        writers.spawn(writer.run());
    }
    let mut dice = Dice(seed);
    for kill in 1..=kills {
        tokio::time::sleep(Duration::from_millis(20 + dice.roll(300))).await;
        server.kill();
        server = Server::start(&place).await;
        url.send_replace(server.url.clone());
        if kill % 20 == 0 {
            println!("{kill} kills");
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, Ordering::Relaxed);
    let mut writers: Vec<Writer> = writers.join_all().await;
    // Every acknowledged request once more: the answer is the stored judgment, not a second one.
    for writer in &mut writers {
        for old in writer.acknowledged.clone() {
            writer.replay(&old).await;
        }
    }
    let acknowledged: usize = writers.iter().map(|w| w.acknowledged.len()).sum();
    let replays: usize = writers.iter().map(|w| w.replays).sum();
    server.kill();

    let store = &fresh.store;
    for written in writers.iter().flat_map(|w| &w.acknowledged) {
        let stored = store.judgments().get(&written.judgment.as_str().into()).await.unwrap();
        assert_eq!(json!(stored.idempotency_key), written.body["idempotency_key"]);
        let set = store.sets().get(&stored.set_id).await.unwrap();
        assert_eq!(stored.items.len(), set.completion_ids.len(), "ranked whole");
    }
    // Every writer went on until its request was answered, so nothing may be stored beyond what it knows.
    assert_eq!(store.counts().await.unwrap().judgments, acknowledged as i64, "as many stored as acknowledged");
    integrity::assert_sound(&fresh.url).await;
    assert!(acknowledged >= WRITERS as usize, "{acknowledged} judgments are too few to mean anything");
    println!(
        "{}: {kills} kills, seed {seed}: {acknowledged} judgments acknowledged, {replays} replayed, 0 lost, 0 doubled",
        store.backend()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_writers_on_sqlite() {
    killed_under_writers(backend::sqlite().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_writers_on_postgres() {
    if let Some(fresh) = backend::postgres().await {
        killed_under_writers(fresh).await;
    }
}
