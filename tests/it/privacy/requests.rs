//! Requests to the model reach no set, no training data and no export while `privacy.learn_from_requests` is off.

use std::sync::Arc;

use instructd::domain::*;
use instructd::jobs::learned::Rankings;
use instructd::store::{PromptFilter, RankedFilter, Store};
use serde_json::{Value, json};

use crate::api::client::{Server, version};
use crate::store::conformance::conformance;
use crate::store::fixture::{self, T0};
use crate::support::eventually::{LONG, eventually};

const ASKED: &str = "what an anonymous person asked";

async fn allow(server: &Server, on: bool) {
    let body = json!({"name": "privacy.learn_from_requests", "value": on});
    server.post("/admin/settings", body).await.expect(204);
}

/// One request by each way in: a chat by nobody, a chat by a key, a raw text by nobody.
async fn ask(server: &Server) {
    let messages = |text: &str| json!({"model": "base", "n": 2, "max_tokens": 20, "messages": [{"role": "user", "content": text}]});
    server.open_post("/v1/chat/completions", messages(ASKED)).await.expect(200);
    let bearer = format!("Bearer {}", server.key(&["inference"], None).await);
    let by_key = messages("asked with a key");
    server.call("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(by_key)).await.expect(200);
    let raw = json!({"model": "base", "n": 2, "max_tokens": 20, "prompt": "raw text"});
    server.open_post("/v1/completions", raw).await.expect(200);
}

async fn finished_draw(server: &Server, body: Value) -> Value {
    let draw = server.post("/admin/sets/draw", body).await.expect(202).json();
    let path = format!("/admin/sets/draws/{}", draw["id"].as_str().unwrap());
    eventually(LONG, "the end of the draw", async || {
        let draw = server.get(&path).await.expect(200).json();
        (draw["state"] != "running").then_some(draw)
    })
    .await
}

async fn the_prompt(server: &Server, text: &str) -> PromptId {
    let prompts = server.get("/v1/prompts?limit=100").await.expect(200).json();
    let found = prompts["data"].as_array().unwrap().iter().find(|p| p["messages"][0]["content"] == text);
    found.unwrap()["id"].as_str().unwrap().into()
}

#[tokio::test]
async fn the_setting_is_off_by_default_and_says_what_it_is_about() {
    let server = Server::start().await;
    ask(&server).await;
    let prompt = the_prompt(&server, ASKED).await;
    let written = server.services.store.completions().list(&prompt).await.unwrap();
    let thumb = json!({"completion_id": written[0].id, "kind": "thumb", "value": "up"});
    server.post("/v1/feedback", thumb).await.expect(201);
    let own = json!({"messages": [{"role": "user", "content": "submitted on purpose"}]});
    server.post("/v1/prompts", own).await.expect(201);
    let settings = server.get("/admin/settings").await.expect(200).json();
    let all = settings["data"].as_array().unwrap();
    let found = all.iter().find(|s| s["name"] == "privacy.learn_from_requests").unwrap();
    assert_eq!((&found["value"], &found["default"], &found["live"]), (&json!(false), &json!(false), &json!(true)));
    assert_eq!(found["affects"], json!({"prompts": 3, "completions": 6, "feedback_events": 1}));
    assert_eq!(all.iter().filter(|s| s.get("affects").is_some()).count(), 1);
}

#[tokio::test]
async fn requests_become_sets_only_when_allowed() {
    let server = Server::start().await;
    ask(&server).await;
    for policy in ["random", "stored"] {
        let draw = finished_draw(&server, json!({"policy": policy, "count": 10})).await;
        assert_eq!((&draw["made"], &draw["report"]["requests"]), (&json!(0), &json!(3)), "{policy}: {draw}");
    }
    for source in ["chat", "completions"] {
        let body = json!({"policy": "random", "count": 1, "prompts": {"source": source}});
        let refused = server.post("/admin/sets/draw", body).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("prompts.source"));
    }
    let prompt = the_prompt(&server, ASKED).await;
    let by_id = json!({"prompt_id": prompt, "completions": ["x", "y"]});
    assert_eq!(
        server.post("/v1/comparison-sets", by_id.clone()).await.expect(400).param().as_deref(),
        Some("prompt_id")
    );
    let ranked = json!({"prompt_id": prompt, "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
    assert_eq!(server.post("/v1/comparisons", ranked.clone()).await.expect(400).param().as_deref(), Some("prompt_id"));
    assert!(!server.get("/v1/comparison-sets").await.expect(200).text.contains(prompt.as_str()));

    allow(&server, true).await;
    let draw = finished_draw(&server, json!({"policy": "stored", "count": 10})).await;
    assert_eq!((&draw["made"], &draw["report"]["requests"]), (&json!(2), &json!(0)), "{draw}");
    server.post("/v1/comparison-sets", by_id).await.expect(201);
    // Drawing answers to a prompt of a request does not make it one that was submitted.
    let again = json!({"policy": "random", "count": 1, "prompts": {"source": "chat", "with_sets": true}});
    assert_eq!(finished_draw(&server, again).await["made"], 1);
    allow(&server, false).await;
    server.post("/v1/comparisons", ranked).await.expect(400);
    let draw = finished_draw(&server, json!({"policy": "random", "count": 10, "prompts": {"with_sets": true}})).await;
    assert_eq!((&draw["made"], &draw["report"]["requests"]), (&json!(0), &json!(3)), "{draw}");
}

/// Whoever sends the messages themselves for labeling decides for themselves; what others were answered stays out.
#[tokio::test]
async fn what_is_submitted_on_purpose_is_used() {
    let server = Server::start().await;
    ask(&server).await;
    let own = json!({"messages": [{"role": "user", "content": ASKED}]});
    let kept = server.post("/v1/prompts", own).await.expect(201).json();
    assert_eq!(kept["source"], "chat", "where it came from first stays true");
    let stored = finished_draw(&server, json!({"policy": "stored", "count": 10})).await;
    assert_eq!((&stored["made"], &stored["report"]["few_answers"]), (&json!(0), &json!(1)), "{stored}");
    let drawn = finished_draw(&server, json!({"policy": "random", "count": 10})).await;
    assert_eq!((&drawn["made"], &drawn["report"]["requests"]), (&json!(1), &json!(2)), "{drawn}");
    let ranked = json!({"messages": [{"role": "user", "content": "asked with a key"}],
                        "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
    server.post("/v1/comparisons", ranked).await.expect(201);
    assert!(server.get("/admin/export?format=trl").await.expect(200).text.contains("asked with a key"));
}

#[tokio::test]
async fn exports_and_datasets_leave_requests_out() {
    let server = Server::start().await;
    ask(&server).await;
    allow(&server, true).await;
    assert_eq!(finished_draw(&server, json!({"policy": "stored", "count": 10})).await["made"], 2);
    for number in 0..2 {
        let turn = server.get("/v1/label/next").await.expect(200).json();
        let items: Vec<Value> = (0i64..)
            .zip(turn["completions"].as_array().unwrap())
            .map(|(tier, c)| json!({"completion_id": c["id"], "tier": tier}))
            .collect();
        let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items,
                          "ideal_answer": "better", "idempotency_key": format!("k{number}")});
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        server.post(&path, body).await.expect(200);
    }
    let lines = async |format: &str| {
        let text = server.get(&format!("/admin/export?format={format}")).await.expect(200).text;
        text.lines().count()
    };
    server.post("/admin/datasets", json!({"name": "with"})).await.expect(201);
    assert_eq!((lines("comparisons").await, lines("demonstrations").await), (2, 2));

    allow(&server, false).await;
    assert_eq!((lines("comparisons").await, lines("trl").await, lines("demonstrations").await), (0, 0, 0));
    server.post("/admin/datasets", json!({"name": "without"})).await.expect(409);
    // What was frozen while it was allowed is still exactly what it was.
    assert_eq!(lines("comparisons&dataset=with").await, 2);
    for (path, body, param) in [
        ("/admin/datasets", json!({"filter": {"feedback": true}}), "filter.feedback"),
        ("/admin/jobs", json!({"kind": "reward", "args": {"filter": {"feedback": true}}}), "args.filter.feedback"),
    ] {
        assert_eq!(server.post(path, body).await.expect(400).param().as_deref(), Some(param), "{path}");
    }
    let refused = server.get("/admin/export?format=trl&feedback=true").await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("feedback"));

    // A version frozen without requests stays what it is when a text of them is submitted afterwards.
    let ranked = json!({"messages": [{"role": "user", "content": "other"}], "idempotency_key": "o",
                        "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]});
    server.post("/v1/comparisons", ranked).await.expect(201);
    server.post("/admin/datasets", json!({"name": "clean"})).await.expect(201);
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    server.post("/v1/prompts", json!({"messages": [{"role": "user", "content": ASKED}]})).await.expect(201);
    assert_eq!(lines("comparisons&dataset=clean").await, 1);
    assert_eq!(lines("comparisons").await, 2);
}

#[tokio::test]
async fn the_next_step_does_not_count_on_requests() {
    let server = Server::start().await;
    ask(&server).await;
    let step = async || server.get("/admin/api/overview").await.expect(200).json()["next_action"]["action"].clone();
    assert_eq!(step().await, "import");
    allow(&server, true).await;
    assert_eq!(step().await, "draw");
}

/// What a training job freezes, by the store alone.
async fn only_submitted_rows_are_used_for_training(store: Arc<Store>) {
    let policy = version("base", ModelKind::Policy, None);
    store.models().put(policy.clone()).await.unwrap();
    let chat = Prompt { source: "chat".into(), ..fixture::prompt("asked") };
    let written = |text: &str| Completion {
        origin: CompletionOrigin::Model,
        model_version_id: Some(policy.id.clone()),
        ..fixture::completion(&chat.id, text)
    };
    let answers = [written("a"), written("b")];
    store.completions().put_answers(chat.clone(), answers.to_vec(), Some("chat")).await.unwrap();
    let set = fixture::comparison_set(&chat.id, &answers, 1);
    store.sets().put(set.clone()).await.unwrap();
    store
        .judgments()
        .submit(fixture::submit(fixture::judgment(&set, &"admin".into(), None, "j"), None, T0))
        .await
        .unwrap();
    for (completion, kind, value) in [(0, "thumb", json!("up")), (1, "thumb", json!("down")), (1, "edit", json!("c"))] {
        let event = FeedbackEvent {
            id: FeedbackId::new(),
            completion_id: answers[completion].id.clone(),
            kind: kind.into(),
            value,
            actor_hash: None,
            idempotency_key: format!("{kind}{completion}"),
            created: T0,
        };
        store.feedback().put(event).await.unwrap();
    }
    let found = async |without_requests: bool| {
        let filter = RankedFilter { feedback: true, without_requests, ..RankedFilter::default() };
        let mut pages = Rankings::new(store.as_ref(), &filter).await.unwrap();
        let mut n = 0;
        while let Some(page) = pages.next().await.unwrap() {
            n += page.len();
        }
        let prompts = PromptFilter { with_sets: true, without_requests, ..PromptFilter::default() };
        (n, store.prompts().select(&prompts, None, 10).await.unwrap().len())
    };
    assert_eq!(found(false).await, (3, 1), "the ranking, the edit, the thumbs");
    assert_eq!(found(true).await, (0, 0));
    assert_eq!(store.prompts().of_requests(std::slice::from_ref(&chat.id)).await.unwrap().len(), 1);

    // The same conversation, submitted: the ranking counts, feedback on the answers to the request does not.
    let submitted = Prompt { id: PromptId::new(), source: "api".into(), ..chat.clone() };
    assert_eq!(store.prompts().put(submitted).await.unwrap().id, chat.id);
    assert_eq!(found(true).await, (1, 1));
    assert!(store.prompts().of_requests(std::slice::from_ref(&chat.id)).await.unwrap().is_empty());
    let counts = store.prompts().request_counts().await.unwrap();
    assert_eq!((counts.prompts, counts.completions, counts.feedback_events), (0, 2, 3));
}

conformance!(only_submitted_rows_are_used_for_training);
