//! Other forms of chat, Responses and Messages, and reranking: each whole and by events, on the same models.

use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Server};
use super::tools::{Real, families};

fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Names and data of server-sent events.
fn named(text: &str) -> Vec<(String, Value)> {
    let mut name = String::new();
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("event: ") {
            name = found.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            all.push((name.clone(), serde_json::from_str(data).unwrap()));
        }
    }
    all
}

fn weather() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}}, "required": ["city"], "additionalProperties": false})
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_anthropics_form() {
    let real = Real::start(&families()[0]).await;
    let ask = |extra: Value| {
        let user = json!([{"role": "user", "content": [{"type": "text", "text": "ab"}]}]);
        with(json!({"messages": user, "max_tokens": 40, "system": "brief"}), extra)
    };
    let post = async |extra: Value| real.server.open_post("/v1/messages", ask(extra)).await.expect(200);
    let free = post(json!({"temperature": 0})).await.json();
    assert_eq!((&free["type"], &free["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(free["content"][0]["type"], "text");
    // Greedy: the text is that of chat.
    let messages = json!([{"role": "system", "content": "brief"}, {"role": "user", "content": "ab"}]);
    let same = real.chat(json!({"messages": messages, "max_tokens": 40, "temperature": 0})).await;
    assert_eq!(free["content"][0]["text"], same["choices"][0]["message"]["content"]);
    assert_eq!(free["usage"]["input_tokens"], same["usage"]["prompt_tokens"]);
    assert_eq!(free["usage"]["output_tokens"], same["usage"]["completion_tokens"]);
    let reason = if same["choices"][0]["finish_reason"] == "length" { "max_tokens" } else { "end_turn" };
    assert_eq!(free["stop_reason"], reason);
    let counted = json!({"messages": [{"role": "user", "content": "ab"}], "system": "brief"});
    let counted = real.server.open_post("/v1/messages/count_tokens", counted).await.expect(200).json();
    assert_eq!(counted, json!({"input_tokens": free["usage"]["input_tokens"]}));
    // A stop sequence ends the text and is named, streamed too.
    let text = free["content"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(2).collect();
    let cut = text.find(&stop).unwrap();
    let stopped = post(json!({"temperature": 0, "stop_sequences": [stop]})).await.json();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(stopped["content"][0]["text"], text[..cut]);
    for stops in [json!([]), json!([stop])] {
        let events = named(&post(json!({"temperature": 0, "stop_sequences": stops, "stream": true})).await.text);
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..2], ["message_start", "content_block_start"]);
        assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
        assert!(events.iter().all(|(name, data)| data["type"] == *name));
        let told: String = events.iter().filter_map(|(_, d)| d["delta"]["text"].as_str()).collect();
        let end = if stops == json!([]) { text } else { &text[..cut] };
        assert_eq!(told, end);
        let delta = &events[events.len() - 2].1;
        assert_eq!(delta["delta"]["stop_sequence"], if stops == json!([]) { Value::Null } else { json!(stop) });
    }
    // Tools, and what they answered.
    let tool = json!({"name": "weather", "description": "d", "input_schema": weather()});
    let choice = json!({"type": "tool", "name": "weather", "disable_parallel_tool_use": true});
    let called = post(json!({"tools": [tool], "tool_choice": choice, "max_tokens": 200})).await.json();
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    let block = &called["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("weather")));
    assert!(["Bonn", "Ulm"].contains(&block["input"]["city"].as_str().unwrap()));
    let streamed = json!({"tools": [tool], "tool_choice": choice, "max_tokens": 200, "stream": true, "temperature": 0});
    let events = named(&post(streamed).await.text);
    let input: String = events.iter().filter_map(|(_, d)| d["delta"]["partial_json"].as_str()).collect();
    assert!(serde_json::from_str::<Value>(&input).unwrap()["city"].is_string(), "{input}");
    let on = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": called["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "fine"}]}]);
    post(json!({"messages": on, "tools": [tool], "max_tokens": 3})).await;
    for (body, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"messages": [{"role": "assistant", "content": "x"}]}), "messages"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "messages[0].content[0]"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}), "tools[0]"),
        (json!({"tools": [tool], "tool_choice": {"type": "tool", "name": "no"}}), "tool_choice.name"),
        (json!({"stop_sequences": [""]}), "stop_sequences[0]"),
        (json!({"thinking": {"type": "perhaps"}}), "thinking.type"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"no_such": 3}), "no_such"),
    ] {
        let answer = real.server.open_post("/v1/messages", ask(body.clone())).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{body}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_whole_streamed_and_continued() {
    let real = Real::start(&families()[0]).await;
    let ask = |extra: Value| with(json!({"input": "ab", "max_output_tokens": 30}), extra);
    let post = async |extra: Value| real.server.open_post("/v1/responses", ask(extra)).await.expect(200);
    let free = post(json!({"temperature": 0, "instructions": "brief"})).await.json();
    let messages = json!([{"role": "system", "content": "brief"}, {"role": "user", "content": "ab"}]);
    let same = real.chat(json!({"messages": messages, "max_tokens": 30, "temperature": 0})).await;
    let said = &free["output"][0]["content"][0];
    assert_eq!((&said["type"], &said["text"]), (&json!("output_text"), &same["choices"][0]["message"]["content"]));
    assert_eq!(free["usage"]["total_tokens"], same["usage"]["total_tokens"]);
    let cut = same["choices"][0]["finish_reason"] == "length";
    assert_eq!(free["status"], if cut { "incomplete" } else { "completed" });
    // By events: the same response at the end, numbered without gaps.
    let events = named(&post(json!({"temperature": 0, "instructions": "brief", "stream": true})).await.text);
    for (i, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(i)));
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    let told: String = events
        .iter()
        .filter(|(n, _)| n == "response.output_text.delta")
        .map(|(_, d)| d["delta"].as_str().unwrap())
        .collect();
    assert_eq!(said["text"], told);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["content"], free["output"][0]["content"]);
    assert_eq!((&last["status"], &last["usage"]), (&free["status"], &free["usage"]));
    // Going on from it: the conversation is read again, without the instructions.
    let on = post(json!({"input": "cd", "previous_response_id": free["id"], "temperature": 0})).await.json();
    let history = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": said["text"]},
        {"role": "user", "content": "cd"}]);
    let same = real.chat(json!({"messages": history, "max_tokens": 30, "temperature": 0})).await;
    assert_eq!(on["usage"]["input_tokens"], same["usage"]["prompt_tokens"]);
    assert_eq!(on["output"][0]["content"][0]["text"], same["choices"][0]["message"]["content"]);
    let streamed_id = last["id"].as_str().unwrap();
    post(json!({"input": "cd", "previous_response_id": streamed_id})).await;
    let path = format!("/v1/responses/{}", free["id"].as_str().unwrap());
    let open = async |method: &str, path: &str| real.server.call(method, path, &[], None).await;
    assert_eq!(open("GET", &path).await.expect(200).json(), free);
    // Another's response is none.
    real.server.get(&path).await.expect(404);
    assert_eq!(open("DELETE", &path).await.expect(200).json()["deleted"], true);
    open("GET", &path).await.expect(404);
    let gone = ask(json!({"previous_response_id": free["id"]}));
    let gone = real.server.open_post("/v1/responses", gone).await.expect(404);
    assert_eq!(gone.param().as_deref(), Some("previous_response_id"));
    let unkept = post(json!({"store": false})).await.json();
    open("GET", &format!("/v1/responses/{}", unkept["id"].as_str().unwrap())).await.expect(404);
    // Tools and forms.
    let tool = json!({"type": "function", "name": "weather", "parameters": weather(), "strict": true});
    let choice = json!({"type": "function", "name": "weather"});
    let forced =
        json!({"tools": [tool], "tool_choice": choice, "parallel_tool_calls": false, "max_output_tokens": 200});
    let called = post(forced.clone()).await.json();
    let call = &called["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")), "{called}");
    assert!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap()["city"].is_string());
    let output = json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "fine"}]);
    post(json!({"input": output, "previous_response_id": called["id"], "tools": [tool], "max_output_tokens": 3})).await;
    let events = named(&post(with(forced, json!({"stream": true}))).await.text);
    let arguments: String = events
        .iter()
        .filter(|(n, _)| n == "response.function_call_arguments.delta")
        .map(|(_, d)| d["delta"].as_str().unwrap())
        .collect();
    let done = events.iter().find(|(n, _)| n == "response.function_call_arguments.done").unwrap();
    assert_eq!(done.1["arguments"], arguments);
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": {"enum": ["x", "y"]}});
    let formed = post(json!({"text": {"format": format}})).await.json();
    let text = formed["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(["\"x\"", "\"y\""].contains(&text), "{text}");
    for (body, param) in [
        (json!({"input": null}), "input"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}}), "text.format"),
        (json!({"reasoning": {"effort": "very"}}), "reasoning.effort"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"no_such": 3}), "no_such"),
    ] {
        let answer = real.server.open_post("/v1/responses", ask(body.clone())).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{body}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_ordered_by_an_encoder_or_a_reward_model() {
    let server = Server::serving("llama-tiny").await;
    let mut encoder = super::client::version("encoder", instructd::domain::ModelKind::Encoder, None);
    encoder.artifact_uri = crate::support::fixture("bert-tiny").display().to_string();
    server.services.store.models().put(encoder.clone()).await.unwrap();
    server.services.store.models().activate(&encoder.id, 2).await.unwrap();
    let embed = async |texts: Value| {
        let answer = server.open_post("/v1/embeddings", json!({"input": texts})).await.expect(200).json();
        let rows = answer["data"].as_array().unwrap().clone();
        let row =
            |r: &Value| r["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let vectors = embed(json!(["t5 t6", "t5 t6", "t7", "t9 t5 t6"])).await;
    let cosine = |i: usize| vectors[0].iter().zip(&vectors[i]).map(|(a, b)| a * b).sum::<f64>();
    let body = json!({"query": "t5 t6", "documents": ["t7", {"text": "t5 t6"}, "t9 t5 t6"], "top_n": 2, "return_documents": true});
    let answer = server.open_post("/v1/rerank", body).await.expect(200).json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["index"], &results[0]["document"]["text"]), (2, &json!(1), &json!("t5 t6")));
    assert!((results[0]["relevance_score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    assert!(results[1]["relevance_score"].as_f64().unwrap() <= results[0]["relevance_score"].as_f64().unwrap());
    let body = json!({"text_1": "t5 t6", "text_2": ["t5 t6", "t7", "t9 t5 t6"]});
    let scored = server.open_post("/v1/score", body).await.expect(200).json();
    for i in 0..3 {
        assert!((scored["data"][i]["score"].as_f64().unwrap() - cosine(i + 1)).abs() < 1e-5);
    }
    let pairs = json!({"text_1": ["t5 t6", "t7"], "text_2": ["t5 t6", "t7"]});
    let scored = server.open_post("/v1/score", pairs).await.expect(200).json();
    assert!((0..2).all(|i| (scored["data"][i]["score"].as_f64().unwrap() - 1.0).abs() < 1e-5), "{scored}");
    for (path, body, param) in [
        ("/v1/rerank", json!({"query": "a", "documents": []}), "documents"),
        ("/v1/rerank", json!({"query": "a", "documents": [3]}), "documents[0]"),
        ("/v1/rerank", json!({"query": "a", "documents": ["b"], "top_n": 0}), "top_n"),
        ("/v1/rerank", json!({"query": "a", "documents": vec!["b"; 3000]}), "documents"),
        ("/v1/rerank", json!({"query": "a", "documents": ["b"], "model": "base"}), "model"),
        ("/v1/score", json!({"text_1": ["a", "b"], "text_2": ["c"]}), "text_1"),
        ("/v1/score", json!({"text_1": "a", "text_2": []}), "text_2"),
    ] {
        let answer = server.open_post(path, body.clone()).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some(param), "{path}: {}", answer.text);
    }
    // The mock's reward model likes long answers.
    let mock = Server::start().await;
    let reward = super::client::version("scorer", instructd::domain::ModelKind::Reward, None);
    mock.services.store.models().put(reward.clone()).await.unwrap();
    mock.services.store.models().activate(&reward.id, 2).await.unwrap();
    let body = json!({"query": "q", "documents": ["ab", "abcd"], "model": "scorer"});
    let answer = mock.open_post("/v1/rerank", body).await.expect(200).json();
    assert_eq!((&answer["results"][0]["index"], &answer["usage"]["total_tokens"]), (&json!(1), &json!(6)));
}

#[tokio::test]
async fn other_sites_and_other_headers() {
    let server = Server::with(
        |c| {
            c.server.cors_origins = vec!["https://app.example.org".into()];
            c.require_inference_key = true;
        },
        Default::default(),
    )
    .await;
    let ask = json!({"messages": [{"role": "user", "content": "q"}], "max_tokens": 4});
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
        ];
        server.call("OPTIONS", "/v1/chat/completions", &headers, None).await
    };
    let allowed = preflight("https://app.example.org").await.expect(200);
    let header = |answer: &super::client::Answer, name: &str| {
        answer.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
    };
    assert_eq!(header(&allowed, "access-control-allow-origin").as_deref(), Some("https://app.example.org"));
    assert!(header(&allowed, "access-control-allow-headers").unwrap().contains("x-stainless-lang"));
    assert_eq!(header(&allowed, "access-control-allow-credentials"), None);
    assert_eq!(header(&preflight("https://evil.example.org").await, "access-control-allow-origin"), None);
    // Anthropic's clients send their key in a header of its own.
    let key = [("x-api-key", ADMIN_KEY), ("origin", "https://app.example.org")];
    let answer = server.call("POST", "/v1/chat/completions", &key, Some(ask.clone())).await.expect(200);
    assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some("https://app.example.org"));
    assert!(header(&answer, "access-control-expose-headers").unwrap().contains("x-request-id"));
    server.call("POST", "/v1/chat/completions", &[("x-api-key", "wrong")], Some(ask.clone())).await.expect(401);
    // By default it is not there.
    let plain = Server::start().await;
    let headers = [("origin", "https://app.example.org")];
    let answer = plain.call("POST", "/v1/chat/completions", &headers, Some(ask)).await.expect(200);
    assert_eq!(header(&answer, "access-control-allow-origin"), None);
}
