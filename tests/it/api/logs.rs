//! What clients send never forges a line of the log, and neither secrets nor prompts are in it.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::client::{ADMIN_KEY, Server};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

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

/// With every log line there is, in text and in JSON.
#[tokio::test]
async fn hostile_input_forges_no_line() {
    for as_json in [false, true] {
        let lines = Lines::default();
        let builder = tracing_subscriber::fmt()
            .with_env_filter("trace,sqlx=off,hyper=off,h2=off")
            .with_ansi(false)
            .with_writer(lines.clone());
        let _guard = if as_json {
            tracing::subscriber::set_default(builder.json().finish())
        } else {
            tracing::subscriber::set_default(builder.finish())
        };
        let server = Server::start().await;
        for hostile in HOSTILE {
            let secret = format!("SECRET {hostile}");
            server.open_post("/v1/completions", json!({"prompt": secret, "max_tokens": 2})).await;
            server.open_post("/v1/completions", json!({"prompt": "x", "model": hostile})).await;
            server.open_post("/session", json!({"key": hostile})).await;
            server.open_post("/session", json!({"invite": "i", "name": hostile})).await;
            let prompt = json!({"messages": [{"role": hostile, "content": secret}], "tags": [hostile]});
            server.post("/v1/prompts", prompt).await;
            server.post("/admin/jobs", json!({"kind": hostile, "args": {hostile.to_owned(): hostile}})).await;
            server.post("/admin/labelers", json!({"name": hostile})).await;
            let encoded: String = hostile.bytes().map(|b| format!("%{b:02x}")).collect();
            server.get(&format!("/admin/models/{encoded}")).await;
            server.post(&format!("/admin/models/{encoded}/promote"), json!({})).await;
            server.get(&format!("/static/{encoded}")).await;
            server
                .raw("POST", &format!("/admin/import?format=trl&name={encoded}"), "application/x-ndjson", *hostile)
                .await;
            for header in ["x-request-id", "traceparent", "user-agent", "origin", "cookie", "sec-fetch-site"] {
                // What hyper lets through as a header's value.
                let value: String =
                    hostile.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0' | '\u{8}' | '\u{1b}')).collect();
                if http::HeaderValue::from_str(&value).is_ok() {
                    server.call("GET", "/session", &[(header, &value)], None).await;
                }
            }
        }
        let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("answered"), "the log was written: {log}");
        assert!(!log.contains(ADMIN_KEY) && !log.contains("SECRET"), "no secrets, no prompts");
        for line in log.lines() {
            assert!(!line.trim_start().starts_with("FORGED"), "{line:?}");
            assert!(!line.contains(['\r', '\u{1b}', '\0', '\u{8}']), "{line:?}");
            if as_json {
                serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
            }
        }
    }
}

/// The trace that a request belongs to is on its lines; what is no `traceparent` is not.
#[tokio::test]
async fn the_trace_is_named() {
    let lines = Lines::default();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter("debug,sqlx=off").with_ansi(false).with_writer(lines.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let server = Server::start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    server.call("GET", "/health", &[("traceparent", &given), ("x-request-id", "r-17")], None).await.expect(200);
    let log = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line = log().lines().find(|l| l.contains("answered")).unwrap().to_owned();
    assert!(line.contains(trace) && line.contains("r-17"), "{line}");
    lines.0.lock().unwrap().clear();
    for bad in ["", "00", "00-xyz-1-01", "zz-4bf92f3577b34da6a3ce929d0e0e4736-1-1", "00-short-00f067aa0ba902b7-01"] {
        server.call("GET", "/health", &[("traceparent", bad)], None).await.expect(200);
    }
    assert!(!log().contains(trace) && !log().contains("short"));
}
