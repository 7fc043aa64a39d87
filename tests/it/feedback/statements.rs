//! How many statements a labeler's requests send to the database, on SQLite and PostgreSQL, with everything that a
//! request does: signing in, the turn, the answer. BEGIN and COMMIT are not counted, nor the lock that PostgreSQL takes
//! behind BEGIN: a transaction, which many share, has them once. The rows of a judgment are written by one call (a
//! script on SQLite, one statement on PostgreSQL).

use serde_json::{Value, json};

use super::load::server;
use crate::api::client::{Answer, Server};
use crate::store::backend::{self, Fresh};

const MOST: u64 = 4;

struct Counted {
    server: Server,
    headers: Vec<(&'static str, String)>,
}

impl Counted {
    async fn call(&self, method: &str, path: &str, body: Option<Value>, what: &str) -> Answer {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let store = &self.server.services.store;
        let before = store.statements();
        let answer = self.server.call(method, path, &headers, body).await;
        let sent = store.statements() - before;
        assert!((1..=MOST).contains(&sent), "{what}: {sent} statements on {}", store.backend());
        println!("{}: {what}: {sent} statements", store.backend());
        answer
    }

    async fn turn(&self, query: &str, what: &str) -> Value {
        self.call("GET", &format!("/v1/label/next{query}"), None, what).await.expect(200).json()
    }

    async fn submit(&self, turn: &Value, body: Value, what: &str) -> Value {
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        self.call("POST", &path, Some(body), what).await.expect(200).json()
    }
}

async fn set(server: &Server, name: &str, completions: usize) -> Value {
    let completions: Vec<String> = (0..completions).map(|i| format!("{name} {i}")).collect();
    let body = json!({"messages": [{"role": "user", "content": name}], "completions": completions, "overlap": 2});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

fn word(turn: &Value, key: &str) -> Value {
    let completions = turn["completions"].as_array().unwrap();
    let items: Vec<_> =
        completions.iter().enumerate().map(|(i, c)| json!({"completion_id": c["id"], "tier": i % 3})).collect();
    let ratings: Vec<_> =
        completions.iter().map(|c| json!({"completion_id": c["id"], "dimension": "helpful", "value": 4})).collect();
    json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": key,
           "rubric_version": turn["rubric"]["version"], "ratings": ratings,
           "ideal_answer": "better", "rationale": "because",
           "flags": [{"code": "language", "note": "n"}, {"completion_id": completions[0]["id"], "code": "unsafe"}]})
}

async fn few_statements(fresh: Fresh) {
    let server = server(fresh.store.clone());
    let rubric = json!({"name": "r", "dimensions": [
        {"key": "helpful", "label": {"en": "Helpful"}, "kind": "likert", "points": 5, "required": true},
        {"key": "unsafe", "label": {"en": "Unsafe"}, "kind": "flag"},
    ]});
    server.post("/admin/rubrics", json!({"definition": rubric, "activate": true})).await.expect(201);
    let made = server.post("/admin/keys", json!({"name": "p", "scopes": ["feedback"]})).await.expect(201).json();
    let key = made["key"].as_str().unwrap().to_owned();
    let session = server.open_post("/session", json!({"key": key})).await.expect(200);
    let cookie = session.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    for n in [2, 3, 8] {
        set(&server, &format!("ask {n}"), n).await;
        set(&server, &format!("more {n}"), n).await;
    }
    let calibration = set(&server, "calibration", 4).await;
    let by_key = Counted { server, headers: vec![("authorization", format!("Bearer {key}"))] };
    for i in 0..3 {
        let turn = by_key.turn("", "a turn").await;
        let body = word(&turn, &format!("key {i}"));
        let stored = by_key.submit(&turn, body.clone(), "a submit").await;
        assert_eq!(stored["replayed"], false);
        let again = by_key.submit(&turn, body, "a repeated submit").await;
        assert_eq!((&again["replayed"], &again["judgment"]), (&json!(true), &stored["judgment"]));
        let mut revision = word(&turn, &format!("revision {i}"));
        revision["revises"] = stored["judgment"]["id"].clone();
        let revised = by_key.submit(&turn, revision, "a revision").await;
        assert_eq!(revised["judgment"]["revision"], 2);
    }
    let headers =
        [("cookie", cookie), ("host", "localhost:8080".to_owned()), ("origin", "http://localhost:8080".to_owned())];
    let by_session = Counted { server: by_key.server, headers: headers.into() };
    let held = by_session.turn("", "a turn in a session").await;
    let again = by_session.turn("?resume=true", "a set given again").await;
    assert_eq!(held["assignment_id"], again["assignment_id"]);
    let mut skip = word(&held, "skip");
    (skip["outcome"], skip["items"], skip["ideal_answer"]) = (json!("skip"), json!([]), Value::Null);
    skip["ratings"] = json!([]);
    by_session.submit(&held, skip, "a skip in a session").await;
    // A set with a known answer, by its name; its verdict is part of the answer.
    let id = calibration["id"].as_str().unwrap();
    let completions = calibration["completion_ids"].as_array().or(calibration["completions"].as_array()).unwrap();
    let tiers: Vec<_> = completions
        .iter()
        .enumerate()
        .map(|(i, c)| json!({"completion_id": if c.is_string() { c } else { &c["id"] }, "tier": i}))
        .collect();
    let answer = json!({"kind": "calibration", "tiers": tiers});
    by_session.server.post(&format!("/admin/sets/{id}/known-answer"), answer).await.expect(204);
    let named = by_session.turn(&format!("?set_id={id}"), "a named set").await;
    assert_eq!(named["kind"], "calibration");
    let stored = by_session.submit(&named, word(&named, "known"), "a calibration set").await;
    assert!(stored["verdict"].is_object(), "{stored}");
    // Until nothing is left, which takes fewer.
    for i in 0.. {
        let answer = by_session.call("GET", "/v1/label/next", None, "a turn").await;
        if answer.status == 204 {
            break;
        }
        let turn = answer.expect(200).json();
        by_session.submit(&turn, word(&turn, &format!("last {i}")), "a submit").await;
    }
    fresh.store.close().await;
}

#[tokio::test]
async fn a_turn_and_a_submit_take_four_statements_on_sqlite() {
    few_statements(backend::sqlite().await.unwrap()).await;
}

#[tokio::test]
async fn a_turn_and_a_submit_take_four_statements_on_postgres() {
    let Some(fresh) = backend::postgres().await else { return };
    few_statements(fresh).await;
}
