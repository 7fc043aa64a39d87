//! Labelers see the prompts of their own sets only, by whatever route they ask.

use http::Method;
use instructd::http::access::Access;
use instructd::http::routes;
use serde_json::{Value, json};

use crate::api::client::{Answer, Server};

const SECRET: &str = "SOMEBODY-ELSES-PROMPT";

async fn labeler(server: &Server, name: &str) -> String {
    let invite = server.post("/admin/invites", json!({})).await.expect(201).json();
    let login = server.open_post("/session", json!({"invite": invite["token"], "name": name})).await.expect(200);
    login.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

/// Ids of everything that is not the labeler's: prompts, completions, sets, assignments, judgments, and so on.
async fn foreign(server: &Server, ada: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let messages = |what: &str| json!([{"role": "user", "content": format!("{SECRET} {what}")}]);
    let chat = json!({"model": "base", "n": 2, "max_tokens": 5, "messages": messages("chat")});
    server.open_post("/v1/chat/completions", chat).await.expect(200);
    let raw = json!({"model": "base", "max_tokens": 5, "prompt": format!("{SECRET} raw")});
    server.open_post("/v1/completions", raw).await.expect(200);
    server.post("/v1/prompts", json!({"messages": messages("submitted")})).await.expect(201);
    let set = json!({"messages": messages("set"), "completions": ["one", "two"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    let headers = [("cookie", ada)];
    let path = format!("/v1/label/next?set_id={}", set["id"].as_str().unwrap());
    let turn = server.call("GET", &path, &headers, None).await.expect(200).json();
    let items: Vec<Value> = (0i64..)
        .zip(turn["completions"].as_array().unwrap())
        .map(|(tier, c)| json!({"completion_id": c["id"], "tier": tier}))
        .collect();
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items,
                      "idempotency_key": "a", "rationale": format!("{SECRET} why")});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    let judged = server.call("POST", &path, &headers, Some(body)).await.expect(200).json();
    ids.push(judged["judgment"]["id"].as_str().unwrap().to_owned());
    ids.push(turn["assignment_id"].as_str().unwrap().to_owned());
    ids.push(set["id"].as_str().unwrap().to_owned());
    let prompts = server.get("/v1/prompts?limit=100").await.expect(200).json();
    assert_eq!(prompts["data"].as_array().unwrap().len(), 4);
    for prompt in prompts["data"].as_array().unwrap() {
        let id = prompt["id"].as_str().unwrap();
        for completion in server.services.store.completions().list(&id.into()).await.unwrap() {
            ids.push(completion.id.to_string());
        }
        ids.push(id.to_owned());
    }
    ids
}

#[tokio::test]
async fn labelers_see_the_prompts_of_their_own_sets_only() {
    let server = Server::start().await;
    let (ada, bob) = (labeler(&server, "Ada").await, labeler(&server, "Bob").await);
    let app = format!("Bearer {}", server.key(&["feedback", "inference"], None).await);
    let ids = foreign(&server, &ada).await;
    let callers = [("cookie", bob.as_str()), ("authorization", app.as_str())];
    let mut asked = 0;
    let mut check = |who: &str, what: &str, answer: &Answer| {
        asked += 1;
        assert!(!answer.text.contains(SECRET), "{who} by {what}: {}", answer.text);
    };
    for caller in callers {
        let headers = [caller];
        for route in routes::table(&server.services.config.limits) {
            if matches!(route.access, Access::Review | Access::Admin) || route.path == "/session" {
                continue;
            }
            for id in &ids {
                let path = route.path.replace("{id}", id).replace("{*path}", id);
                let what = format!("{} {path}", route.method);
                if route.method == Method::GET {
                    check(caller.0, &what, &server.call("GET", &path, &headers, None).await);
                    let names = route.query_names().unwrap_or_default();
                    for name in names.iter().filter(|name| name.ends_with("_id") || *name == "after") {
                        let path = format!("{path}?{name}={id}");
                        check(caller.0, &path, &server.call("GET", &path, &headers, None).await);
                    }
                    continue;
                }
                if route.method != Method::POST {
                    continue;
                }
                // What names the foreign thing in every place where a body may name one.
                for body in [
                    json!({"prompt_id": id, "completions": ["x", "y"]}),
                    json!({"prompt_id": id, "n": 2}),
                    json!({"prompt_id": id, "completions": [{"text": "x", "tier": 0}, {"text": "y", "tier": 1}]}),
                    json!({"set_id": id, "completions": [{"completion_id": id, "tier": 0}, {"text": "y", "tier": 1}]}),
                    json!({"completion_id": id, "kind": "thumb", "value": "up"}),
                    json!({"lease_token": "t"}),
                    json!({"lease_token": "t", "outcome": "skip", "idempotency_key": id, "revises": id}),
                    json!({"model": id, "prompt": "x", "max_tokens": 1}),
                ] {
                    check(caller.0, &format!("{what} {body}"), &server.call("POST", &path, &headers, Some(body)).await);
                }
            }
        }
        for path in ["/v1/prompts?limit=100", "/v1/comparison-sets?limit=100", "/v1/judgments?limit=100"] {
            check(caller.0, path, &server.call("GET", path, &headers, None).await);
        }
    }
    assert!(asked > 1000, "{asked}");
    // The same routes show Ada what is hers.
    for path in ["/v1/prompts", "/v1/judgments"] {
        let text = server.call("GET", path, &[("cookie", &ada)], None).await.expect(200).text;
        assert!(text.contains(SECRET), "{path}: {text}");
        assert!(!text.contains(&format!("{SECRET} chat")) && !text.contains(&format!("{SECRET} raw")), "{text}");
    }
}

/// What a prompt's right answer is, is not for those who judge answers to it.
#[tokio::test]
async fn labelers_do_not_see_the_reference_answer_of_a_prompt() {
    let server = Server::start().await;
    let line = json!({"prompt": "2 + 2?", "answer": "FOUR"}).to_string();
    server.raw("POST", "/admin/import?format=prompts&name=f", "application/x-ndjson", line).await.expect(200);
    assert!(server.get("/v1/prompts").await.expect(200).text.contains("FOUR"));
    let bob = labeler(&server, "Bob").await;
    let headers = [("cookie", bob.as_str())];
    let set = json!({"messages": [{"role": "user", "content": "2 + 2?"}], "completions": ["4", "5"]});
    server.call("POST", "/v1/comparison-sets", &headers, Some(set)).await.expect(201);
    let same = json!({"messages": [{"role": "user", "content": "2 + 2?"}]});
    let stored = server.call("POST", "/v1/prompts", &headers, Some(same)).await.expect(201).text;
    let listed = server.call("GET", "/v1/prompts", &headers, None).await.expect(200).text;
    assert!(listed.contains("2 + 2?") && !listed.contains("FOUR"), "{listed}");
    assert!(!stored.contains("FOUR"), "{stored}");
}
