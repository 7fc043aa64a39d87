//! Imports over HTTP: nothing is lost on the way in and back, nothing is skipped in silence, and every file of the
//! wrong kind is refused by name.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::io::Write;
use tower::ServiceExt;

use crate::api::client::{Answer, Server, admin};

async fn import(server: &Server, query: &str, body: impl Into<axum::body::Body>) -> Answer {
    server.raw("POST", &format!("/admin/import?{query}"), "application/x-ndjson", body).await
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn ranked(prompt: &str, answers: &[(&str, i64)]) -> Value {
    let completions: Vec<Value> = answers.iter().map(|(text, tier)| json!({"text": text, "tier": tier})).collect();
    json!({"prompt": [message("user", prompt)], "completions": completions})
}

fn lines(all: &[Value]) -> String {
    all.iter().map(|line| format!("{line}\n")).collect()
}

/// Status, the header `x-left-out`, and the body of an export.
async fn export(server: &Server, format: &str) -> (String, String) {
    let (name, value) = admin();
    let request = http::Request::get(format!("/admin/export?format={format}")).header(name, value);
    let response = server.router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let left_out = response.headers()["x-left-out"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (left_out, String::from_utf8_lossy(&body).into_owned())
}

/// Lines of a comparisons file without the ids that each server gives its own prompts.
fn contents(text: &str) -> Vec<Value> {
    let mut all: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for line in &mut all {
        line.as_object_mut().unwrap().remove("prompt_id");
        // Answers that tie stand in the order of their ids, which are another server's own.
        if let Some(completions) = line.get_mut("completions").and_then(Value::as_array_mut) {
            completions.sort_by_key(Value::to_string);
        }
    }
    all.sort_by_key(Value::to_string);
    all
}

#[tokio::test]
async fn three_judgments_of_one_set_round_trip() {
    let first = Server::start().await;
    let (a, b) = ("Rayleigh scattering.", "Because of the sea.");
    let file = lines(&[
        ranked("Why is the sky blue?", &[(a, 0), (b, 1)]),
        ranked("Why is the sky blue?", &[(a, 1), (b, 0)]),
        ranked("Why is the sky blue?", &[(a, 0), (b, 0)]),
    ]);
    let done = import(&first, "format=comparisons", file.clone()).await.expect(200).json();
    assert_eq!((&done["imported"], &done["skipped"]), (&json!(3), &json!(0)), "{done}");
    let again = import(&first, "format=comparisons", file.clone()).await.expect(200).json();
    assert_eq!((&again["imported"], &again["skipped"]), (&json!(0), &json!(3)), "{again}");
    let sets = first.get("/v1/comparison-sets").await.expect(200).json();
    assert_eq!(sets["data"].as_array().unwrap().len(), 1, "one set, three judgments");
    // Two people who agree are two judgments; the file says so by their names.
    let named = |who: &str| {
        let mut line = ranked("Why is the sky blue?", &[(a, 0), (b, 1)]);
        line["labeler"] = json!(who);
        line
    };
    let done = import(&first, "format=comparisons", lines(&[named("ada"), named("bob")])).await.expect(200).json();
    assert_eq!(done["imported"], 2, "{done}");
    let (_, out) = export(&first, "comparisons").await;
    assert_eq!(out.lines().count(), 5);

    let second = Server::start().await;
    let done = import(&second, "format=comparisons", out.clone()).await.expect(200).json();
    assert_eq!(done["imported"], 5, "{done}");
    let (_, back) = export(&second, "comparisons").await;
    assert_eq!(contents(&back), contents(&out), "labelers too");
    // Where it came from and where it went, the file is known.
    for server in [&first, &second] {
        let done = import(server, "format=comparisons", out.clone()).await.expect(200).json();
        assert_eq!((&done["imported"], &done["skipped"], &done["failed"]), (&json!(0), &json!(5), &json!(0)), "{done}");
        let done = import(server, "format=comparisons", file.clone()).await.expect(200).json();
        assert_eq!((&done["imported"], &done["skipped"]), (&json!(0), &json!(3)), "{done}");
    }
    let mut other = named("ada");
    other["completions"][0]["tier"] = json!(5);
    let done = import(&first, "format=comparisons", lines(&[other])).await.expect(400).json();
    assert!(done["errors"][0]["message"].as_str().unwrap().contains("\"ada\" has judged this set already"), "{done}");
}

/// A judgment of a person comes back to the server it was made on as that judgment.
#[tokio::test]
async fn judgments_of_people_are_recognized_when_their_file_returns() {
    let server = Server::start().await;
    let body = json!({"messages": [message("user", "q")], "idempotency_key": "k",
                      "completions": [{"text": "good", "tier": 0}, {"text": "bad", "tier": 1}]});
    server.post("/v1/comparisons", body).await.expect(201);
    let (_, out) = export(&server, "comparisons").await;
    let done = import(&server, "format=comparisons", out.clone()).await.expect(200).json();
    assert_eq!((&done["imported"], &done["skipped"]), (&json!(0), &json!(1)), "{done}");
    assert_eq!(export(&server, "comparisons").await.1, out);
}

#[tokio::test]
async fn known_answers_and_tags_are_applied_to_what_is_known() {
    let server = Server::start().await;
    let line = ranked("2 + 2?", &[("4", 0), ("5", 1)]);
    import(&server, "format=comparisons", lines(std::slice::from_ref(&line))).await.expect(200);
    let gold = import(&server, "format=comparisons&known_answer=gold", lines(std::slice::from_ref(&line)))
        .await
        .expect(200)
        .json();
    assert_eq!((&gold["updated"], &gold["skipped"]), (&json!(1), &json!(0)), "{gold}");
    assert!(gold["warnings"][0]["message"].as_str().unwrap().contains("was a ranking before"), "{gold}");
    let sets = server.get("/admin/sets").await.expect(200).json();
    assert_eq!(sets["data"][0]["kind"], "gold");
    let again = import(&server, "format=comparisons&known_answer=gold", lines(&[line])).await.expect(200).json();
    assert_eq!((&again["updated"], &again["skipped"]), (&json!(0), &json!(1)), "{again}");
    let other = lines(&[ranked("2 + 2?", &[("4", 1), ("5", 0)])]);
    for query in ["format=comparisons&known_answer=gold", "format=comparisons"] {
        let refused = import(&server, query, other.clone()).await.expect(400).json();
        assert!(refused["error"]["message"].as_str().unwrap().contains("known answer"), "{refused}");
    }
    import(&server, "format=prompts&known_answer=gold", "{}").await.expect(400);

    let prompt = |more: Value| {
        let mut line = json!({"prompt": [message("user", "1 + 1?")]});
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        lines(&[line])
    };
    import(&server, "format=prompts", prompt(json!({"tags": ["a"]}))).await.expect(200);
    let done =
        import(&server, "format=prompts", prompt(json!({"tags": ["a", "b"], "answer": "2", "lang": "en"}))).await;
    assert_eq!(done.expect(200).json()["updated"], 1);
    let stored = server.get("/v1/prompts").await.expect(200).json()["data"][0].clone();
    assert_eq!((&stored["tags"], &stored["answer"], &stored["lang"]), (&json!(["a", "b"]), &json!("2"), &json!("en")));
    let done = import(&server, "format=prompts", prompt(json!({"tags": ["b"]}))).await.expect(200).json();
    assert_eq!((&done["updated"], &done["skipped"]), (&json!(0), &json!(1)));

    // The side of a prompt is not moved by a file, and the report says so.
    let side = |split: &str, good: &str| {
        let mut line = ranked("split?", &[(good, 0), ("z", 1)]);
        line["split"] = json!(split);
        lines(&[line])
    };
    import(&server, "format=comparisons", side("train", "x")).await.expect(200);
    let done = import(&server, "format=comparisons", side("heldout", "y")).await.expect(200).json();
    assert!(done["warnings"][0]["message"].as_str().unwrap().contains("`split` is not applied"), "{done}");
}

#[tokio::test]
async fn what_hh_cannot_hold_is_counted() {
    let server = Server::start().await;
    let french = json!({"prompt": [message("system", "Answer in French."), message("user", "Hello")],
                        "completions": [{"text": "Bonjour", "tier": 0}, {"text": "Hello", "tier": 1}]});
    let file = lines(&[
        ranked("Write a two-line play.", &[("Sure.\n\nHuman: To be?\n\nAssistant: Or not.", 0), ("No.", 1)]),
        french,
        ranked("Spaces?", &[("  two", 0), ("none", 1)]),
    ]);
    import(&server, "format=comparisons", file).await.expect(200);
    let (left_out, hh) = export(&server, "hh").await;
    assert_eq!((left_out.as_str(), hh.lines().count()), ("2", 1));
    let other = Server::start().await;
    import(&other, "format=hh", hh).await.expect(200);
    let (left_out, out) = export(&other, "comparisons").await;
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((left_out.as_str(), &line["completions"][0]["text"]), ("0", &json!("  two")));
    assert_eq!(export(&server, "oasst").await.0, "1");
    assert_eq!(export(&server, "parquet").await.0, "0");
}

#[tokio::test]
async fn bad_files_are_reported_whole() {
    let server = Server::start().await;
    let equal = lines(&[
        json!({"prompt": "Q", "chosen": "Same.", "rejected": "Same. "}),
        json!({"chosen": [message("user", "Q"), message("assistant", "A")], "rejected": [message("user", "Q"), message("assistant", "A")]}),
        json!({"chosen": "The sky", "rejected": "The sky is blue"}),
    ]);
    let done = import(&server, "format=trl", equal).await.expect(400).json();
    assert_eq!((&done["failed"], &done["error"]["code"]), (&json!(3), &json!("no_usable_line")), "{done}");
    let text = done["error"]["message"].as_str().unwrap();
    assert!(text.contains("none of 3 lines") && text.contains("line 1: ") && text.contains("line 3: "), "{text}");
    let many = "nothing\n".repeat(150);
    let done = import(&server, "format=trl", many).await.expect(400).json();
    assert_eq!((done["errors"].as_array().unwrap().len(), &done["failed"]), (100, &json!(150)));
    assert!(done["error"]["message"].as_str().unwrap().ends_with("and 130 more"), "{done}");

    let utf16: Vec<u8> = "{\"prompt\": \"q\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let list = json!([{"prompt": "q"}]).to_string();
    for (query, body, code, words) in [
        ("format=prompts", Vec::new(), "empty_file", "nothing to import"),
        ("format=prompts", b"\xef\xbb\xbf\n\r\n".to_vec(), "empty_file", "nothing to import"),
        ("format=prompts", utf16, "unreadable_file", "UTF-16"),
        ("format=prompts", list.into_bytes(), "unreadable_file", "one object a line"),
        ("format=prompts", b"PK\x03\x04zip".to_vec(), "unreadable_file", "ZIP"),
        ("format=prompts", b"PAR1 more".to_vec(), "unreadable_file", "format=parquet"),
        ("format=parquet", b"{\"prompt\": \"q\"}".to_vec(), "unreadable_file", "JSON lines"),
        ("format=parquet", b"PAR1 but cut off".to_vec(), "unreadable_file", "is truncated"),
        (
            "format=comparisons",
            b"{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}".to_vec(),
            "no_usable_line",
            "looks like the format `trl`",
        ),
    ] {
        let done = import(&server, query, body).await.expect(400).json();
        let error = &done["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!("body")), "{done}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    // Fields that nothing reads are named.
    let line = json!({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 9});
    let done = import(&server, "format=trl", lines(&[line])).await.expect(200).json();
    assert_eq!(done["ignored_fields"], json!({"score_chosen": 1}));
    // Windows line ends, byte-order marks and blank lines are nothing special.
    let text = "\u{feff}{\"prompt\": \"a\"}\r\n\r\n\u{feff}\n\u{feff}{\"prompt\": \"b\\u0000\"}\r\n";
    let done = import(&server, "format=prompts", text).await.expect(200).json();
    assert_eq!((&done["imported"], &done["failed"]), (&json!(2), &json!(0)), "{done}");
}

#[tokio::test]
async fn wrapped_and_packed_bodies() {
    let server = Server::start().await;
    let send = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let (name, value) = admin();
        let mut request = http::Request::post("/admin/import?format=prompts").header(name, value);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            server.router.clone().oneshot(request.body(axum::body::Body::from(body)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let line = |text: &str| format!("{}\n", json!({"prompt": text})).into_bytes();
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let form = b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{\"prompt\": \"q\"}\r\n--x--\r\n".to_vec();
    let (status, answer) = send(&[("content-type", "multipart/form-data; boundary=x")], form).await;
    assert_eq!((status, &answer["error"]["param"]), (415, &json!("content-type")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("--data-binary"), "{answer}");
    for (encoding, body, wanted) in [
        ("gzip", gzip(&line("one")), 200),
        ("x-gzip", gzip(&line("two")), 200),
        ("zstd", zstd::stream::encode_all(&line("three")[..], 1).unwrap(), 200),
        ("identity", line("four"), 200),
        ("gzip", line("five"), 400),
        ("br", line("six"), 415),
        ("gzip, br", line("seven"), 415),
    ] {
        let (status, answer) = send(&[("content-encoding", encoding)], body).await;
        assert_eq!(status, wanted, "{encoding}: {answer}");
    }
    // What curl sends by itself, and a packed file as it lies on the disk.
    let form = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(send(&[form], line("eight")).await.0, 200);
    assert_eq!(send(&[], gzip(&line("nine"))).await.1["imported"], 1);
    // A stream that breaks off: what came before it is stored, and the answer says so.
    let mut noise = 1u64;
    let text: Vec<u8> = (0..3000)
        .flat_map(|i| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            line(&format!("{i} {noise:x}"))
        })
        .collect();
    let packed = gzip(&text);
    let (status, answer) = send(&[], packed[..packed.len() / 2].to_vec()).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("unreadable_file")), "{answer}");
    let stored = answer["imported"].as_u64().unwrap();
    assert!(stored > 100 && answer["error"]["message"].as_str().unwrap().contains(&stored.to_string()), "{answer}");
    let (status, answer) = send(&[], packed).await;
    assert_eq!(
        (status, &answer["skipped"], &answer["imported"]),
        (200, &json!(stored), &json!(3000 - stored)),
        "{answer}"
    );
}

/// Demonstrations keep their authors on the way to another server.
#[tokio::test]
async fn demonstrations_come_back_with_their_authors() {
    let first = Server::start().await;
    let line = json!({"prompt": [message("user", "q")], "completion": "an answer", "labeler": "ada"});
    let file = lines(&[line.clone(), line, json!({"prompt": "q2", "completion": "another"})]);
    let done = import(&first, "format=demonstrations", file).await.expect(200).json();
    assert_eq!((&done["imported"], &done["skipped"]), (&json!(2), &json!(1)), "{done}");
    let (_, out) = export(&first, "demonstrations").await;
    let second = Server::start().await;
    import(&second, "format=demonstrations", out.clone()).await.expect(200);
    assert_eq!(contents(&export(&second, "demonstrations").await.1), contents(&out));
    assert!(out.contains("\"labeler\":\"ada\""), "{out}");
    let empty = lines(&[json!({"prompt": "q3", "completion": " "})]);
    import(&first, "format=demonstrations", empty).await.expect(400);
}
