//! Files and batches: OpenAI's form, one owner's alone, behind other requests, and whole after a restart.

use std::sync::Arc;
use std::time::Duration;

use instructd::http::batches::Handlers;
use instructd::service::random::secret_hash;
use instructd::service::{Random, Services, batch_runner, system_clock};
use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server, admin, version};
use crate::support::eventually::{LONG, eventually};
use crate::support::mock::{MockGenerator, MockOptions};

const BOUNDARY: &str = "xxBOUNDARYxx";

fn form(parts: &[(&str, Option<&str>, &str)]) -> String {
    let mut body = String::new();
    for (name, file, text) in parts {
        let file = file.map(|f| format!("; filename=\"{f}\"")).unwrap_or_default();
        body += &format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{text}\r\n");
    }
    body + &format!("--{BOUNDARY}--\r\n")
}

async fn post_form(server: &Server, key: &str, parts: &[(&str, Option<&str>, &str)]) -> Answer {
    let request = http::Request::post("/v1/files")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    server.send(request.body(axum::body::Body::from(form(parts))).unwrap()).await
}

async fn upload(server: &Server, key: &str, content: &str) -> String {
    let made = post_form(server, key, &[("purpose", None, "batch"), ("file", Some("in.jsonl"), content)]).await;
    made.expect(200).json()["id"].as_str().unwrap().to_owned()
}

fn line(id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

async fn create(server: &Server, key: &str, file: &str, endpoint: &str) -> Answer {
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {"a": "b"}});
    server.call("POST", "/v1/batches", &[("authorization", &format!("Bearer {key}"))], Some(body)).await
}

async fn ended(server: &Server, key: &str, id: &str) -> Value {
    let header = format!("Bearer {key}");
    eventually(LONG, "the end of the batch", async || {
        let batch = server.call("GET", &format!("/v1/batches/{id}"), &[("authorization", &header)], None).await;
        let batch = batch.expect(200).json();
        let over = ["completed", "failed", "expired", "cancelled"].iter().any(|s| batch["status"] == *s);
        over.then_some(batch)
    })
    .await
}

async fn lines(server: &Server, key: &str, file: &Value) -> Vec<Value> {
    let path = format!("/v1/files/{}/content", file.as_str().unwrap());
    let answer = server.call("GET", &path, &[("authorization", &format!("Bearer {key}"))], None).await.expect(200);
    assert_eq!(answer.headers["content-type"], "application/jsonl");
    answer.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn follow(server: &Server) -> tokio::task::JoinHandle<()> {
    let handlers = Handlers(instructd::http::state(server.services.clone()));
    tokio::spawn(batch_runner::follow(server.services.clone(), Arc::new(handlers)))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_file_are_answered() {
    let server = Server::start().await;
    let running = follow(&server);
    let key = server.key(&["inference"], None).await;
    let chat = "/v1/chat/completions";
    let ask =
        |text: &str, seed: u64| json!({"messages": [{"role": "user", "content": text}], "max_tokens": 4, "seed": seed});
    let mut content: String = (0..9).map(|i| line(&format!("n{i}"), chat, &ask(&format!("q{i}"), i))).collect();
    content += "\n";
    content += &line("wrong", chat, &json!({"messages": [], "max_tokens": 4}));
    content += &line("strange", chat, &json!({"messages": [{"role": "user", "content": "x"}], "no_such_field": 1}));
    let file = upload(&server, &key, &content).await;
    let made = create(&server, &key, &file, chat).await.expect(200).json();
    assert_eq!((&made["object"], &made["metadata"]), (&json!("batch"), &json!({"a": "b"})));
    let batch = ended(&server, &key, made["id"].as_str().unwrap()).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 11, "completed": 9, "failed": 2}));
    let answers = lines(&server, &key, &batch["output_file_id"]).await;
    assert_eq!(answers.len(), 9);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer["custom_id"], format!("n{i}"), "in the order of the file");
        let own = server.open_post(chat, ask(&format!("q{i}"), i as u64)).await.expect(200).json();
        let body = &answer["response"]["body"];
        assert_eq!(body["choices"][0]["message"], own["choices"][0]["message"], "as if it had been asked alone");
        assert_eq!((&answer["response"]["status_code"], &answer["error"]), (&json!(200), &Value::Null));
    }
    let errors = lines(&server, &key, &batch["error_file_id"]).await;
    let param = |i: usize| errors[i]["response"]["body"]["error"]["param"].clone();
    assert_eq!((errors.len(), param(0), param(1)), (2, json!("messages"), json!("no_such_field")));
    // Every other endpoint, in one batch each.
    for (endpoint, body, told) in [
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 3}), "text_completion"),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 16}), "response"),
        ("/v1/embeddings", json!({"input": "x"}), "list"),
    ] {
        let file = upload(&server, &key, &line("a", endpoint, &body)).await;
        let made = create(&server, &key, &file, endpoint).await.expect(200).json();
        let batch = ended(&server, &key, made["id"].as_str().unwrap()).await;
        if endpoint == "/v1/embeddings" {
            // This server has no encoder, which the answer says.
            let errors = lines(&server, &key, &batch["error_file_id"]).await;
            assert_ne!(errors[0]["response"]["status_code"], 200, "{errors:?}");
            continue;
        }
        let answers = lines(&server, &key, &batch["output_file_id"]).await;
        assert_eq!(answers[0]["response"]["body"]["object"], told);
    }
    server.services.shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_batches_are_their_owners() {
    let server = Server::with(
        |c| {
            c.limits.file_bytes = 4000;
            c.batches.key_bytes = 6000;
        },
        MockOptions::default(),
    )
    .await;
    let (one, two) = (server.key(&["inference"], None).await, server.key(&["inference"], None).await);
    let call = async |key: &str, method: &str, path: &str| {
        server.call(method, path, &[("authorization", &format!("Bearer {key}"))], None).await
    };
    let content = line("a", "/v1/completions", &json!({"prompt": "x"}));
    let file = upload(&server, &one, &content).await;
    assert_eq!(call(&one, "GET", &format!("/v1/files/{file}/content")).await.expect(200).text, content);
    let listed = call(&one, "GET", "/v1/files?purpose=batch").await.expect(200).json();
    assert_eq!((&listed["data"][0]["id"], &listed["has_more"]), (&json!(file), &json!(false)));
    let made = create(&server, &one, &file, "/v1/completions").await.expect(200).json();
    let batch = made["id"].as_str().unwrap();
    for path in [format!("/v1/files/{file}"), format!("/v1/files/{file}/content"), format!("/v1/batches/{batch}")] {
        call(&one, "GET", &path).await.expect(200);
        call(&two, "GET", &path).await.expect(404);
        call("sk-wrong", "GET", &path).await.expect(401);
        server.call("GET", &path, &[], None).await.expect(401);
    }
    assert_eq!(call(&two, "GET", "/v1/files").await.expect(200).json()["data"], json!([]));
    assert_eq!(call(&two, "GET", "/v1/batches").await.expect(200).json()["data"], json!([]));
    call(&two, "DELETE", &format!("/v1/files/{file}")).await.expect(404);
    call(&two, "POST", &format!("/v1/batches/{batch}/cancel")).await.expect(404);
    assert_eq!(
        create(&server, &two, &file, "/v1/completions").await.expect(404).param().as_deref(),
        Some("input_file_id")
    );
    call(&one, "DELETE", &format!("/v1/files/{file}")).await.expect(409);
    let cancelled = call(&one, "POST", &format!("/v1/batches/{batch}/cancel")).await.expect(200).json();
    assert_eq!((&cancelled["status"], cancelled["cancelled_at"].is_i64()), (&json!("cancelled"), true));
    call(&one, "POST", &format!("/v1/batches/{batch}/cancel")).await.expect(409);
    call(&one, "DELETE", &format!("/v1/files/{file}")).await.expect(200);
    // What cannot be used is refused by the field.
    for (parts, param) in [
        (vec![("file", Some("f"), "x")], "purpose"),
        (vec![("purpose", None, "fine-tune"), ("file", Some("f"), "x")], "purpose"),
        (vec![("purpose", None, "batch")], "file"),
        (vec![("purpose", None, "batch"), ("file", Some("f"), " ")], "file"),
        (vec![("purpose", None, "batch"), ("more", None, "x")], "more"),
        (vec![("purpose", None, "batch"), ("purpose", None, "batch")], "purpose"),
    ] {
        let refused = post_form(&server, &one, &parts).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{}", refused.text);
    }
    let much = "x".repeat(30_000);
    post_form(&server, &one, &[("purpose", None, "batch"), ("file", Some("f"), &much)]).await.expect(413);
    // Several files within the bound of one file, together over the bound of a key.
    upload(&server, &one, &"x".repeat(3500)).await;
    let full = post_form(&server, &one, &[("purpose", None, "batch"), ("file", Some("f"), &"x".repeat(3500))]).await;
    assert_eq!(full.expect(409).json()["error"]["code"], "conflict");
    upload(&server, &two, &"x".repeat(3500)).await;
    let bad = upload(&server, &two, "nonsense\n").await;
    let failed = create(&server, &two, &bad, "/v1/completions").await.expect(200).json();
    assert_eq!((&failed["status"], &failed["errors"]["data"][0]["line"]), (&json!("failed"), &json!(1)));
    for (body, param) in [
        (json!({"input_file_id": bad, "endpoint": "/v1/models", "completion_window": "24h"}), "endpoint"),
        (json!({"input_file_id": bad, "endpoint": "/v1/completions", "completion_window": "1h"}), "completion_window"),
        (
            json!({"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"}),
            "input_file_id",
        ),
        (
            json!({"input_file_id": bad, "endpoint": "/v1/completions", "completion_window": "24h", "metadata": {"a": 1}}),
            "metadata.a",
        ),
    ] {
        let header = format!("Bearer {two}");
        let refused = server.call("POST", "/v1/batches", &[("authorization", &header)], Some(body)).await;
        assert_eq!(refused.param().as_deref(), Some(param), "{}", refused.text);
    }
}

/// A second server over the database of the first.
fn another(server: &Server, delay: u64) -> Server {
    let services = Services::new(
        server.services.config.clone(),
        server.services.store.clone(),
        system_clock(),
        Random::from_seed(8),
        secret_hash(ADMIN_KEY),
        instructd::train::job_kinds(),
    );
    let mut base = version("base", instructd::domain::ModelKind::Policy, None);
    base.id = server.services.engine().unwrap().active().unwrap().version.id.clone();
    let options = MockOptions { delay_per_token: Duration::from_millis(delay), ..MockOptions::default() };
    services.set_engine(Arc::new(MockGenerator::new(base, options)));
    Server::of(Arc::new(services), tempfile::tempdir().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_answers_no_line_twice() {
    let first =
        Server::with(|_| {}, MockOptions { delay_per_token: Duration::from_millis(3), ..MockOptions::default() }).await;
    let running = follow(&first);
    let key = first.key(&["inference"], None).await;
    let content: String =
        (0..60).map(|i| line(&format!("n{i}"), "/v1/completions", &json!({"prompt": "x", "max_tokens": 8}))).collect();
    let file = upload(&first, &key, &content).await;
    let made = create(&first, &key, &file, "/v1/completions").await.expect(200).json();
    let id = made["id"].as_str().unwrap();
    let store = first.services.store.clone();
    eventually(LONG, "some answers", async || {
        store.batches().answered_lines(id).await.ok().filter(|lines| lines.len() > 5)
    })
    .await;
    first.services.shutdown.cancel();
    running.await.unwrap();
    let before = store.batches().results(id, false, 0, usize::MAX).await.unwrap();
    assert!(before.len() < 60, "the test is too slow to interrupt: {}", before.len());
    let second = another(&first, 0);
    let running = follow(&second);
    let batch = ended(&second, &key, id).await;
    assert_eq!(batch["request_counts"], json!({"total": 60, "completed": 60, "failed": 0}));
    let after = store.batches().results(id, false, 0, usize::MAX).await.unwrap();
    assert_eq!(after.len(), 60);
    for (line, text) in &before {
        assert!(after.iter().any(|(l, t)| l == line && t == text), "line {line} was answered again");
    }
    second.services.shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_ends_when_its_key_is_revoked_it_expires_or_is_cancelled() {
    let slow = MockOptions { delay_per_token: Duration::from_millis(20), ..MockOptions::default() };
    let server = Server::with(|_| {}, slow).await;
    let running = follow(&server);
    let content: String = (0..500)
        .map(|i| line(&format!("n{i}"), "/v1/completions", &json!({"prompt": "x", "max_tokens": 16})))
        .collect();
    let begin = async |key: &str| {
        let file = upload(&server, key, &content).await;
        let made = create(&server, key, &file, "/v1/completions").await.expect(200).json();
        let id = made["id"].as_str().unwrap().to_owned();
        let store = server.services.store.clone();
        eventually(LONG, "an answer", async || {
            store.batches().answered_lines(&id).await.ok().filter(|l| !l.is_empty())
        })
        .await;
        id
    };
    let key = server.key(&["inference"], None).await;
    let id = begin(&key).await;
    let path = format!("/v1/batches/{id}/cancel");
    server.call("POST", &path, &[("authorization", &format!("Bearer {key}"))], None).await.expect(200);
    let batch = ended(&server, &key, &id).await;
    assert_eq!((&batch["status"], batch["output_file_id"].is_string()), (&json!("cancelled"), true), "{batch}");
    // A revoked key's batch does not go on.
    let made = server.post("/admin/keys", json!({"name": "k", "scopes": ["inference"]})).await.expect(201).json();
    let (key, key_id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let id = begin(key).await;
    server.call("DELETE", &format!("/admin/keys/{key_id}"), &[admin()], None).await.expect(204);
    let store = &server.services.store;
    let ended = eventually(LONG, "the end", async || {
        let batch = store.batches().get(&id, key_id).await.unwrap();
        batch.state.is_over().then_some(batch)
    })
    .await;
    assert_eq!((ended.state.as_str(), ended.faults[0].code.as_str()), ("failed", "access_ended"));
    server.services.shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_batch_are_charged_and_waited_for() {
    let server = Server::start().await;
    let running = follow(&server);
    let made = json!({"name": "k", "scopes": ["inference"], "daily_tokens": 5});
    let made = server.post("/admin/keys", made).await.expect(201).json();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let content: String =
        (0..12).map(|i| line(&format!("n{i}"), "/v1/completions", &json!({"prompt": "x", "max_tokens": 8}))).collect();
    let file = upload(&server, key, &content).await;
    let batch = create(&server, key, &file, "/v1/completions").await.expect(200).json();
    let day = server.services.now().div_euclid(24 * 3_600_000_000);
    let store = server.services.store.clone();
    eventually(LONG, "a charge", async || {
        Some(store.api_keys().tokens(&id.into(), day).await.unwrap()).filter(|used| *used >= 5)
    })
    .await;
    // Those that were under way together may pass the limit; then nothing is drawn, and the batch is not over.
    let batch_id = batch["id"].as_str().unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answered = store.batches().answered_lines(batch_id).await.unwrap().len();
        assert!(answered < 12, "{answered}");
    }
    let now = store.batches().get(batch_id, id).await.unwrap();
    assert!(!now.state.is_over());
    server.services.shutdown.cancel();
    running.await.unwrap();
}
