//! What hostile people and accidents do, against the real process: a test for each finding of the security review and
//! for its kind. Memory is the kernel's own figure (peak resident set), and `/health` is asked all the while.
//!
//! `INSTRUCTD_HEALTH_MS` sets how long `/health` may take (2000): a debug build on a busy machine is slower than what is
//! promised for a release.

mod clocks;
mod connections;
mod database;
mod files;
mod identity;
mod lists;
mod loading;
mod long;
mod markdown;
mod memory;
mod promises;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::crash::server::{Place, Server, setting};

/// What one request may take beyond what the server has.
const PROMISED: usize = 64 << 20;

fn healthy() -> Duration {
    Duration::from_millis(setting("INSTRUCTD_HEALTH_MS", 2000))
}

/// A place for a server on SQLite with the tiny model.
fn place(dir: &Path) -> Place {
    Place::new(&format!("sqlite://{}", dir.join("hostile.db").display()), &dir.join("data"))
}

/// How long `/health` may go without any answer, however busy the machine is.
const SILENT: Duration = Duration::from_secs(60);

/// Runs `attack` while `/health` is asked. Returns what it gave and by how many bytes the peak of memory grew; panics
/// when an answer of `/health` takes too long. A wait counts as no longer than the processor time that the server had
/// meanwhile: a server that other processes keep from running does not answer, and is not to blame.
async fn under<T>(server: &Server, name: &str, attack: impl Future<Output = T>) -> (T, usize) {
    server.forget_peak();
    let (before, _) = server.memory();
    let mut slowest = Duration::ZERO;
    let mut attack = std::pin::pin!(attack);
    let asked = server.http.clone();
    let health = format!("{}/health", server.url);
    let done = loop {
        let ask = async {
            let (began, worked) = (Instant::now(), server.processor_time());
            let answer = asked.get(&health).timeout(SILENT).send().await;
            let took = began.elapsed().min(server.processor_time() - worked);
            (answer.is_ok_and(|a| a.status() == 200), took)
        };
        let mut ask = std::pin::pin!(ask);
        let mut done = None;
        // The attack goes on while `/health` is asked, and an answer that is on its way is waited for.
        let (fine, took) = loop {
            tokio::select! {
                answered = &mut ask => break answered,
                out = &mut attack, if done.is_none() => done = Some(out),
            }
        };
        assert!(fine, "{name}: /health did not answer: {}", server.words());
        slowest = slowest.max(took);
        if let Some(out) = done {
            break out;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
            out = &mut attack => break out,
        }
    };
    assert!(slowest <= healthy(), "{name}: /health took {slowest:?}");
    let (_, peak) = server.memory();
    (done, peak.saturating_sub(before))
}

/// A key with these scopes, and its id.
async fn key(server: &Server, scopes: &[&str], more: Value) -> (String, String) {
    let mut body = json!({"name": "k", "scopes": scopes});
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let made = server.call("POST", "/admin/keys", Some(body)).await.expect(201);
    (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}
