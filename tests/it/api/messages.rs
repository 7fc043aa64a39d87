//! Messages as clients keep them: what this server wrote, and what libraries add, can be sent back everywhere.

use serde_json::{Value, json};

use super::client::Server;

fn case(name: &str) -> Value {
    let path = crate::support::fixtures().join("cases/01-own-message-back.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (_, body) = all.as_object().unwrap().iter().find(|(key, _)| key.starts_with(name)).unwrap();
    body.clone()
}

#[tokio::test]
async fn messages_that_clients_return_are_accepted() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.open_post("/v1/chat/completions", case(name)).await.expect(200);
    }
    // Chat takes calls of tools, but the mock has no template to show them with. Prompts are stored with them as text;
    // choices are made by the model, which needs its template's own form.
    let refused = server.open_post("/v1/chat/completions", case("d")).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("messages"));
    server.post("/v1/prompts", json!({"messages": case("d")["messages"]})).await.expect(201);
    let asked = json!({"messages": case("d")["messages"], "choices": ["a", "b"]});
    let refused = server.post("/v1/choices", asked).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("messages[1].tool_calls"));
    assert_eq!(refused.json()["error"]["code"], "unsupported_parameter");
}

/// Each place that takes a conversation, with the conversation put into it and where messages are named.
fn places(messages: &Value) -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 3}), "messages"),
        ("/v1/prompts", json!({"messages": messages}), "messages"),
        ("/v1/comparison-sets", json!({"messages": messages, "completions": ["a", "b"]}), "messages"),
        (
            "/v1/comparisons",
            json!({"messages": messages, "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]}),
            "messages",
        ),
        ("/v1/demonstrations", json!({"messages": messages, "completion": "a"}), "messages"),
        ("/v1/rewards", json!({"prompt": messages, "completions": ["a"]}), "prompt"),
        ("/v1/label/ask", json!({"messages": messages, "sampling": {"max_tokens": 3}}), "messages"),
        ("/v1/choices", json!({"messages": messages, "choices": ["a", "b"]}), "messages"),
    ]
}

#[tokio::test]
async fn every_route_accepts_the_same_messages() {
    let server = Server::start().await;
    let reward = super::client::version("scorer", instructd::domain::ModelKind::Reward, None);
    server.services.store.models().put(reward.clone()).await.unwrap();
    server.services.store.models().activate(&reward.id, 2).await.unwrap();
    let user = json!({"role": "user", "content": "q"});
    let dumped = json!({"refusal": null, "audio": null, "function_call": null, "tool_calls": null, "annotations": [],
        "reasoning_content": null, "reasoning": null, "tool_call_id": null, "name": null,
        "provider_specific_fields": null});
    let with = |role: &str, content: Value, more: &Value| {
        let mut message = json!({"role": role, "content": content});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        message
    };
    for said in [
        with("assistant", json!("a"), &dumped),
        with("assistant", json!(""), &json!({"tool_calls": [], "reasoning_content": ""})),
        with("assistant", Value::Null, &json!({})),
        with("assistant", Value::Null, &json!({"refusal": "I would rather not."})),
        with("assistant", json!([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]), &json!({})),
        with("user", json!([{"type": "text", "text": "a"}]), &json!({"name": "Ada"})),
        with("developer", json!("be brief"), &dumped),
        with("system", json!("be brief"), &json!({"name": "house"})),
        with("user", json!("shown"), &json!({"html": "<p>shown</p>", "parts": [{"kind": "text", "text": "shown"}]})),
    ] {
        for (path, body, _) in places(&json!([said, user])) {
            let answer = server.post(path, body).await;
            assert!(answer.status.is_success(), "{path} {said}: {}", answer.text);
        }
    }
    for (said, field) in [
        (with("assistant", json!("a"), &json!({"function_call": {"name": "f"}})), "function_call"),
        (with("assistant", json!("a"), &json!({"audio": {"id": "x"}})), "audio"),
        (with("assistant", json!("a"), &json!({"annotations": [{"type": "url_citation"}]})), "annotations"),
        (with("assistant", json!("a"), &json!({"refusal": "b"})), "refusal"),
        (with("user", json!("a"), &json!({"tool_call_id": "x"})), "tool_call_id"),
        (with("user", Value::Null, &json!({})), "content"),
        (with("user", json!("a"), &json!({"mood": "good"})), "mood"),
    ] {
        for (path, body, list) in places(&json!([said, user])) {
            let answer = server.post(path, body).await.expect(400);
            assert_eq!(answer.param(), Some(format!("{list}[0].{field}")), "{path} {said}: {}", answer.text);
        }
    }
    // What is stored as text, and what of it is invalid. The mock of chat has no template for it, and choices take none.
    let call = json!({"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}]});
    for (said, wrong) in [
        (with("assistant", Value::Null, &call), None),
        (with("assistant", json!("a"), &json!({"reasoning_content": "hm"})), None),
        (with("tool", json!("5"), &json!({"tool_call_id": "x"})), None),
        (with("assistant", Value::Null, &json!({"tool_calls": [{"id": "x"}]})), Some("tool_calls[0].function.name")),
        (with("tool", json!("5"), &json!({})), Some("tool_call_id")),
    ] {
        for (path, body, list) in places(&json!([said, user])) {
            let answer = server.post(path, body).await;
            match wrong {
                _ if path == "/v1/choices" || path == "/v1/chat/completions" => {
                    answer.expect(400);
                }
                None => assert!(answer.status.is_success(), "{path} {said}: {}", answer.text),
                Some(field) => {
                    assert_eq!(answer.expect(400).param(), Some(format!("{list}[0].{field}")), "{path} {said}");
                }
            }
        }
    }
}

/// Each object that the server returns and that has a place in a request, put there as it came.
#[tokio::test]
async fn what_is_returned_can_be_sent_back() {
    let server = Server::start().await;
    let user = json!({"role": "user", "content": "q"});
    let chat = json!({"messages": [user], "max_tokens": 3});
    let said = server.open_post("/v1/chat/completions", chat).await.expect(200).json()["choices"][0]["message"].clone();
    let on = json!({"messages": [user, said, user], "max_tokens": 3});
    server.open_post("/v1/chat/completions", on).await.expect(200);

    let set = json!({"messages": [user, said, user], "completions": ["a", "b"]});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    let again = json!({"messages": set["prompt"]["messages"], "completions": set["completions"]});
    // The completions belong to the same prompt: it is the same by its content.
    let again = server.post("/v1/comparison-sets", again).await.expect(201).json();
    assert_eq!(again["prompt_id"], set["prompt_id"]);
    assert_eq!(again["completions"][0]["id"], set["completions"][0]["id"]);

    let turn = server.get("/v1/label/next").await.expect(200).json();
    let mut ranked = turn["completions"].as_array().unwrap().clone();
    for (tier, completion) in ranked.iter_mut().enumerate() {
        completion["tier"] = json!(tier);
    }
    let ranking = json!({"messages": turn["prompt"]["messages"], "completions": ranked});
    server.post("/v1/comparisons", ranking).await.expect(201);
    let prompts = server.get("/v1/prompts").await.expect(200).json();
    let stored = &prompts["data"][0];
    let prompt = json!({"messages": stored["messages"], "tags": stored["tags"], "lang": stored["lang"]});
    assert_eq!(server.post("/v1/prompts", prompt).await.expect(201).json()["id"], stored["id"]);
    let shown = json!({"messages": turn["prompt"]["messages"], "completion": turn["completions"][0]["text"]});
    server.post("/v1/demonstrations", shown).await.expect(201);
    let tokens = server.open_post("/tokenize", json!({"prompt": "ab"})).await.expect(200).json()["tokens"].clone();
    let text = server.open_post("/detokenize", json!({"tokens": tokens})).await.expect(200).json()["prompt"].clone();
    assert_eq!(text, "ab");
}

/// Every field of OpenAI's chat and completion requests: taken where it asks for nothing that is not here, and
/// refused by its name where it does.
#[tokio::test]
async fn fields_of_openai() {
    let server = Server::start().await;
    let both = ["/v1/chat/completions", "/v1/completions"];
    let chat = &both[..1];
    let body = |path: &str, extra: &Value| {
        let mut body = json!({"max_tokens": 3});
        match path {
            "/v1/completions" => body["prompt"] = json!("x"),
            _ => body["messages"] = json!([{"role": "user", "content": "x"}]),
        }
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for (paths, extra) in [
        (&both[..], json!({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"})),
        (&both[..], json!({"prompt_cache_retention": "in_memory"})),
        (&both[..], json!({"store": false, "metadata": {"topic": "demo"}})),
        (&both[..], json!({"service_tier": "auto"})),
        (&both[..], json!({"service_tier": "default"})),
        (&both[..], json!({"logit_bias": null, "stop": null, "seed": null, "stream": null, "n": null})),
        (&both[..], json!({"logit_bias": {}, "stop": []})),
        (&both[..], json!({"stream_options": null})),
        (&both[..], json!({"stream_options": {"include_usage": false}})),
        (&both[..], json!({"stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}})),
        (chat, json!({"parallel_tool_calls": true})),
        (chat, json!({"parallel_tool_calls": false, "tools": [], "tool_choice": "auto"})),
        (chat, json!({"tool_choice": "none", "functions": [], "function_call": "none"})),
        (chat, json!({"modalities": ["text"], "audio": null, "response_format": {"type": "text"}})),
        (chat, json!({"logprobs": false, "top_logprobs": null})),
        (chat, json!({"logprobs": false, "top_logprobs": 0})),
        (
            chat,
            json!({"reasoning_effort": null, "verbosity": "medium", "prediction": null, "web_search_options": null}),
        ),
        (chat, json!({"max_tokens": null, "max_completion_tokens": 3})),
    ] {
        for path in paths {
            let answer = server.open_post(path, body(path, &extra)).await;
            assert_eq!(answer.status, 200, "{path} {extra}: {}", answer.text);
        }
    }
    for (paths, extra, param) in [
        (&both[..], json!({"store": true}), "store"),
        (&both[..], json!({"service_tier": "priority"}), "service_tier"),
        (&both[..], json!({"prompt_cache_retention": "24h"}), "prompt_cache_retention"),
        (&both[..], json!({"metadata": "x"}), "metadata"),
        (
            &both[..],
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
        ),
        (chat, json!({"modalities": ["text", "audio"]}), "modalities"),
        (chat, json!({"audio": {"voice": "x"}}), "audio"),
        (chat, json!({"tool_choice": "required"}), "tool_choice"),
        (chat, json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (chat, json!({"verbosity": "low"}), "verbosity"),
        (chat, json!({"prediction": {"type": "content", "content": "x"}}), "prediction"),
        (chat, json!({"web_search_options": {}}), "web_search_options"),
        (chat, json!({"function_call": {"name": "f"}}), "function_call"),
    ] {
        for path in paths {
            let answer = server.open_post(path, body(path, &extra)).await.expect(400);
            assert_eq!(answer.param().as_deref(), Some(param), "{path} {extra}: {}", answer.text);
        }
    }
    // What a document's reader is told.
    let document = server.get("/openapi.json").await.expect(200).json();
    let schema = |path: &str| {
        document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"].clone()
    };
    assert_eq!((schema(both[0]), schema(both[1])), (json!(["messages"]), json!(["prompt"])));
}
