//! A long run, not part of the ordinary tests: generated requests over every route, with a ceiling of memory for the
//! whole server and a bound on what `/health` takes at the 99th percentile.
//!
//! `INSTRUCTD_LONG_REQUESTS` (20,000), `INSTRUCTD_LONG_CLIENTS` (8), `INSTRUCTD_LONG_SEED`, `INSTRUCTD_LONG_MIB` (512),
//! `INSTRUCTD_LONG_P99_MS` (100, for a release build):
//!
//! ```sh
//! INSTRUCTD_LONG_REQUESTS=1000000 cargo test --release --test it hostile::long -- --ignored --nocapture
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use instructd::config::LimitsConfig;
use instructd::http::{examples, routes};
use serde_json::{Value, json};

use super::place;
use crate::crash::server::{ADMIN_KEY, Dice, Server, setting};

/// A value of any kind, sometimes a large one.
fn any(dice: &mut Dice, depth: u64) -> Value {
    match dice.roll(if depth > 3 { 9 } else { 12 }) {
        0 => Value::Null,
        1 => json!(dice.roll(2) == 0),
        2 => json!(i64::MIN + dice.roll(3) as i64),
        3 => json!(dice.roll(u64::MAX)),
        4 => json!(dice.roll(300)),
        5 => json!((dice.roll(2000) as f64 - 1000.0) * 1e300),
        6 => json!(""),
        7 => json!(
            ["a", ">", "- ", "\u{0}", "<script>", "\u{202e}", "$x$", "../../x"][dice.roll(8) as usize]
                .repeat(1 << dice.roll(14))
        ),
        8 => json!("builtin"),
        9 => Value::Array((0..dice.roll(20)).map(|_| any(dice, depth + 1)).collect()),
        10 => Value::Array(vec![any(dice, depth + 2); 1 << dice.roll(10)]),
        _ => (0..dice.roll(8)).map(|i| (format!("f{i}"), any(dice, depth + 1))).collect(),
    }
}

/// An ordinary body of the route with some of its fields changed.
fn body(route: &routes::Route, dice: &mut Dice) -> Option<Value> {
    let schema = route.body.as_ref()?;
    let mut body = examples::body(route).unwrap_or_else(|| json!({}));
    let names: Vec<&String> = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
    for _ in 0..dice.roll(4) {
        if names.is_empty() {
            break;
        }
        let name = names[dice.roll(names.len() as u64) as usize];
        body[name.as_str()] = any(dice, 0);
    }
    Some(body)
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share) as usize]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a long run"]
async fn generated_requests_over_every_route() {
    let requests = setting("INSTRUCTD_LONG_REQUESTS", 20_000) as usize;
    let seed = setting("INSTRUCTD_LONG_SEED", 1);
    let ceiling = (setting("INSTRUCTD_LONG_MIB", 512) as usize) << 20;
    let p99 = Duration::from_millis(setting("INSTRUCTD_LONG_P99_MS", 100));
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(Server::start(&place(dir.path())).await);
    let (made, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    // Answers by the first digit of their status, refusals with 429, and requests that were left.
    let answers: Arc<[AtomicU64; 6]> = Arc::default();
    let (refused, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clients = (0..setting("INSTRUCTD_LONG_CLIENTS", 8)).map(|client| {
        let (server, made, failed) = (server.clone(), made.clone(), failed.clone());
        let (answers, refused, left) = (answers.clone(), refused.clone(), left.clone());
        tokio::spawn(async move {
            let mut dice = Dice(seed.wrapping_mul(1000) + client);
            let table = routes::table(&LimitsConfig::default());
            let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
            while made.fetch_add(1, Relaxed) < requests {
                let route = &table[dice.roll(table.len() as u64) as usize];
                let id = ["nope", "..", "%2e%2e%2f", "admin", "%00", "01"][dice.roll(6) as usize];
                let path = route.path.replace("{id}", id).replace("{*path}", id);
                let query = match dice.roll(4) {
                    0 => format!("?limit={}", dice.roll(u64::MAX)),
                    1 => format!("?after={}", "x".repeat(dice.roll(3000) as usize)),
                    2 => "?limit=500".to_owned(),
                    _ => String::new(),
                };
                let mut request = http.request(route.method.clone(), format!("{}{path}{query}", server.url));
                // Revoking, erasing and signing out are meant for others than the one who asks.
                if dice.roll(8) > 0 {
                    request = request.bearer_auth(ADMIN_KEY);
                }
                if let Some(body) = body(route, &mut dice) {
                    request = request.json(&body);
                }
                // Streams and long answers are left after a while.
                let sent = tokio::time::timeout(Duration::from_secs(3), async {
                    let answer = request.send().await?;
                    let status = answer.status().as_u16();
                    answer.bytes().await?;
                    Ok::<_, reqwest::Error>(status)
                });
                let Ok(Ok(status)) = sent.await else {
                    left.fetch_add(1, Relaxed);
                    continue;
                };
                answers[usize::from(status / 100)].fetch_add(1, Relaxed);
                refused.fetch_add(u64::from(status == 429), Relaxed);
                if status >= 500 && status != 503 {
                    eprintln!("{} {path}{query}: {status}", route.method);
                    failed.fetch_add(1, Relaxed);
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let (mut times, mut peak) = (Vec::new(), 0);
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        let began = Instant::now();
        let answer = server.http.get(format!("{}/health", server.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        times.push(began.elapsed());
        peak = peak.max(server.memory().1);
        assert!(peak <= ceiling, "{peak} bytes after {} requests", made.load(Relaxed));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    let (median, slow) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    eprintln!("{requests} requests, peak {:.0} MB, /health median {median:?}, p99 {slow:?}", peak as f64 / 1e6);
    let by_status: Vec<String> = (2..6).map(|i| format!("{i}xx: {}", answers[i].load(Relaxed))).collect();
    let (refused, left) = (refused.load(Relaxed), left.load(Relaxed));
    eprintln!("{}, of these 429: {refused}; left after 3 s: {left}", by_status.join(", "));
    assert!(answers[2].load(Relaxed) * 20 > requests as u64, "few requests were carried out");
    assert_eq!(failed.load(Relaxed), 0, "server errors");
    assert!(slow <= p99, "/health took {slow:?} at the 99th percentile");
}
