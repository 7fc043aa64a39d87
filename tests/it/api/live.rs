//! What is changed while the server runs: the canary and its share, settings, and fresh answers to rank.

use crate::support::mock::MockOptions;
use instructd::domain::{Micros, ModelKind};
use serde_json::{Value, json};

use super::client::{Server, admin, version};

async fn with_candidate() -> Server {
    let server = Server::start().await;
    let base = server.services.store.models().find("base").await.unwrap().unwrap();
    server.services.store.models().put(version("better", ModelKind::Policy, Some(&base))).await.unwrap();
    server
}

/// Which model answers the request of this id.
async fn who(server: &Server, id: &str, model: Option<&str>) -> String {
    let mut body = json!({"prompt": "x", "max_tokens": 4});
    if let Some(name) = model {
        body["model"] = json!(name);
    }
    let answer = server.call("POST", "/v1/completions", &[("x-request-id", id)], Some(body)).await.expect(200).json();
    answer["model"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_candidate_answers_its_share_and_every_response_names_its_version() {
    let server = with_candidate().await;
    let ids: Vec<String> = (0..60).map(|i| format!("req-{i}")).collect();
    server.post("/admin/canary", json!({"model": "better", "share": 0.3})).await.expect(200);
    let mut tried = Vec::new();
    for id in &ids {
        tried.push(who(&server, id, None).await == "better");
    }
    let n = tried.iter().filter(|t| **t).count();
    // Binomial(60, 0.3): mean 18, standard deviation 3.5; the seed is fixed, so the count is, too.
    assert!((8..29).contains(&n), "{n} of 60");
    let mut met = Vec::new();
    for _ in 0..60 {
        met.push(who(&server, "the-same-id", Some("default")).await == "better");
    }
    assert!(met.contains(&true) && met.contains(&false), "a client's id must not decide: {met:?}");
    for id in ids.iter().take(20) {
        assert_eq!(who(&server, id, Some("active")).await, "base", "the active one was asked for");
        assert_eq!(who(&server, id, Some("base")).await, "base");
    }
    // A chat answer is shared out alike, and the stored completion carries the version.
    let chat = json!({"messages": [{"role": "user", "content": "q"}], "max_tokens": 4});
    let answer = loop {
        let answer = server.open_post("/v1/chat/completions", chat.clone()).await.expect(200);
        if answer.json()["model"] == "better" {
            break answer;
        }
    };
    let stored = answer.json()["instructd"]["completion_ids"][0].as_str().unwrap().into();
    let stored = server.services.store.completions().get(&stored).await.unwrap();
    let better = server.services.store.models().find("better").await.unwrap().unwrap();
    assert_eq!(stored.model_version_id, Some(better.id.clone()));

    let usage = server.get("/admin/usage").await.expect(200).json();
    assert_eq!(usage["canary"]["share"], 0.3);
    let requests = |id: &str| {
        let all = usage["versions"].as_array().unwrap();
        all.iter().find(|v| v["model_version_id"] == id).unwrap()["requests"].as_i64().unwrap()
    };
    let n = n + met.iter().filter(|m| **m).count().min(1) + 1;
    assert!(requests(better.id.as_str()) >= n as i64 - 1, "one request id may answer several times");
    let delete = format!("/admin/models/{}", better.id);
    server.raw("DELETE", &delete, "application/json", "").await.expect(409);

    let since: Micros = usage["since"].as_i64().unwrap();
    let more = server.post("/admin/canary", json!({"model": "better", "share": 1})).await.expect(200).json();
    assert_eq!(more["since"], since, "a new share goes on counting");
    assert_eq!(who(&server, "any", None).await, "better");
    server.call("DELETE", "/admin/canary", &[admin()], None).await.expect(204);
    assert_eq!(who(&server, "any", None).await, "base");
    assert_eq!(server.get("/admin/usage").await.json()["canary"], Value::Null);
}

#[tokio::test]
async fn promotion_ends_the_canary_and_bad_ones_are_refused() {
    let server = with_candidate().await;
    let base = server.services.store.models().find("base").await.unwrap().unwrap();
    server.services.store.models().put(version("scorer", ModelKind::Reward, Some(&base))).await.unwrap();
    for (body, param) in [
        (json!({"model": "better", "share": 0}), "share"),
        (json!({"model": "better", "share": 1.1}), "share"),
        (json!({"model": "base", "share": 0.5}), "model"),
        (json!({"model": "scorer", "share": 0.5}), "model"),
    ] {
        assert_eq!(server.post("/admin/canary", body).await.expect(400).param().as_deref(), Some(param));
    }
    let unknown = server.post("/admin/canary", json!({"model": "nobody", "share": 0.5})).await.expect(404);
    assert_eq!(unknown.param().as_deref(), Some("model"));
    server.post("/admin/canary", json!({"model": "better", "share": 0.5})).await.expect(200);
    server.post("/admin/models/better/promote", json!({})).await.expect(200);
    assert_eq!(server.get("/admin/usage").await.json()["canary"], Value::Null);
    assert_eq!(server.services.store.settings().list().await.unwrap(), vec![]);
}

#[tokio::test]
async fn live_settings_take_effect_at_once_and_can_be_reset() {
    let server = Server::with(|c| c.admin_key = Some("a-secret-key".into()), MockOptions::default()).await;
    let all = server.get("/admin/settings").await.expect(200);
    assert!(!all.text.contains("a-secret-key"));
    let find = |all: &Value, name: &str| {
        all["data"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned().unwrap_or_default()
    };
    let overlap = find(&all.json(), "labeling.overlap");
    assert_eq!((&overlap["value"], &overlap["live"], &overlap["changed"]), (&json!(1), &json!(true), &Value::Null));
    assert_eq!(find(&all.json(), "listen")["live"], false);

    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    let overlap_of =
        async || server.post("/v1/comparison-sets", set.clone()).await.expect(201).json()["overlap"].clone();
    assert_eq!(overlap_of().await, 1);
    server.post("/admin/settings", json!({"name": "labeling.overlap", "value": 3})).await.expect(204);
    assert_eq!(overlap_of().await, 3);
    let changed = find(&server.get("/admin/settings").await.json(), "labeling.overlap");
    assert_eq!((&changed["value"], &changed["configured"]), (&json!(3), &json!(1)));
    assert_eq!(changed["changed"]["updated_by"], "admin");
    for (name, value, param) in [
        ("labeling.overlap", json!(0), "value"),
        ("labeling.overlap", json!("many"), "value"),
        ("labeling.completions_per_set", json!(10), "value"),
        ("listen", json!("0.0.0.0:1"), "name"),
        ("admin_key", json!("x"), "name"),
        ("canary", json!({}), "name"),
    ] {
        let refused = server.post("/admin/settings", json!({"name": name, "value": value})).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{name}");
    }
    server.post("/admin/settings", json!({"name": "labeling.overlap", "value": null})).await.expect(204);
    assert_eq!(overlap_of().await, 1);
}

/// Events of `POST /v1/label/ask` as (name, data).
async fn ask(server: &Server, body: Value) -> Vec<(String, Value)> {
    let answer = server.post("/v1/label/ask", body).await.expect(200);
    let names = answer.text.lines().filter_map(|l| l.strip_prefix("event: ")).map(str::to_owned);
    names.zip(answer.events().iter().map(|d| serde_json::from_str(d).unwrap())).collect()
}

#[tokio::test]
async fn answers_are_streamed_in_the_order_in_which_they_are_ranked() {
    let server = with_candidate().await;
    let better = server.services.store.models().find("better").await.unwrap().unwrap();
    server.services.engine().unwrap().load(&better).await.unwrap();
    let question = json!([{"role": "user", "content": "why?"}]);
    for body in [json!({"messages": question, "n": 4}), json!({"messages": question, "models": ["base", "better"]})] {
        let events = ask(&server, body).await;
        let (last, set) = events.last().unwrap();
        assert_eq!(last, "set", "{set}");
        let completions = set["completions"].as_array().unwrap();
        assert_eq!(events[0], ("start".to_owned(), json!({"answers": completions.len()})));
        let mut texts = vec![String::new(); completions.len()];
        for (name, data) in &events {
            if name == "text" {
                texts[data["place"].as_u64().unwrap() as usize].push_str(data["text"].as_str().unwrap());
            }
            assert!(!data.to_string().contains("better"), "nobody learns who writes where: {data}");
        }
        let shown: Vec<&str> = completions.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(texts, shown, "the places stay");
        // It is leased: it can be judged at once, and the reveal names the writers.
        let items: Vec<Value> = completions.iter().map(|c| json!({"completion_id": c["id"], "tier": 0})).collect();
        let word = json!({"lease_token": set["lease_token"], "outcome": "ranked", "items": items,
            "idempotency_key": set["set_id"]});
        let path = format!("/v1/label/{}/judgment", set["assignment_id"].as_str().unwrap());
        let judged = server.post(&path, word).await.expect(200).json();
        for (i, item) in judged["judgment"]["items"].as_array().unwrap().iter().enumerate() {
            assert_eq!(item["shown_position"], i);
        }
        if completions.len() == 2 {
            let mut writers: Vec<_> = judged["reveal"].as_array().unwrap().iter().map(|r| r["model"].clone()).collect();
            writers.sort_by_key(Value::to_string);
            assert_eq!(writers, [json!("base"), json!("better")]);
        }
    }
}

#[tokio::test]
async fn asking_refuses_bad_input_and_streams_failures() {
    let server = Server::start().await;
    let question = json!([{"role": "user", "content": "why?"}]);
    for (body, param) in [
        (json!({"messages": question, "n": 1}), "n"),
        (json!({"messages": question, "n": 10}), "n"),
        (json!({"messages": question, "n": 2, "models": ["base", "base"]}), "n"),
        (json!({"messages": question, "models": ["base"]}), "models"),
        (json!({"messages": question, "sampling": {"n": 3}}), "sampling.n"),
        (json!({"messages": []}), "messages"),
    ] {
        let refused = server.post("/v1/label/ask", body.clone()).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{body}");
    }
    server.post("/v1/label/ask", json!({"messages": question, "models": ["base", "nobody"]})).await.expect(404);
    let failing = Server::with(|_| {}, MockOptions { fail_after: Some(2), ..MockOptions::default() }).await;
    let events = ask(&failing, json!({"messages": question, "n": 2})).await;
    let (last, data) = events.last().unwrap();
    assert_eq!(last, "error");
    assert!(data["error"]["message"].is_string(), "{data}");
    assert_eq!(failing.services.store.counts().await.unwrap().sets_open, 0);
}

#[tokio::test]
async fn the_flow_of_judgments_has_a_row_for_every_day() {
    let server = Server::start().await;
    let ranking = json!({"messages": [{"role": "user", "content": "q"}],
        "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
    server.post("/v1/comparisons", ranking).await.expect(201);
    let flow = server.get("/admin/api/throughput?days=7").await.expect(200).json();
    let days = flow["days"].as_array().unwrap();
    assert_eq!(days.len(), 7);
    assert_eq!(days[6]["judgments"], 1);
    assert!(days.windows(2).all(|w| w[0]["day"].as_i64().unwrap() + 1 == w[1]["day"].as_i64().unwrap()));
}
