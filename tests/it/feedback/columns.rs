//! Columns of common data sets, the bounds of imports as settings, and judgments given after a look.

use serde_json::{Value, json};

use crate::api::client::{Answer, Server};

async fn import(server: &Server, query: &str, lines: &[Value]) -> Answer {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    server.raw("POST", &format!("/admin/import?{query}"), "application/x-ndjson", body).await
}

async fn exported(server: &Server, format: &str) -> Vec<Value> {
    let text = server.get(&format!("/admin/export?format={format}")).await.expect(200).text;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn turn(from: &str, value: &str) -> Value {
    json!({"from": from, "value": value})
}

#[tokio::test]
async fn conversations_of_sharegpt_are_mapped() {
    let server = Server::start().await;
    let done = import(&server, "format=demonstrations", &[
        json!({"conversations": [turn("human", "Hi"), turn("gpt", "Hello"), turn("human", "And?"), turn("gpt", "Fine")]}),
        json!({"system": "Be short.", "conversations": [turn("human", "Hi"), turn("gpt", "Hello")], "id": "x1"}),
        json!({"conversations": [turn("system", "Be kind."), turn("user", "Yo"), turn("assistant", "Hey")]}),
    ])
    .await
    .expect(200)
    .json();
    assert_eq!((&done["imported"], &done["failed"]), (&json!(3), &json!(0)), "{done}");
    assert_eq!(done["ignored_fields"], json!({"id": 1}));
    let all = exported(&server, "demonstrations").await;
    let find = |answer: &str| all.iter().find(|l| l["completion"] == answer).unwrap()["prompt"].clone();
    assert_eq!(find("Fine"), json!([message("user", "Hi"), message("assistant", "Hello"), message("user", "And?")]));
    assert_eq!(find("Hello"), json!([message("system", "Be short."), message("user", "Hi")]));
    assert_eq!(find("Hey"), json!([message("system", "Be kind."), message("user", "Yo")]));

    // Preferences as LLaMA-Factory writes them, and prompts.
    let done = import(
        &server,
        "format=trl",
        &[json!({"conversations": [turn("human", "2+2?")], "chosen": turn("gpt", "4"), "rejected": turn("gpt", "5")})],
    )
    .await
    .expect(200)
    .json();
    assert_eq!(done["imported"], 1, "{done}");
    let set = &exported(&server, "comparisons").await[0];
    assert_eq!((&set["prompt"], &set["completions"][0]["text"]), (&json!([message("user", "2+2?")]), &json!("4")));
    let done = import(&server, "format=prompts", &[json!({"conversations": [turn("human", "Only a prompt")]})]).await;
    assert_eq!(done.expect(200).json()["imported"], 1);

    // What is no such turn is refused by name, and marks of turns are told.
    for (line, part) in [
        (json!({"conversations": [turn("human", "Hi"), turn("robot", "Beep")]}), "conversations[1].from"),
        (json!({"conversations": [turn("human", "Hi"), {"from": "gpt", "value": 7}]}), "conversations[1].value"),
        (json!({"conversations": [turn("human", "Hi")]}), "must end with a message of the assistant"),
        (json!({"conversations": [turn("function_call", "{}"), turn("gpt", "x")]}), "conversations[0].from"),
        (
            json!({"system": "a", "conversations": [turn("system", "b"), turn("human", "q"), turn("gpt", "r")]}),
            "system",
        ),
    ] {
        let refused = import(&server, "format=demonstrations", std::slice::from_ref(&line)).await.expect(400).json();
        assert!(refused["errors"][0]["message"].as_str().unwrap().contains(part), "{line}: {refused}");
    }
    let marked = json!({"conversations": [turn("human", "Q"), {"from": "gpt", "value": "A", "weight": 0}]});
    let done = import(&server, "format=demonstrations", &[marked]).await.expect(200).json();
    assert_eq!(done["ignored_fields"], json!({"conversations[].weight": 1}));
}

#[tokio::test]
async fn a_system_column_is_never_lost() {
    let server = Server::start().await;
    let file = [
        json!({"system": "Be short.", "prompt": [message("user", "Hi")], "completion": "Hello"}),
        json!({"system": "Be short.", "prompt": "Raw", "completion": "Text"}),
    ];
    let done = import(&server, "format=demonstrations", &file).await;
    assert_eq!(done.expect(200).json()["imported"], 2);
    assert!(exported(&server, "demonstrations").await.iter().all(|l| l["prompt"][0] == message("system", "Be short.")));
    let done = import(&server, "format=prompts", &[json!({"system": "S", "messages": [message("user", "P")]})]).await;
    assert_eq!(done.expect(200).json()["imported"], 1);
    let prompts = server.get("/v1/prompts").await.expect(200).json();
    let with = |p: &&Value| p["messages"] == json!([message("system", "S"), message("user", "P")]);
    assert!(prompts["data"].as_array().unwrap().iter().any(|p| with(&p)), "{prompts}");
}

#[tokio::test]
async fn the_bounds_of_an_import_are_settings() {
    let prompts: Vec<Value> = (0..5).map(|i| json!({"prompt": format!("question {i}")})).collect();
    let server = Server::with(|c| c.limits.import_rows = 3, Default::default()).await;
    let refused = import(&server, "format=prompts", &prompts).await.expect(400).json();
    assert_eq!(refused["imported"], 3, "what came before stays: {refused}");
    assert!(refused["stopped"].as_str().unwrap().contains('3'), "{refused}");
    let server = Server::with(|c| c.limits.import_seconds = 0, Default::default()).await;
    let refused = import(&server, "format=prompts", &prompts).await.expect(400).json();
    assert!(refused["stopped"].is_string(), "{refused}");
    // A packed file may not unpack to more than is set, whatever its own size.
    let line = format!("{}\n", json!({"prompt": "x".repeat(4000)}));
    let packed = {
        use std::io::Write;
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(line.repeat(50).as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let server = Server::with(|c| c.limits.import_unpacked_bytes = 100_000, Default::default()).await;
    let refused = server.raw("POST", "/admin/import?format=prompts", "application/x-ndjson", packed.clone()).await;
    assert!(refused.expect(400).json()["stopped"].is_string());
    let server = Server::start().await;
    server.raw("POST", "/admin/import?format=prompts", "application/x-ndjson", packed).await.expect(200);
    assert_eq!(server.services.config.limits.unpacked_bytes(), 4 * (256 << 20), "four times the largest upload");
}

#[tokio::test]
async fn informed_judgments_are_imported_as_such_and_do_not_count() {
    let server = Server::start().await;
    let line = |labeler: &str, knowledge: Option<&str>, first: i64| {
        let completions = json!([{"text": "x", "tier": first}, {"text": "y", "tier": 1 - first}]);
        let mut line = json!({"prompt": [message("user", "q")], "completions": completions, "labeler": labeler});
        if let Some(knowledge) = knowledge {
            line["knowledge"] = json!(knowledge);
        }
        line
    };
    let file = [
        line("ada", Some("blind"), 0),
        line("ada", Some("authors"), 1),
        line("bob", Some("answer"), 1),
        line("cyd", None, 0),
    ];
    let done = import(&server, "format=comparisons", &file).await.expect(200).json();
    assert_eq!((&done["imported"], &done["failed"]), (&json!(4), &json!(0)), "{done}");
    let again = import(&server, "format=comparisons", &file).await.expect(200).json();
    assert_eq!((&again["imported"], &again["skipped"]), (&json!(0), &json!(4)), "{again}");
    // Data sets and other formats take the blind ones.
    let trl = exported(&server, "trl").await;
    assert_eq!(trl.len(), 2, "ada's and cyd's: {trl:?}");
    assert!(trl.iter().all(|l| l["chosen"][0]["content"] == "x"), "{trl:?}");
    let frozen = server.post("/admin/datasets", json!({"filter": {}})).await.expect(201).json();
    assert_eq!(frozen["n_sets"], 2);
    // The export keeps what was known, and another server takes it as it is.
    let out = exported(&server, "comparisons").await;
    let known: Vec<(&str, Option<&str>)> =
        out.iter().map(|l| (l["labeler"].as_str().unwrap(), l["knowledge"].as_str())).collect();
    for wanted in [("ada", None), ("ada", Some("authors")), ("bob", Some("answer")), ("cyd", None)] {
        assert!(known.contains(&wanted), "{wanted:?} is not in {known:?}");
    }
    let other = Server::start().await;
    assert_eq!(import(&other, "format=comparisons", &out).await.expect(200).json()["imported"], 4);
    assert_eq!(exported(&other, "trl").await.len(), 2);
    let wrong = import(&server, "format=comparisons", &[line("dan", Some("some"), 0)]).await.expect(400).json();
    assert!(wrong["errors"][0]["message"].as_str().unwrap().contains("blind, authors, answer"), "{wrong}");
}
