//! Answers that nobody could tell apart are never shown to be compared.

use crate::support::mock::MockOptions;
use serde_json::{Value, json};

use super::client::Server;

const SAME: [&str; 3] = ["same", "same\n", "  same "];

#[tokio::test]
async fn given_answers_must_differ() {
    let server = Server::start().await;
    let user = json!([{"role": "user", "content": "q"}]);
    for other in SAME {
        let set = json!({"messages": user, "completions": ["another", SAME[0], other]});
        let refused = server.post("/v1/comparison-sets", set).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("completions[2].text"), "{}", refused.text);
        assert!(refused.text.contains("completions[1]"), "{}", refused.text);
        let ranked =
            json!({"messages": user, "completions": [{"text": SAME[0], "tier": 0}, {"text": other, "tier": 1}]});
        let refused = server.post("/v1/comparisons", ranked).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("completions[1].text"), "{}", refused.text);
    }
    // A stored completion is its text.
    let set = json!({"messages": user, "completions": ["same", "b"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    let mixed = json!({"prompt_id": set["prompt_id"], "completions": ["same ", {"completion_id": set["completions"][0]["id"]}]});
    let refused = server.post("/v1/comparison-sets", mixed).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("completions[1].completion_id"), "{}", refused.text);
    let counts = server.services.store.counts().await.unwrap();
    assert_eq!((counts.sets_open, counts.judgments), (1, 0), "nothing of the refused was stored");
}

#[tokio::test]
async fn drawn_answers_differ() {
    let server = Server::start().await;
    let user = json!([{"role": "user", "content": "q"}]);
    for (sampling, param) in [
        (json!({"temperature": 0, "max_tokens": 5}), "sampling.temperature"),
        (json!({"top_k": 1, "max_tokens": 5}), "sampling.top_k"),
    ] {
        for (path, n) in
            [("/v1/comparison-sets", json!(2)), ("/v1/comparison-sets", Value::Null), ("/v1/label/ask", json!(3))]
        {
            let body = json!({"messages": user, "n": n, "sampling": sampling});
            let refused = server.post(path, body).await.expect(400);
            assert_eq!(refused.param().as_deref(), Some(param), "{path}: {}", refused.text);
        }
    }
    let twice = json!({"messages": user, "models": ["base", "base"], "sampling": {"temperature": 0}});
    assert_eq!(server.post("/v1/label/ask", twice).await.expect(400).param().as_deref(), Some("models[1]"));
    let drawn = json!({"policy": "random", "count": 1, "temperature": 0});
    assert_eq!(server.post("/admin/sets/draw", drawn).await.expect(400).param().as_deref(), Some("temperature"));

    // What happens to come out equal is left out: nine answers of one token are not all different.
    let real = Server::with(|_| {}, MockOptions::default()).await;
    for _ in 0..20 {
        let body = json!({"messages": user, "n": 9, "sampling": {"max_tokens": 1}});
        let answer = real.post("/v1/comparison-sets", body).await;
        if answer.status == 409 {
            assert!(answer.text.contains("different"), "{}", answer.text);
            continue;
        }
        let set = answer.expect(201).json();
        let texts: Vec<&str> =
            set["completions"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().trim()).collect();
        let different: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(different.len(), texts.len(), "{texts:?}");
    }
}
