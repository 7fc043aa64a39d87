//! Every format in and out of the server, dataset versions, and feedback events as data.

use instructd::data::{self, Format, Record};
use serde_json::{Value, json};

use crate::api::client::{Answer, Server};
use crate::support::fixture;

async fn import(server: &Server, format: &str, body: impl Into<axum::body::Body>) -> Answer {
    server.raw("POST", &format!("/admin/import?format={format}&name=f"), "application/octet-stream", body).await
}

/// (prompt, better, worse) of every exported pair, sorted.
async fn pairs(server: &Server) -> Vec<String> {
    let text = server.get("/admin/export?format=trl").await.expect(200).text;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn export_bytes(server: &Server, format: &str) -> Vec<u8> {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let (name, value) = crate::api::client::admin();
    let request = http::Request::get(format!("/admin/export?format={format}")).header(name, value);
    let response = server.router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

#[tokio::test]
async fn every_format_survives_export_and_import() {
    let first = Server::start().await;
    // Two rankings of three and one pair, in two languages.
    let lines = [
        json!({"prompt": [{"role": "user", "content": "one"}],
               "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}, {"text": "c", "tier": 1}]}),
        json!({"prompt": [{"role": "user", "content": "二"}, {"role": "assistant", "content": "嗯"}, {"role": "user", "content": "再"}],
               "completions": [{"text": "d", "tier": 2}, {"text": "e", "tier": 0}, {"text": "f", "tier": 1}]}),
    ];
    let body = lines.map(|l| l.to_string()).join("\n");
    assert_eq!(import(&first, "comparisons", body).await.expect(200).json()["imported"], 2);
    let wanted = pairs(&first).await;
    assert_eq!(wanted.len(), 5);
    for format in ["comparisons", "trl", "hh", "oasst", "parquet"] {
        let file = export_bytes(&first, format).await;
        let second = Server::start().await;
        let done = import(&second, format, file.clone()).await.expect(200).json();
        assert_eq!((&done["failed"], &done["skipped"]), (&json!(0), &json!(0)), "{format}: {done}");
        assert_eq!(pairs(&second).await, wanted, "{format}");
        // The same file again changes nothing.
        let again = import(&second, format, file).await.expect(200).json();
        assert_eq!(again["imported"], 0, "{format}");
        assert_eq!(pairs(&second).await, wanted, "{format}");
    }
    import(&first, "parquet", "no parquet").await.expect(400);
}

#[tokio::test]
async fn real_files_of_other_programs_are_imported() {
    let server = Server::start().await;
    let trees = std::fs::read(fixture("formats").join("oasst-trees.jsonl")).unwrap();
    assert_eq!(import(&server, "oasst", trees).await.expect(200).json()["imported"], 2);
    let rows = std::fs::read(fixture("formats").join("preferences.parquet")).unwrap();
    let done = import(&server, "parquet", rows).await.expect(200).json();
    assert_eq!((&done["imported"], &done["failed"]), (&json!(3), &json!(0)), "{done}");
    let heldout = server.get("/admin/export?format=comparisons&split=heldout").await.expect(200).text;
    assert!(heldout.contains("再加一？"), "the file's split is kept");
    // Rankings as known answers: nobody's judgment.
    let gold = json!({"prompt": [{"role": "user", "content": "gold"}],
                      "completions": [{"text": "right", "tier": 0}, {"text": "wrong", "tier": 1}]});
    let path = "/admin/import?format=comparisons&known_answer=calibration";
    server.raw("POST", path, "application/x-ndjson", gold.to_string()).await.expect(200);
    let turn = server.get("/v1/label/next").await.expect(200).json();
    assert_eq!((&turn["kind"], &turn["prompt"]["messages"][0]["content"]), (&json!("calibration"), &json!("gold")));
    let path = "/admin/import?format=comparisons&known_answer=normal";
    server.raw("POST", path, "application/x-ndjson", "{}").await.expect(400);
}

#[tokio::test]
async fn dataset_versions_are_exact() {
    let server = Server::start().await;
    server.post("/admin/datasets", json!({"name": "empty"})).await.expect(409);
    let ranking = |question: &str| {
        json!({"messages": [{"role": "user", "content": question}], "idempotency_key": question,
               "completions": [{"text": "good", "tier": 0}, {"text": "bad", "tier": 1}, {"text": "worse", "tier": 2}]})
    };
    server.post("/v1/comparisons", ranking("one")).await.expect(201);
    let made = server.post("/admin/datasets", json!({"name": "v1"})).await.expect(201).json();
    assert_eq!((&made["n_sets"], &made["n_pairs"]), (&json!(1), &json!(3)));
    server.post("/admin/datasets", json!({"name": "v1"})).await.expect(409);
    server.post("/admin/datasets", json!({"name": "V 1"})).await.expect(400);
    // What comes later does not change it.
    server.post("/v1/comparisons", ranking("two")).await.expect(201);
    let export = server.get("/admin/export?format=comparisons&dataset=v1").await.expect(200).text;
    assert_eq!(export.lines().count(), 1);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(export.as_bytes());
    assert_eq!(made["sha256"], json!(hex::encode(digest)), "the hash is of the exported lines");
    assert_eq!(server.get("/admin/export?format=trl&dataset=v1").await.expect(200).text.lines().count(), 3);
    let by_id = server.get(&format!("/admin/datasets/{}", made["id"].as_str().unwrap())).await.expect(200).json();
    assert_eq!(by_id, made);
    assert_eq!(server.get("/admin/datasets").await.expect(200).json()["data"].as_array().unwrap().len(), 1);
    let filtered = json!({"filter": {"split": "heldout", "colour": "red"}});
    server.post("/admin/datasets", filtered).await.expect(400);
    server.get("/admin/export?format=trl&dataset=none").await.expect(404);
    server.get("/admin/export?format=trl&dataset=v1&split=train").await.expect(400);
    server.get("/admin/export?format=demonstrations&dataset=v1").await.expect(400);

    // Erased words make the version say so instead of passing for what it was.
    let key = server.post("/admin/keys", json!({"name": "app", "scopes": ["feedback"]})).await.expect(201).json();
    let bearer = format!("Bearer {}", key["key"].as_str().unwrap());
    server.call("POST", "/v1/comparisons", &[("authorization", &bearer)], Some(ranking("three"))).await.expect(201);
    server.post("/admin/datasets", json!({"name": "v2"})).await.expect(201);
    let path = format!("/admin/labelers/{}/erase", key["labeler_id"].as_str().unwrap());
    server.post(&path, json!({"judgments": "anonymise"})).await.expect(200);
    server.get("/admin/export?format=comparisons&dataset=v2").await.expect(200);
    server.post(&path, json!({"judgments": "remove"})).await.expect(200);
    server.get("/admin/export?format=comparisons&dataset=v2").await.expect(409);
    server.get("/admin/export?format=comparisons&dataset=v1").await.expect(200);
}

#[tokio::test]
async fn feedback_events_are_data_when_asked_for() {
    let server = Server::with(|c| c.privacy.learn_from_requests = true, Default::default()).await;
    let chat = json!({"model": "base", "n": 2, "max_tokens": 30, "messages": [{"role": "user", "content": "q"}]});
    server.post("/v1/chat/completions", chat).await.expect(200);
    let prompts = server.get("/v1/prompts").await.expect(200).json();
    let prompt: instructd::domain::PromptId = prompts["data"][0]["id"].as_str().unwrap().into();
    let written = server.services.store.completions().list(&prompt).await.unwrap();
    for (i, kind, value) in [(0, "thumb", json!("up")), (1, "thumb", json!("down")), (1, "edit", json!("mended"))] {
        let body = json!({"completion_id": written[i].id, "kind": kind, "value": value});
        server.post("/v1/feedback", body).await.expect(201);
    }
    assert_eq!(server.get("/admin/export?format=comparisons").await.expect(200).text, "");
    let export = server.get("/admin/export?format=comparisons&feedback=true").await.expect(200).text;
    let found: Vec<Record> =
        data::import(Format::Comparisons, std::io::Cursor::new(export)).map(Result::unwrap).collect();
    let best = |r: &Record| match r {
        Record::Comparison(c) => c.completions.iter().find(|c| c.tier == 0).unwrap().text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(found.iter().map(best).collect::<Vec<_>>(), ["mended".to_owned(), written[0].text.clone()]);
    let body = json!({"filter": {"feedback": true}});
    let made: Value = server.post("/admin/datasets", body).await.expect(201).json();
    assert_eq!((&made["n_sets"], &made["filter"]["filter"]["feedback"]), (&json!(2), &json!(true)));
    let path = format!("/admin/export?format=hh&dataset={}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.expect(200).text.lines().count(), 2);
}
