//! Bad input: every refusal is a 4xx in the one error shape, with the field named.

use serde_json::{Value, json};

use super::client::Server;

async fn refused(server: &Server, path: &str, body: Value, status: u16, param: &str) {
    let answer = server.post(path, body.clone()).await;
    assert_eq!(answer.status.as_u16(), status, "{path} {body}: {}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], param, "{path} {body}: {error}");
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
    assert!(error["type"].is_string() && error.get("code").is_some());
}

#[tokio::test]
async fn completion_parameters() {
    let server = Server::start().await;
    for (body, status, param) in [
        (json!({"prompt": "x", "max_tokes": 3}), 400, "max_tokes"),
        (json!({"prompt": "x", "max_tokens": -3}), 400, "max_tokens"),
        (json!({"prompt": "x", "max_tokens": 1.5}), 400, "max_tokens"),
        (json!({"prompt": "x", "max_tokens": 0}), 400, "max_tokens"),
        (json!({"prompt": "x", "max_tokens": 5000}), 400, "max_tokens"),
        (json!({"prompt": "x".repeat(5000)}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "prompt"),
        (json!({}), 400, "prompt"),
        (json!({"prompt": []}), 400, "prompt"),
        (json!({"prompt": {"a": 1}}), 400, "prompt"),
        (json!({"prompt": ["a", 3]}), 400, "prompt[1]"),
        (json!({"prompt": [1, -3]}), 400, "prompt[1]"),
        (json!({"prompt": [1, 99999]}), 400, "prompt"),
        (json!({"prompt": [[1], [2, "x"]]}), 400, "prompt[1][1]"),
        (json!({"prompt": "x", "model": "nope"}), 404, "model"),
        (json!({"prompt": "x", "temperature": 3}), 400, "temperature"),
        (json!({"prompt": "x", "temperature": "hot"}), 400, "temperature"),
        (json!({"prompt": "x", "top_p": 0}), 400, "top_p"),
        (json!({"prompt": "x", "top_k": -2}), 400, "top_k"),
        (json!({"prompt": "x", "min_p": 2}), 400, "min_p"),
        (json!({"prompt": "x", "presence_penalty": 3}), 400, "presence_penalty"),
        (json!({"prompt": "x", "frequency_penalty": -3}), 400, "frequency_penalty"),
        (json!({"prompt": "x", "repetition_penalty": 0}), 400, "repetition_penalty"),
        (json!({"prompt": "x", "n": 0}), 400, "n"),
        (json!({"prompt": "x", "n": 100000}), 400, "n"),
        (json!({"prompt": "x", "n": 3, "best_of": 2}), 400, "best_of"),
        (json!({"prompt": "x", "best_of": 2, "stream": true}), 400, "best_of"),
        (json!({"prompt": "x", "logprobs": 21}), 400, "logprobs"),
        (json!({"prompt": "x", "logprobs": true}), 400, "logprobs"),
        (json!({"prompt": "x", "stop": [""]}), 400, "stop[0]"),
        (json!({"prompt": "x", "stop": 3}), 400, "stop"),
        (json!({"prompt": "x", "stop": vec!["a"; 17]}), 400, "stop"),
        (json!({"prompt": "x", "seed": 1.5}), 400, "seed"),
        (json!({"prompt": "x", "logit_bias": {"x": 1}}), 400, "logit_bias.x"),
        (json!({"prompt": "x", "logit_bias": {"1": 101}}), 400, "logit_bias.1"),
        (json!({"prompt": "x", "logit_bias": {"9999": 1}}), 400, "logit_bias.9999"),
        (json!({"prompt": "x", "min_tokens": 17}), 400, "min_tokens"),
        (json!({"prompt": "x", "stream_options": {"include_usage": true}}), 400, "stream_options"),
        (json!({"prompt": "x", "stream": true, "stream_options": {"x": 1}}), 400, "stream_options.x"),
        (json!({"prompt": "x", "suffix": "y"}), 400, "suffix"),
        (json!({"prompt": "x", "response_format": {"type": "json_object"}}), 400, "response_format"),
    ] {
        refused(&server, "/v1/completions", body, status, param).await;
    }
}

#[tokio::test]
async fn chat_parameters() {
    let server = Server::start().await;
    let ask = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for (body, param) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": "x"}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "x", "name": 3}]}), "messages[0].name"),
        (json!({"messages": [{"role": "user", "content": null}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "x", "refusal": "no"}]}), "messages[0].refusal"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0]"),
        (ask(json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]})), "messages"),
        (ask(json!({"tools": [{"type": "function"}]})), "tools[0]"),
        (ask(json!({"response_format": {"type": "json_schema"}})), "response_format.json_schema"),
        (ask(json!({"logprobs": 3})), "logprobs"),
        (ask(json!({"top_logprobs": 3})), "top_logprobs"),
        (ask(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (ask(json!({"max_tokens": 0})), "max_tokens"),
        (ask(json!({"max_tokens": 1, "max_completion_tokens": 1})), "max_tokens"),
        (ask(json!({"max_completion_tokens": 0})), "max_completion_tokens"),
        (ask(json!({"best_of": 2})), "best_of"),
    ] {
        refused(&server, "/v1/chat/completions", body, 400, param).await;
    }
    // What clients always send is accepted.
    let harmless =
        ask(json!({"user": "u", "tools": [], "store": false, "response_format": {"type": "text"}, "n": null}));
    server.post("/v1/chat/completions", harmless).await.expect(200);
}

#[tokio::test]
async fn feedback_and_rankings() {
    let server = Server::start().await;
    let user = json!([{"role": "user", "content": "q"}]);
    let set = json!({"messages": user, "completions": ["a", "b"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    let ids: Vec<&str> = set["completions"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    let rank = |completions: Value| json!({"set_id": set["id"], "completions": completions, "idempotency_key": "k"});
    for (path, body, status, param) in [
        ("/v1/feedback", json!({"completion_id": "nope", "kind": "thumb", "value": "up"}), 404, "completion_id"),
        ("/v1/feedback", json!({"completion_id": ids[0], "kind": "thumb", "value": "sideways"}), 400, "value"),
        ("/v1/feedback", json!({"completion_id": ids[0], "kind": "smile", "value": 1}), 400, "kind"),
        ("/v1/comparison-sets", json!({"messages": user, "completions": ["a"]}), 400, "completions"),
        (
            "/v1/comparison-sets",
            json!({"messages": user, "completions": ["a", {"txt": "b"}]}),
            400,
            "completions[1].txt",
        ),
        (
            "/v1/comparison-sets",
            json!({"messages": user, "completions": ["a", {"completion_id": "nope"}]}),
            404,
            "completions[1].completion_id",
        ),
        ("/v1/comparison-sets", json!({"prompt_id": "nope", "completions": ["a", "b"]}), 404, "prompt_id"),
        ("/v1/comparison-sets", json!({"messages": user, "n": 20}), 400, "n"),
        ("/v1/comparison-sets", json!({"messages": user, "sampling": {"temperature": 9}}), 400, "sampling.temperature"),
        ("/v1/comparisons", rank(json!([{"completion_id": ids[0], "tier": 0}])), 400, "completions"),
        (
            "/v1/comparisons",
            rank(json!([{"completion_id": ids[0], "tier": 0}, {"completion_id": "nope", "tier": 1}])),
            400,
            "completions[1].completion_id",
        ),
        (
            "/v1/comparisons",
            rank(json!([{"completion_id": ids[0], "tier": 0}, {"completion_id": ids[0], "tier": 1}])),
            400,
            "completions[1].completion_id",
        ),
        (
            "/v1/comparisons",
            rank(json!([{"completion_id": ids[0], "tier": 0}, {"completion_id": ids[1], "tier": -1}])),
            400,
            "completions[1].tier",
        ),
        (
            "/v1/comparisons",
            rank(json!([{"completion_id": ids[0], "tier": 0}, {"completion_id": ids[1]}])),
            400,
            "completions[1].tier",
        ),
        ("/v1/comparisons", json!({"set_id": "nope", "completions": []}), 404, "set_id"),
        ("/v1/prompts", json!({}), 400, "messages"),
        ("/v1/demonstrations", json!({"messages": user, "completion": " "}), 400, "completion"),
        ("/v1/rewards", json!({"model": "base", "prompt": "x", "completions": ["y"]}), 400, "model"),
        ("/v1/rewards", json!({"model": "nope", "prompt": "x", "completions": ["y"]}), 404, "model"),
        ("/tokenize", json!({}), 400, "prompt"),
        ("/detokenize", json!({"tokens": [1, 99999]}), 400, "tokens[1]"),
    ] {
        refused(&server, path, body, status, param).await;
    }
    assert_eq!(server.services.store.counts().await.unwrap().judgments, 0);
}

/// A job that has nothing to learn from would fail when its turn comes, perhaps after hours.
#[tokio::test]
async fn jobs_without_data_are_refused_with_what_to_do() {
    let server = Server::start().await;
    let rule = json!({"kind": "length", "target": 9});
    let request = |kind: &str, more: Value| {
        let mut args = match kind {
            "ppo" | "reinforce" | "rloo" | "grpo" | "online_dpo" | "raft" => json!({"reward": rule}),
            "judge" => json!({"judge_model": "base"}),
            _ => json!({}),
        };
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"kind": kind, "args": args})
    };
    let kinds = [
        ("sft", "write or import some first"),
        ("reward", "rank some completions first"),
        ("dpo", "rank some completions first"),
        ("simpo", "rank some completions first"),
        ("orpo", "rank some completions first"),
        ("kto", "POST /v1/feedback"),
        ("ppo", "add or import some first"),
        ("reinforce", "add or import some first"),
        ("rloo", "add or import some first"),
        ("grpo", "add or import some first"),
        ("online_dpo", "add or import some first"),
        ("raft", "add or import some first"),
        ("judge", "there are no sets"),
    ];
    // Files of the operator may be on another machine.
    let corpora = ["pretrain", "mlm", "finetune", "prompt_tuning", "external"];
    for recipe in instructd::train::job_kinds() {
        let known = kinds.iter().any(|(kind, _)| *kind == recipe.name) || corpora.contains(&recipe.name);
        assert!(known, "the recipe {} is in neither list", recipe.name);
    }
    for (kind, what_to_do) in kinds {
        let answer = server.post("/admin/jobs", request(kind, json!({}))).await.expect(409);
        assert!(answer.text.contains(what_to_do), "{kind}: {}", answer.text);
    }
    assert_eq!(server.get("/admin/jobs").await.expect(200).json()["data"], json!([]));
    // With data each is queued, unless its arguments leave nothing of it, or ask for more.
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    server.post("/v1/comparison-sets", set).await.expect(201);
    let ranking = json!({"messages": [{"role": "user", "content": "p"}],
        "completions": [{"text": "c", "tier": 0}, {"text": "d", "tier": 1}]});
    let ranked = server.post("/v1/comparisons", ranking).await.expect(201).json();
    let thumb = json!({"completion_id": ranked["set"]["completion_ids"][0], "kind": "thumb", "value": "up"});
    server.post("/v1/feedback", thumb).await.expect(201);
    server.post("/v1/prompts", json!({"messages": [{"role": "user", "content": "r"}]})).await.expect(201);
    for (kind, more, what_to_do) in [
        ("sft", json!({}), "write or import some first"),
        ("ppo", json!({"ptx_coef": 0.5}), "write or import some first"),
        ("reward", json!({"filter": {"labeler_id": "import"}}), "change the filter"),
    ] {
        let answer = server.post("/admin/jobs", request(kind, more)).await.expect(409);
        assert!(answer.text.contains(what_to_do), "{kind}: {}", answer.text);
    }
    server.demonstrate().await;
    for (kind, _) in kinds {
        server.post("/admin/jobs", request(kind, json!({}))).await.expect(201);
    }
    server.post("/admin/jobs", request("ppo", json!({"ptx_coef": 0.5}))).await.expect(201);
}

#[tokio::test]
async fn two_jobs_do_not_publish_under_one_name() {
    let server = Server::start().await;
    server.demonstrate().await;
    let request = json!({"kind": "sft", "args": {"publish_as": "mine"}});
    let first = server.post("/admin/jobs", request.clone()).await.expect(201).json();
    let id = first["id"].as_str().unwrap();
    let refused = server.post("/admin/jobs", request.clone()).await.expect(409);
    assert!(refused.text.contains(id) && refused.text.contains("publish_as"), "{}", refused.text);
    server.post("/admin/jobs", json!({"kind": "sft", "args": {"publish_as": "other"}})).await.expect(201);
    server.post(&format!("/admin/jobs/{id}/cancel"), json!({})).await.expect(200);
    server.post("/admin/jobs", request).await.expect(201);
}

#[tokio::test]
async fn jobs() {
    let server = Server::start().await;
    for (body, param) in [
        (json!({"kind": "dance", "args": {}}), "kind"),
        (json!({"args": {}}), "kind"),
        (json!({"kind": "sft", "args": {"learning_rat": 1}}), "args.learning_rat"),
        (json!({"kind": "sft", "args": {"learning_rate": "fast"}}), "args.learning_rate"),
        (json!({"kind": "sft", "args": {"output_dir": "/etc"}}), "args.output_dir"),
        (json!({"kind": "sft", "args": {"demonstrations": "/etc/passwd"}}), "args.demonstrations"),
        (json!({"kind": "sft", "args": {"model": "nope"}}), "args.model"),
        (json!({"kind": "sft", "args": [1]}), "args"),
        (json!({"kind": "ppo", "args": {}}), "args.reward_model"),
        (json!({"kind": "sft", "args": {}, "now": true}), "now"),
    ] {
        refused(&server, "/admin/jobs", body, 400, param).await;
    }
    server.demonstrate().await;
    let job = server
        .post("/admin/jobs", json!({"kind": "sft", "args": {"epochs": 2}, "unique_key": "u"}))
        .await
        .expect(201)
        .json();
    assert_eq!(job["state"], "queued");
    server.post("/admin/jobs", json!({"kind": "sft", "args": {}, "unique_key": "u"})).await.expect(409);
    let id = job["id"].as_str().unwrap();
    let cancelled = server.post(&format!("/admin/jobs/{id}/cancel"), json!({})).await.expect(200).json();
    assert_eq!(cancelled["state"], "cancelled");
    // A finished job's stream ends by itself.
    server.get(&format!("/admin/jobs/{id}/events")).await.expect(200);
    server.get("/admin/jobs/nope/events").await.expect(404);
    server.get(&format!("/admin/jobs/{id}/metrics?names=loss")).await.expect(200);
    assert_eq!(server.get("/admin/jobs?state=asleep").await.expect(400).param().as_deref(), Some("state"));
    assert_eq!(server.get("/admin/jobs?stat=queued").await.expect(400).param().as_deref(), Some("stat"));
}

#[tokio::test]
async fn bodies() {
    let server = Server::start().await;
    let post = |kind: &'static str, body: String| server.raw("POST", "/v1/completions", kind, body);
    assert_eq!(post("application/json", "{\"prompt\": ".into()).await.expect(400).param().as_deref(), Some("body"));
    assert_eq!(post("application/json", "[]".into()).await.expect(400).param().as_deref(), Some("body"));
    assert_eq!(post("text/plain", "{}".into()).await.expect(400).param().as_deref(), Some("content-type"));
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    post("application/json", deep).await.expect(400);
    let large = json!({"prompt": "x".repeat(3 << 20)}).to_string();
    assert_eq!(post("application/json", large).await.expect(413).param().as_deref(), Some("body"));
    // Imports may be larger.
    let line = json!({"prompt": "x".repeat(3 << 20)}).to_string();
    server.raw("POST", "/admin/import?format=prompts", "application/x-ndjson", line).await.expect(200);
}

#[tokio::test]
async fn paths_and_methods_have_the_error_shape() {
    let server = Server::start().await;
    assert_eq!(server.get("/nope").await.expect(404).json()["error"]["code"], "no_route");
    assert_eq!(server.get("/v1/completions").await.expect(405).json()["error"]["code"], "no_method");
    server.get("/v1/models/nope").await.expect(404);
    server.get("/static/../Cargo.toml").await.expect(404);
    server.get("/static/%2e%2e/Cargo.toml").await.expect(404);
}

#[tokio::test]
async fn imports_name_their_bad_lines() {
    let server = Server::start().await;
    let good = json!({"prompt": [{"role": "user", "content": "q"}], "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]});
    let body = format!("{good}\nnot json\n{good}\n");
    let import = |body: String| {
        server.raw("POST", "/admin/import?format=comparisons&name=my%20file.jsonl", "application/x-ndjson", body)
    };
    let done = import(body).await.expect(200).json();
    assert_eq!((&done["imported"], &done["skipped"]), (&json!(1), &json!(1)));
    assert_eq!(done["errors"][0]["line"], 2);
    assert_eq!(import("nothing\n".into()).await.expect(400).param().as_deref(), Some("body"));
    let export = server.get("/admin/export?format=comparisons").await.expect(200);
    let line: Value = serde_json::from_str(export.text.trim()).unwrap();
    assert_eq!(line["completions"], good["completions"]);
    assert_eq!(server.get("/admin/export?format=xml").await.expect(400).param().as_deref(), Some("format"));
}
