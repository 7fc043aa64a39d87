//! Promote and roll back: what serves and what the database says move together.

use instructd::domain::ModelKind;
use serde_json::{Value, json};

use super::client::{Server, version};

#[tokio::test]
async fn promote_serves_the_new_version_and_rollback_the_parent() {
    let server = Server::start().await;
    let store = &server.services.store;
    let base = store.models().find("base").await.unwrap().unwrap();
    let better = version("better", ModelKind::Policy, Some(&base));
    let scorer = version("scorer", ModelKind::Reward, Some(&base));
    store.models().put(better.clone()).await.unwrap();
    store.models().put(scorer).await.unwrap();
    let model =
        async || server.open_post("/v1/completions", json!({"prompt": "x"})).await.expect(200).json()["model"].clone();
    assert_eq!(model().await, "base");
    server.post("/admin/models/better/promote", json!({})).await.expect(200);
    assert_eq!(model().await, "better");
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().name, "better");
    // The former version still answers by name.
    server.open_post("/v1/completions", json!({"prompt": "x", "model": "base"})).await.expect(200);
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["id"], "better");
    let delete = format!("/admin/models/{}", better.id);
    server.raw("DELETE", &delete, "application/json", "").await.expect(409);
    server.post("/admin/models/rollback", json!({})).await.expect(200);
    assert_eq!(model().await, "base");
    server.post("/admin/models/rollback", json!({})).await.expect(409);
    server.raw("DELETE", &delete, "application/json", "").await.expect(204);
    server.post("/admin/models/better/promote", json!({})).await.expect(409);
    server.post("/admin/models/nope/promote", json!({})).await.expect(404);

    let rewards = json!({"prompt": [{"role": "user", "content": "q"}], "completions": ["short", "a longer answer"]});
    server.open_post("/v1/rewards", rewards.clone()).await.expect(409);
    server.post("/admin/models/scorer/promote", json!({})).await.expect(200);
    let scored = server.open_post("/v1/rewards", rewards).await.expect(200).json();
    assert_eq!(scored["model"], "scorer");
    assert!(scored["scores"][1].as_f64().unwrap() > scored["scores"][0].as_f64().unwrap());
    assert_eq!(model().await, "base", "a reward model is no policy");
}

#[tokio::test]
async fn every_kind_is_listed_and_only_some_have_an_active_one() {
    let server = Server::start().await;
    let store = &server.services.store;
    for kind in [ModelKind::Encoder, ModelKind::Classifier, ModelKind::PromptAdapter] {
        store.models().put(version(kind.as_str(), kind, None)).await.unwrap();
    }
    let listed = server.get("/admin/models").await.expect(200).json();
    let mut kinds: Vec<_> = listed["data"].as_array().unwrap().iter().map(|m| m["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["classifier", "encoder", "policy", "prompt_adapter"]);
    // Text comes from policies only.
    assert_eq!(server.get("/v1/models").await.json()["data"].as_array().unwrap().len(), 1);
    for name in ["classifier", "prompt_adapter"] {
        let refused = server.post(&format!("/admin/models/{name}/promote"), json!({})).await.expect(409);
        assert!(refused.text.contains("is named in requests"), "{}", refused.text);
        server.post("/v1/completions", json!({"prompt": "x", "model": name})).await.expect(400);
    }
    server.post("/admin/models/encoder/promote", json!({})).await.expect(200);
    assert_eq!(server.open_post("/v1/completions", json!({"prompt": "x"})).await.expect(200).json()["model"], "base");
}

#[tokio::test]
async fn the_overview_says_what_comes_next() {
    let server = Server::start().await;
    let action = async || server.get("/admin/api/overview").await.expect(200).json()["next_action"]["action"].clone();
    assert_eq!(action().await, "import");
    server.post("/v1/prompts", json!({"prompt": "p"})).await.expect(201);
    assert_eq!(action().await, "draw");
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    server.post("/v1/comparison-sets", set).await.expect(201);
    assert_eq!(action().await, "rank");
    for i in 0..20 {
        let ranking = json!({"messages": [{"role": "user", "content": format!("q{i}")}],
            "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
        server.post("/v1/comparisons", ranking).await.expect(201);
    }
    assert_eq!(action().await, "train_reward");
    server.post("/admin/jobs", json!({"kind": "reward", "args": {}})).await.expect(201);
    assert_eq!(action().await, "wait");
    // A reward model that was made and never promoted is named.
    let waiting =
        async || server.get("/admin/api/overview").await.expect(200).json()["unpromoted_reward"]["name"].clone();
    assert_eq!(waiting().await, Value::Null);
    let store = server.services.store.models();
    let judge = version("judge", ModelKind::Reward, None);
    store.put(judge.clone()).await.unwrap();
    assert_eq!(waiting().await, "judge");
    store.activate(&judge.id, 2).await.unwrap();
    store.put(version("next", ModelKind::Reward, None)).await.unwrap();
    assert_eq!(waiting().await, Value::Null, "one is active");
}
