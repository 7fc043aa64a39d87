//! What clients send never forges a line of the log, and neither secrets nor prompts are in it. The log is that of a
//! server process: within this test binary, which lines a subscriber gets depends on what other tests have logged.

use serde_json::{Value, json};

use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::support::eventually::{LONG, eventually};

const HOSTILE: &[&str] = &[
    "x\r\nFORGED level=ERROR",
    "x\nFORGED",
    "x\rFORGED",
    "x\u{1b}[2K\u{1b}[1AFORGED",
    "x\u{85}FORGED",
    "x\u{2028}FORGED",
    "x\u{0}FORGED",
    "%0d%0aFORGED",
    "x\u{8}\u{8}FORGED",
];

/// A server process that logs everything of these targets.
async fn logging(data_dir: &std::path::Path, filter: &str, as_json: bool) -> Server {
    let url = format!("sqlite://{}", data_dir.join("instructd.db").display());
    let place = Place::new(&url, data_dir)
        .with("INSTRUCTD_LOG__FILTER", filter)
        .with("INSTRUCTD_LOG__JSON", as_json)
        .with("INSTRUCTD_JOBS__ENABLED", false);
    Server::start(&place).await
}

/// A request with these headers; the answer does not matter.
async fn call(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = server.http.request(method, format!("{}{path}", server.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().await.unwrap().bytes().await.unwrap();
}

/// The log once it says this, which the last request makes it say.
async fn log_with(server: &Server, last: &str) -> String {
    eventually(LONG, last, async || Some(server.words()).filter(|log| log.contains(last))).await
}

/// With every log line there is, in text and in JSON.
#[tokio::test]
async fn hostile_input_forges_no_line() {
    for as_json in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let server = logging(dir.path(), "trace,sqlx=off,hyper=off,h2=off", as_json).await;
        let admin = format!("Bearer {ADMIN_KEY}");
        let by_admin = [("authorization", admin.as_str())];
        for hostile in HOSTILE {
            let secret = format!("SECRET {hostile}");
            let open = async |path: &str, body: Value| call(&server, "POST", path, &[], Some(body)).await;
            let post = async |path: &str, body: Value| call(&server, "POST", path, &by_admin, Some(body)).await;
            open("/v1/completions", json!({"prompt": secret, "max_tokens": 2})).await;
            open("/v1/completions", json!({"prompt": "x", "model": hostile})).await;
            open("/session", json!({"key": hostile})).await;
            open("/session", json!({"invite": "i", "name": hostile})).await;
            let prompt = json!({"messages": [{"role": hostile, "content": secret}], "tags": [hostile]});
            post("/v1/prompts", prompt).await;
            post("/admin/jobs", json!({"kind": hostile, "args": {(*hostile).to_owned(): hostile}})).await;
            post("/admin/labelers", json!({"name": hostile})).await;
            let encoded: String = hostile.bytes().map(|b| format!("%{b:02x}")).collect();
            call(&server, "GET", &format!("/admin/models/{encoded}"), &by_admin, None).await;
            post(&format!("/admin/models/{encoded}/promote"), json!({})).await;
            call(&server, "GET", &format!("/static/{encoded}"), &[], None).await;
            let import = format!("/admin/import?format=trl&name={encoded}");
            call(&server, "POST", &import, &by_admin, Some(json!(hostile))).await;
            for header in ["x-request-id", "traceparent", "user-agent", "origin", "cookie", "sec-fetch-site"] {
                // What hyper lets through as a header's value.
                let value: String =
                    hostile.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0' | '\u{8}' | '\u{1b}')).collect();
                if reqwest::header::HeaderValue::from_str(&value).is_ok() {
                    call(&server, "GET", "/session", &[(header, &value)], None).await;
                }
            }
        }
        call(&server, "GET", "/health", &[("x-request-id", "the-last-one")], None).await;
        let log = log_with(&server, "the-last-one").await;
        assert!(log.contains("answered"), "the log was written: {log}");
        assert!(!log.contains(ADMIN_KEY) && !log.contains("SECRET"), "no secrets, no prompts");
        // Lines as a terminal or a collector sees them: ended by \n, and whole only if the last one is.
        let (whole, _) = log.rsplit_once('\n').unwrap();
        for line in whole.split('\n') {
            assert!(!line.trim_start().starts_with("FORGED"), "{line:?}");
            assert!(!line.contains(['\r', '\u{1b}', '\0', '\u{8}']), "{line:?}");
            if as_json {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
            }
        }
    }
}

/// The trace that a request belongs to is on its lines; what is no `traceparent` is not.
#[tokio::test]
async fn the_trace_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = logging(dir.path(), "debug,sqlx=off,hyper=off", false).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    call(&server, "GET", "/health", &[("traceparent", &given), ("x-request-id", "r-17")], None).await;
    let log = log_with(&server, "r-17").await;
    let line = log.lines().find(|l| l.contains("answered") && l.contains("r-17")).unwrap();
    assert!(line.contains(trace), "{line}");
    let bad = ["", "00", "00-xyz-1-01", "zz-4bf92f3577b34da6a3ce929d0e0e4736-1-1", "00-short-00f067aa0ba902b7-01"];
    for (number, bad) in bad.into_iter().enumerate() {
        let id = format!("bad-{number}-end");
        call(&server, "GET", "/health", &[("traceparent", bad), ("x-request-id", &id)], None).await;
        let log = log_with(&server, &id).await;
        for line in log.lines().filter(|line| line.contains(&id)) {
            assert!(!line.contains(trace) && !line.contains("short"), "{line}");
        }
    }
}
