//! Texts that take long to render, from people who may store texts.

use serde_json::{Value, json};

use super::{PROMISED, key, place, under, user};
use crate::crash::server::{Answer, Server};

/// Texts that took from seconds to minutes each, or wrote more to the log than they are long.
fn bombs() -> Vec<(&'static str, String)> {
    vec![
        ("block quotes", ">".repeat(60_000)),
        ("long block quotes", ">".repeat(250_000)),
        ("spaced block quotes", "> ".repeat(100_000)),
        ("lists", "- ".repeat(100_000)),
        ("numbered quotes", ">1. - ".repeat(40_000)),
        ("nested lists", (0..300).map(|i| format!("{}- x\n", "  ".repeat(i))).collect()),
        ("brackets", "[".repeat(120_000)),
        ("emphasis", "*a**b".repeat(24_000)),
        ("a table of many columns", "|a".repeat(500) + "\n" + &"|-".repeat(500) + "\n" + &"x\n".repeat(20_000)),
        ("formulas", "$a ".repeat(40_000)),
    ]
}

async fn send(server: &Server, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    server.send(method, path, key, body).await.unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stored_text_freezes_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let mut server = Server::start(&place).await;
    let (feedback, _) = key(&server, &["feedback"], json!({})).await;
    let mut sets = Vec::new();
    for (name, text) in bombs() {
        let body = json!({"messages": user(&format!("What about {name}?")), "completions": [text, "b"]});
        let twice = async {
            tokio::join!(
                send(&server, &feedback, "POST", "/v1/comparison-sets", Some(&body)),
                send(&server, &feedback, "POST", "/v1/comparison-sets", Some(&body))
            )
        };
        let ((one, other), grown) = under(&server, name, twice).await;
        assert_eq!((one.status, other.status), (201, 201), "{name}: {}", one.json);
        assert!(grown <= 2 * PROMISED, "{name}: {grown} bytes");
        sets.push((name, one.json["id"].as_str().unwrap().to_owned()));
    }
    // Whoever is shown the set freezes nothing either, also after a restart.
    for restarted in [false, true] {
        if restarted {
            server.kill();
            server = Server::start(&place).await;
        }
        for (name, id) in &sets {
            let views = async {
                let (set, next) = (format!("/v1/comparison-sets/{id}"), format!("/v1/label/next?set_id={id}"));
                let review = format!("/v1/review/sets/{id}");
                let (set, next, review) = tokio::join!(
                    send(&server, &feedback, "GET", &set, None),
                    send(&server, &feedback, "GET", &next, None),
                    server.call("GET", &review, None)
                );
                assert_eq!((set.status, next.status, review.status), (200, 200, 200), "{name}");
                assert!(next.json["completions"][0]["html"].is_string());
            };
            let ((), grown) = under(&server, name, views).await;
            assert!(grown <= 3 * PROMISED, "{name}: {grown} bytes");
        }
    }
    // Guidelines are read by anybody.
    let text = ">".repeat(200_000);
    server.call("POST", "/admin/guidelines", Some(json!({"lang": "en", "text": text}))).await.expect(200);
    let many = futures::future::join_all((0..8).map(|_| send(&server, &feedback, "GET", "/v1/guidelines", None)));
    let (all, _) = under(&server, "guidelines", many).await;
    assert!(all.iter().all(|a| a.status == 200));
    // One text wrote 900 KB to the log.
    assert!(server.words().len() < 64 << 10, "{} bytes of log", server.words().len());
}
