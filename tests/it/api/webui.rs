//! Requests as Open WebUI's backend sends them to an OpenAI-compatible server, and what it reads of the answers: its
//! list of models, a streamed turn with all the parameters of its form, tools in its native mode, and the titles, tags
//! and follow-up questions that it asks for beside.

use serde_json::{Value, json};

use super::client::Server;

#[tokio::test]
async fn requests_of_open_webui_are_answered_in_its_form() {
    let server = Server::start().await;
    // `/models` of the base URL; `id` names the model in what follows.
    let models = server.get("/v1/models").await.expect(200).json();
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
    });
    let events = server.open_post("/v1/chat/completions", turn).await.expect(200).events();
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
    let task = json!({
        "model": model["id"], "messages": [{"role": "user", "content": "### Task:\nGenerate a title"}],
        "stream": false, "max_completion_tokens": 1000,
    });
    let answer = server.open_post("/v1/chat/completions", task).await.expect(200).json();
    assert!(answer["choices"][0]["message"]["content"].is_string());
    // Documents for its knowledge base are embedded by one call for many texts; no encoder is an error that it shows.
    let refused = server.open_post("/v1/embeddings", json!({"input": ["a", "b"], "model": "e"})).await;
    assert!(refused.status.is_client_error() && refused.json()["error"]["message"].is_string(), "{}", refused.text);
    // A model that is gone: `error.message` is what it shows.
    let gone = json!({"model": "no-such-model", "messages": [{"role": "user", "content": "x"}], "stream": true});
    let refused = server.open_post("/v1/chat/completions", gone).await.expect(404).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("no-such-model"));
}
