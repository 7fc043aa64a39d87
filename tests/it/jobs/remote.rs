//! Rewards by HTTP: the real binary asks a service that an administrator allowed, and no other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::loop_closes::world::World;

/// Answers every request with what `answer` makes of its number, its head and its body: a status and a body.
pub fn service(answer: impl Fn(usize, &str, &Value) -> (u16, String) + Send + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut line, mut length) = (String::new(), String::new(), 0);
            while stream.read_line(&mut line).unwrap() > 0 && line.trim() != "" {
                head.push_str(&line);
                let lower = line.to_lowercase();
                if let Some(n) = lower.strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let request: Value = serde_json::from_slice(&body).unwrap();
            let (status, text) = answer(seen.fetch_add(1, Ordering::SeqCst), &head, &request);
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
            let _ = stream.get_mut().write_all((head + &text).as_bytes());
        }
    });
    (host, count)
}

fn train(world: &World, url: &str, hosts: &[&str]) -> (bool, String) {
    let args = json!({
        "model": World::model(), "output_dir": world.path("out"), "prompts": world.prompts(8), "device": "cpu",
        "reward": {"kind": "sum", "terms": [{"weight": 2.0, "reward": {"kind": "http", "url": url, "batch": 3}}]},
        "rollout_batch_size": 4, "response_length": 4, "iterations": 2, "max_length": 64, "sample_prompts": 0,
        "log_dir": world.path("logs"),
    });
    let file = world.path("args.json");
    std::fs::write(&file, args.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_instructd"));
    command.args(["train", "reinforce", "--args", &file]).stdin(Stdio::null());
    command.args(hosts.iter().flat_map(|host| ["--reward-host", *host]));
    let out = command.output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn an_allowed_service_scores_in_batches_and_passing_failures_are_tried_again() {
    let world = World::new();
    let (host, count) = service(|n, _, request| {
        // The first request meets a service that is still starting.
        if n == 0 {
            return (503, String::new());
        }
        let items = request["items"].as_array().unwrap();
        assert!(items.len() <= 3 && items.iter().all(|i| i["prompt"].is_string() && i["completion"].is_string()));
        (200, json!({"scores": items.iter().map(|_| 0.25).collect::<Vec<_>>()}).to_string())
    });
    let (ok, said) = train(&world, &format!("http://{host}/score"), &[&host]);
    assert!(ok, "{said}");
    let count = count.load(Ordering::SeqCst);
    assert_eq!(count, 7, "two rounds and the win rate, of 3 + 1 completions each, and one failure");
    let metrics = std::fs::read_to_string(std::path::Path::new(&world.path("logs")).join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"reward\":0.5"), "twice 0.25: {metrics}");
}

/// All that was learned is there by then.
#[test]
fn a_run_whose_win_rate_cannot_be_scored_is_published_without_one() {
    let world = World::new();
    let (host, _) = service(|n, _, request| match n {
        0..4 => (200, json!({"scores": vec![0.25; request["items"].as_array().unwrap().len()]}).to_string()),
        _ => (400, String::new()),
    });
    let (ok, said) = train(&world, &format!("http://{host}/score"), &[&host]);
    assert!(ok && said.contains("no win rate"), "{said}");
    let card = std::fs::read_to_string(std::path::Path::new(&world.path("out")).join("README.md")).unwrap();
    assert!(!card.contains("win_rate"), "{card}");
}

#[test]
fn other_hosts_are_never_asked_and_bad_answers_end_the_run() {
    let world = World::new();
    let (host, count) = service(|_, _, _| (200, json!({"scores": [1.0]}).to_string()));
    let url = format!("http://{host}/score");
    let (ok, said) = train(&world, &url, &[]);
    assert!(!ok && said.contains("administrator"), "{said}");
    let (ok, said) = train(&world, &url, &["rewards.example"]);
    assert!(!ok && said.contains("is not allowed; add it to jobs.reward_hosts"), "{said}");
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let (ok, said) = train(&world, &url, &[&host]);
    assert!(!ok && said.contains("1 scores for 3 completions"), "{said}");
    // A redirect to somewhere else is not followed.
    let (redirecting, _) = service(|_, _, _| (302, String::new()));
    let (ok, said) = train(&world, &format!("http://{redirecting}/"), &[&redirecting]);
    assert!(!ok && said.contains("302"), "{said}");
}
