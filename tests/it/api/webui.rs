//! Requests as Open WebUI's backend sends them to an OpenAI-compatible server, and what it reads of the answers. The
//! shapes are those of its routers/openai.py, routers/tasks.py, utils/payload.py, utils/middleware.py and
//! retrieval/models/external.py.

use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server, version};
use super::tools::{Real, families, tools};
use instructd::domain::ModelKind;

/// Calls a route with the headers that Open WebUI sends when it forwards its users.
async fn call(server: &Server, method: &str, path: &str, body: Option<Value>) -> Answer {
    let bearer = format!("Bearer {ADMIN_KEY}");
    let mut headers = vec![
        ("authorization", bearer.as_str()),
        ("x-openwebui-user-name", "Ada%20L"),
        ("x-openwebui-user-id", "1f0c"),
        ("x-openwebui-user-email", "ada@example.org"),
        ("x-openwebui-user-role", "admin"),
        ("x-openwebui-chat-id", "c-1"),
    ];
    if body.is_none() {
        headers.push(("content-type", "application/json"));
    }
    server.call(method, path, &headers, body).await
}

/// The message of a streamed answer, assembled as its middleware does: calls by `index`, a first piece as it is, later
/// ones appended to its name and arguments.
fn assembled(answer: &Answer) -> Value {
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = answer.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let (mut content, mut calls): (String, Vec<Value>) = (String::new(), Vec::new());
    for event in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let Some(choice) = chunk["choices"].get(0) else { continue };
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        for piece in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap() as usize;
            let Some(call) = calls.get_mut(index) else {
                calls.push(piece.clone());
                continue;
            };
            for field in ["name", "arguments"] {
                let more = piece["function"][field].as_str().unwrap_or_default();
                let whole = call["function"][field].as_str().unwrap_or_default().to_owned() + more;
                call["function"][field] = json!(whole);
            }
        }
    }
    json!({"role": "assistant", "content": content, "tool_calls": calls})
}

#[tokio::test]
async fn requests_of_open_webui_are_answered_in_its_form() {
    let server = Server::start().await;
    // `/models` of the base URL; `id` names the model in what follows.
    let models = call(&server, "GET", "/v1/models", None).await.expect(200).json();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert!(model["id"].is_string() && model["object"] == "model" && model["owned_by"].is_string(), "{model}");
    assert!(model.get("name").is_none_or(Value::is_string), "a name that is null would be shown");
    let talk = json!([
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "and now?"}]},
    ]);
    let turn = json!({
        "model": model["id"], "messages": talk, "stream": true, "stream_options": {"include_usage": true},
        "temperature": 0.8, "top_p": 0.9, "max_tokens": 20, "frequency_penalty": 0.1, "presence_penalty": 0.1,
        "seed": 3, "stop": ["END"], "top_k": 40, "min_p": 0.0, "logit_bias": {"5": -1},
        "response_format": {"type": "text"},
    });
    let events = call(&server, "POST", "/v1/chat/completions", Some(turn)).await.expect(200).events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let text = |c: &Value| c["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    assert!(!chunks.iter().map(text).collect::<String>().is_empty());
    let usage = &chunks.last().unwrap()["usage"];
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert!(usage[field].is_u64(), "{usage}");
    }
    assert_eq!(chunks.last().unwrap()["choices"], json!([]), "the last piece has usage alone");
    // Titles, tags and follow-up questions: one message, not streamed.
    for limit in ["max_tokens", "max_completion_tokens"] {
        let mut task = json!({
            "model": model["id"], "messages": [{"role": "user", "content": "### Task:\nGenerate a title"}],
            "stream": false,
        });
        task[limit] = json!(1000);
        let answer = call(&server, "POST", "/v1/chat/completions", Some(task)).await.expect(200).json();
        assert!(answer["choices"][0]["message"]["content"].is_string());
    }
    // Documents for its knowledge base are embedded by one call for many texts; no encoder is an error that it shows.
    let refused = server.open_post("/v1/embeddings", json!({"input": ["a", "b"], "model": "e"})).await;
    assert!(refused.status.is_client_error() && refused.json()["error"]["message"].is_string(), "{}", refused.text);
    // A model that is gone: `error.message` is what it shows.
    let gone = json!({"model": "no-such-model", "messages": [{"role": "user", "content": "x"}], "stream": true});
    let refused = server.open_post("/v1/chat/completions", gone).await.expect(404).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("no-such-model"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_tool_goes_back_as_open_webui_streamed_it() {
    for family in families() {
        let real = Real::start(&family).await;
        let talk = json!([{"role": "user", "content": "ab"}]);
        // Its native mode sends tools alone; `tool_choice` is a parameter that the model's settings may add.
        let mut turn = json!({
            "messages": talk, "tools": tools(), "stream": true, "max_tokens": 800, "tool_choice": "required",
        });
        // Models of random weights may run into the length inside a call.
        let (mut complete, mut last) = (None, String::new());
        for seed in 0..20 {
            turn["seed"] = json!(seed);
            let answer = real.server.open_post("/v1/chat/completions", turn.clone()).await.expect(200);
            if answer.text.contains(r#""finish_reason":"tool_calls""#) {
                complete = Some(assembled(&answer));
                break;
            }
            last = answer.text;
        }
        let message = complete.unwrap_or_else(|| panic!("{}: no complete call in {last}", family.name));
        let calls = message["tool_calls"].as_array().unwrap().clone();
        assert!(!calls.is_empty(), "{}: {message}", family.name);
        let mut messages = talk.as_array().unwrap().clone();
        messages.push(message);
        for call in &calls {
            serde_json::from_str::<Value>(call["function"]["arguments"].as_str().unwrap()).unwrap();
            messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "{\"degrees\": 3}"}));
        }
        turn["messages"] = json!(messages);
        turn.as_object_mut().unwrap().remove("tool_choice");
        turn["max_tokens"] = json!(5);
        let after = real.server.open_post("/v1/chat/completions", turn).await.expect(200);
        assert!(after.events().len() > 1, "{}: {}", family.name, after.text);
    }
}

#[tokio::test]
async fn documents_are_embedded_and_reranked_for_open_webui() {
    let server = Server::serving("llama-tiny").await;
    let mut encoder = version("encoder", ModelKind::Encoder, None);
    encoder.artifact_uri = crate::support::fixture("bert-tiny").display().to_string();
    server.services.store.models().put(encoder.clone()).await.unwrap();
    server.services.store.models().activate(&encoder.id, 2).await.unwrap();
    let texts = json!({"input": ["t5 t6", "t7"], "model": "encoder"});
    let embedded = call(&server, "POST", "/v1/embeddings", Some(texts)).await.expect(200).json();
    for row in embedded["data"].as_array().unwrap() {
        assert!(row["embedding"].as_array().unwrap().iter().all(Value::is_f64), "{row}");
    }
    // The reranker's address is set whole; scores are read by `index`.
    let query = json!({"model": "encoder", "query": "t5 t6", "documents": ["t7", "t5 t6"], "top_n": 2});
    let ranked = call(&server, "POST", "/v1/rerank", Some(query)).await.expect(200).json();
    let mut results = ranked["results"].as_array().unwrap().clone();
    results.sort_by_key(|result| result["index"].as_u64());
    let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 2);
    assert!(scores[1] > scores[0], "{ranked}");
}
