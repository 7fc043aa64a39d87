//! The labeler's flow, with the admin key alone and with other people in the way.

use serde_json::{Value, json};

use super::client::Server;

async fn new_set(server: &Server, texts: &[&str]) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "**q**"}], "completions": texts});
    server.post("/v1/comparison-sets", body).await.expect(201).json()
}

fn judgment(turn: &Value, tiers: &[i64], key: &str) -> Value {
    let completions = turn["completions"].as_array().unwrap();
    let items: Vec<Value> =
        completions.iter().zip(tiers).map(|(c, t)| json!({"completion_id": c["id"], "tier": t})).collect();
    json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items,
           "active_ms": 1200, "wall_ms": 1500, "idempotency_key": key})
}

fn judge_path(turn: &Value) -> String {
    format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap())
}

#[tokio::test]
async fn lease_judge_retry_revise() {
    let server = Server::start().await;
    server.get("/v1/label/next").await.expect(204);
    new_set(&server, &["a", "b", "c"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    assert_eq!(turn["prompt"]["messages"][0]["html"], "<p><strong>q</strong></p>\n");
    assert_eq!(turn["completions"].as_array().unwrap().len(), 3);
    assert!(!turn.to_string().contains("model"), "blind until the vote");
    assert_eq!(turn["me"], json!({"name": "admin", "done_today": 0, "done_total": 0, "skipped_today": 0}));

    let lease = json!({"lease_token": turn["lease_token"]});
    let id = turn["assignment_id"].as_str().unwrap();
    let renewed = server.post(&format!("/v1/label/{id}/renew"), lease).await.expect(200).json();
    assert!(renewed["expires_at"].as_i64().unwrap() >= turn["expires_at"].as_i64().unwrap());

    let body = judgment(&turn, &[1, 0, 1], "key-1");
    let stored = server.post(&judge_path(&turn), body.clone()).await.expect(200).json();
    assert_eq!(stored["replayed"], false);
    assert_eq!(stored["reveal"], json!([]), "blind after the vote too");
    for (position, item) in stored["judgment"]["items"].as_array().unwrap().iter().enumerate() {
        assert_eq!(item["shown_position"], position);
        assert_eq!(item["completion_id"], turn["completions"][position]["id"]);
    }
    let again = server.post(&judge_path(&turn), body).await.expect(200).json();
    assert_eq!(again["replayed"], true);
    assert_eq!(again["judgment"], stored["judgment"]);
    let other = server.post(&judge_path(&turn), judgment(&turn, &[0, 1, 1], "key-1")).await.expect(409);
    assert_eq!(other.error_code().as_deref(), Some("idempotency_key_reused"));
    assert_eq!(other.param().as_deref(), Some("idempotency_key"));

    let mut revision = judgment(&turn, &[0, 1, 2], "key-2");
    revision["revises"] = stored["judgment"]["id"].clone();
    let revised = server.post(&judge_path(&turn), revision).await.expect(200).json();
    assert_eq!(revised["judgment"]["revision"], 2);
    let sets = server.services.store.judgments().ranked(&Default::default()).await.unwrap();
    assert_eq!(sets.len(), 1, "only the latest revision counts");
    let history = server.get("/v1/label/history?limit=5").await.expect(200).json();
    assert_eq!(history["data"].as_array().unwrap().len(), 2);
    let reopened = format!("/v1/label/judgments/{}", revised["judgment"]["id"].as_str().unwrap());
    let reopened = server.get(&reopened).await.expect(200).json();
    assert_eq!(reopened["completions"], turn["completions"], "as it was shown");
    let all = server.get("/v1/judgments").await.expect(200).json();
    assert_eq!(all["data"].as_array().unwrap().len(), 2);
    server.get("/v1/label/next").await.expect(204);
    new_set(&server, &["a", "b"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    assert_eq!(
        (&turn["me"]["done_today"], &turn["me"]["done_total"]),
        (&json!(1), &json!(1)),
        "revisions do not count"
    );
}

#[tokio::test]
async fn a_caller_who_holds_the_last_set_is_told_how_to_get_it_again() {
    let server = Server::start().await;
    let why =
        async |query: &str| server.get(&format!("/v1/label/next{query}")).await.expect(204).headers["x-queue"].clone();
    assert_eq!(why("").await, "empty");
    new_set(&server, &["a", "b"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    assert_eq!(why("").await, "held");
    let again = server.get("/v1/label/next?resume=true").await.expect(200).json();
    assert_eq!((&again["set_id"], &again["lease_token"]), (&turn["set_id"], &turn["lease_token"]));
    // Who names what they hold knows of it.
    assert_eq!(why(&format!("?resume=true&except={}", turn["set_id"].as_str().unwrap())).await, "empty");
    server.post(&judge_path(&turn), judgment(&turn, &[0, 1], "k")).await.expect(200);
    assert_eq!(why("").await, "empty");
}

#[tokio::test]
async fn a_judgment_must_fit_its_set() {
    let server = Server::start().await;
    new_set(&server, &["a", "b", "c"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut body = judgment(&turn, &[0, 1, 2], "key");
        edit(&mut body);
        body
    };
    for (body, param) in [
        (change(&|b| b["items"][1]["completion_id"] = json!("nope")), "items[1].completion_id"),
        (change(&|b| b["items"][1] = b["items"][0].clone()), "items[1].completion_id"),
        (change(&|b| b["items"] = json!([b["items"][0]])), "items"),
        (change(&|b| b["items"][2]["tier"] = json!(-1)), "items[2].tier"),
        (change(&|b| b["items"][2]["tier"] = json!("best")), "items[2].tier"),
        (change(&|b| b["items"][2]["rating"] = json!(11)), "items[2].rating"),
        (change(&|b| b["items"][0]["colour"] = json!(1)), "items[0].colour"),
        (change(&|b| b["outcome"] = json!("great")), "outcome"),
        (change(&|b| b["strength"] = json!("clearly")), "strength"),
        (change(&|b| b["active_ms"] = json!(-1)), "active_ms"),
        (change(&|b| b["idempotency_key"] = json!("")), "idempotency_key"),
        (change(&|b| b["flags"] = json!([{"completion_id": "nope", "code": "spam"}])), "flags[0].completion_id"),
        (change(&|b| b["flags"] = json!([{"code": "Not a code"}])), "flags[0].code"),
    ] {
        let answer = server.post(&judge_path(&turn), body.clone()).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{body}: {}", answer.text);
    }
    let forged = change(&|b| b["lease_token"] = json!("lease-forged"));
    server.post(&judge_path(&turn), forged).await.expect(409);
    server.post("/v1/label/nope/judgment", judgment(&turn, &[0, 1, 2], "k")).await.expect(404);
    assert_eq!(server.services.store.counts().await.unwrap().judgments, 0);
    server.post(&judge_path(&turn), judgment(&turn, &[0, 0, 0], "k")).await.expect(200);
}

#[tokio::test]
async fn other_peoples_assignments_are_closed() {
    let server = Server::start().await;
    new_set(&server, &["a", "b"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    let made = server.post("/admin/keys", json!({"name": "eve", "scopes": ["feedback"]})).await.expect(201).json();
    let bearer = format!("Bearer {}", made["key"].as_str().unwrap());
    let eve = [("authorization", bearer.as_str())];
    // The only place is taken.
    server.call("GET", "/v1/label/next", &eve, None).await.expect(204);
    let id = turn["assignment_id"].as_str().unwrap();
    for (action, body) in [
        ("renew", json!({"lease_token": turn["lease_token"]})),
        ("release", json!({"lease_token": turn["lease_token"]})),
        ("judgment", judgment(&turn, &[0, 1], "eve")),
    ] {
        server.call("POST", &format!("/v1/label/{id}/{action}"), &eve, Some(body)).await.expect(403);
    }
    server.post(&format!("/v1/label/{id}/release"), json!({"lease_token": turn["lease_token"]})).await.expect(204);
    let hers = server.call("GET", "/v1/label/next", &eve, None).await.expect(200).json();
    let stored = server.call("POST", &judge_path(&hers), &eve, Some(judgment(&hers, &[0, 1], "eve"))).await.expect(200);
    let path = format!("/v1/label/judgments/{}", stored.json()["judgment"]["id"].as_str().unwrap());
    server.get(&path).await.expect(200); // an admin reviews
    let own = server.call("GET", "/v1/judgments", &eve, None).await.expect(200).json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_ideal_answer_becomes_a_demonstration() {
    let server = Server::start().await;
    new_set(&server, &["a", "b"]).await;
    let turn = server.get("/v1/label/next").await.expect(200).json();
    let mut body = judgment(&turn, &[], "k");
    body["outcome"] = json!("all_bad");
    body["ideal_answer"] = json!("better than both");
    server.post(&judge_path(&turn), body).await.expect(200);
    let export = server.get("/admin/export?format=demonstrations").await.expect(200).text;
    assert_eq!(serde_json::from_str::<Value>(&export).unwrap()["completion"], "better than both");
}

#[tokio::test]
async fn sets_are_drawn_from_the_policy_and_ranked() {
    let server = Server::start().await;
    let request = json!({"messages": [{"role": "user", "content": "q"}], "n": 3, "sampling": {"max_tokens": 30}});
    let set = server.post("/v1/comparison-sets", request).await.expect(201).json();
    assert_eq!(set["completions"].as_array().unwrap().len(), 3);
    let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
    let turn = server.get(&path).await.expect(200).json();
    assert_eq!(turn["set_id"], set["id"]);
    let reveal = json!({"name": "labeling.reveal", "value": true});
    server.post("/admin/settings", reveal).await;
    let stored = server.post(&judge_path(&turn), judgment(&turn, &[0, 1, 2], "k")).await.expect(200).json();
    assert_eq!(stored["reveal"][0]["model"], "base", "where the setting allows it");
    assert_eq!(server.get("/v1/label/next?set_id=nope").await.expect(404).param().as_deref(), Some("set_id"));
}

#[tokio::test]
async fn rankings_by_api_are_stored_once() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "q"}], "idempotency_key": "r1", "strength": "clearly",
        "completions": [{"text": "good", "tier": 0}, {"text": "bad", "tier": 1}]});
    let first = server.post("/v1/comparisons", body.clone()).await.expect(201).json();
    let again = server.post("/v1/comparisons", body.clone()).await.expect(200).json();
    assert_eq!((&again["replayed"], &again["set"]["id"]), (&json!(true), &first["set"]["id"]));
    let counts = server.services.store.counts().await.unwrap();
    assert_eq!((counts.judgments, counts.completions, counts.sets_done), (1, 2, 1));
    let export = server.get("/admin/export?format=trl").await.expect(200).text;
    assert!(export.contains("\"chosen\"") && export.lines().count() == 1, "{export}");
    let feedback = json!({"completion_id": first["set"]["completion_ids"][0], "kind": "thumb", "value": "up", "idempotency_key": "f"});
    let one = server.post("/v1/feedback", feedback.clone()).await.expect(201).json();
    assert_eq!(server.post("/v1/feedback", feedback.clone()).await.expect(201).json()["id"], one["id"]);
    // Another request under a used key is refused, whatever it changes, and stores nothing.
    let question = json!([{"role": "user", "content": "another"}]);
    let answers = json!([{"text": "good", "tier": 0}, {"text": "worse", "tier": 1}]);
    let more = json!([{"text": "good", "tier": 0}, {"text": "bad", "tier": 1}, {"text": "ugly", "tier": 2}]);
    for (path, sent, field, value) in [
        ("/v1/comparisons", &body, "messages", question),
        ("/v1/comparisons", &body, "completions", answers),
        ("/v1/comparisons", &body, "completions", more),
        ("/v1/comparisons", &body, "strength", json!("barely")),
        ("/v1/comparisons", &body, "outcome", json!("all_bad")),
        ("/v1/feedback", &feedback, "value", json!("down")),
        ("/v1/feedback", &feedback, "completion_id", first["set"]["completion_ids"][1].clone()),
    ] {
        let mut other = sent.clone();
        other[field] = value;
        if other["outcome"] == "all_bad" {
            other.as_object_mut().unwrap().remove("strength");
        }
        let refused = server.post(path, other).await.expect(409);
        assert_eq!(refused.error_code().as_deref(), Some("idempotency_key_reused"), "{path} {field}: {}", refused.text);
    }
    let after = server.services.store.counts().await.unwrap();
    assert_eq!((after.judgments, after.completions, after.sets_done), (1, 2, 1));
}

#[tokio::test]
async fn thoughts_are_shown_or_not() {
    let server = Server::start().await;
    let texts = ["<think>\nmuch\n</think>\n\n**one**", "two", "much\n</think>three"];
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": texts});
    server.post("/v1/comparison-sets", set).await.expect(201);
    let shown = async || {
        let leased = server.get("/v1/label/next?resume=true").await.expect(200).json();
        let mut shown: Vec<_> = leased["completions"].as_array().unwrap().clone();
        shown.sort_by_key(|c| c["text"].to_string());
        (shown, leased["set_id"].as_str().unwrap().to_owned())
    };
    let (all, id) = shown().await;
    assert_eq!(all.len(), 3);
    assert!(texts.iter().all(|text| all.iter().any(|c| c["text"] == *text)), "{all:?}");
    let setting = json!({"name": "labeling.show_reasoning", "value": false});
    server.post("/admin/settings", setting).await.expect(204);
    let (all, _) = shown().await;
    let told: Vec<_> = all.iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(told, ["**one**", "three", "two"]);
    assert!(all[0]["html"].as_str().unwrap().contains("<strong>one</strong>"));
    let set = server.get(&format!("/v1/comparison-sets/{id}")).await.expect(200).json();
    assert!(set["completions"].as_array().unwrap().iter().all(|c| !c["text"].as_str().unwrap().contains("much")));
    // Answers to one's own question are told when they are whole.
    let ask = json!({"messages": [{"role": "user", "content": "q"}], "n": 2, "sampling": {"max_tokens": 16}});
    let events = server.post("/v1/label/ask", ask).await.expect(200).events();
    let text = |e: &String| serde_json::from_str::<serde_json::Value>(e).unwrap()["text"].is_string();
    assert_eq!(events.iter().filter(|e| text(e)).count(), 2, "{events:?}");
}

/// A conversation with calls of tools is shown in its parts: reasoning, calls with their arguments, results.
#[tokio::test]
async fn calls_of_tools_are_shown_as_parts() {
    let server = Server::start().await;
    let call = json!({"id": "c1", "type": "function",
        "function": {"name": "weather", "arguments": r#"{"city": "Bonn", "days": 2}"#}});
    let messages = json!([
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "{\"rain\": true}"},
    ]);
    let again =
        "<think>once more</think>**Wait.**\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>";
    let set = json!({"messages": messages, "completions": ["Yes.", again]});
    server.post("/v1/comparison-sets", set).await.expect(201);
    let turn = server.get("/v1/label/next").await.expect(200).json();
    let shown = turn["prompt"]["messages"].as_array().unwrap();
    assert_eq!(shown[0].get("parts"), None, "a plain text has no parts");
    let arguments = json!([{"name": "city", "value": "Bonn"}, {"name": "days", "value": "2"}]);
    assert_eq!(shown[1]["parts"], json!([{"kind": "tool_call", "name": "weather", "arguments": arguments}]));
    assert_eq!(shown[2]["parts"], json!([{"kind": "tool_result", "text": "{\"rain\": true}"}]));
    let parts = turn["completions"].as_array().unwrap().iter().find_map(|c| c.get("parts")).unwrap();
    assert_eq!(
        *parts,
        json!([
            {"kind": "reasoning", "text": "once more", "html": "<p>once more</p>\n"},
            {"kind": "text", "text": "**Wait.**", "html": "<p><strong>Wait.</strong></p>\n"},
            {"kind": "tool_call", "name": "weather", "arguments": []},
        ])
    );
    // What is shown can be sent back, and is the same prompt with the same completions.
    let shown = json!({"messages": turn["prompt"]["messages"], "completions": turn["completions"]});
    let again = server.post("/v1/comparison-sets", shown).await.expect(201).json();
    assert_eq!(again["prompt_id"], turn["prompt"]["id"]);
    // Offered tools are those of the stored system message.
    let tools = json!([{"type": "function", "function": {"name": "weather", "description": "Now."}}]);
    let messages =
        json!([{"role": "system", "content": format!("# Tools\n\n{tools}")}, {"role": "user", "content": "q"}]);
    let bare = r#"{"name": "weather", "parameters": {"city": "Ulm"}}"#;
    let made = json!({"messages": messages, "completions": [bare, "No."]});
    let set = server.post("/v1/comparison-sets", made).await.expect(201).json();
    let set = server.get(&format!("/v1/comparison-sets/{}", set["id"].as_str().unwrap())).await.expect(200).json();
    let offered = json!([{"kind": "tools", "tools": [{"name": "weather", "description": "Now."}]}]);
    assert_eq!(set["prompt"]["messages"][0]["parts"], offered);
    let called = json!({"kind": "tool_call", "name": "weather", "arguments": [{"name": "city", "value": "Ulm"}]});
    assert_eq!(set["completions"][0]["parts"], json!([called]));
    let bad = json!({"messages": [{"role": "tool", "content": "x"}], "completions": ["a", "b"]});
    let refused = server.post("/v1/comparison-sets", bad).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("messages[0].tool_call_id"));
}
