//! Requests that expand to far more than they are, against the real process: refused or served within the memory
//! that is promised, while others are answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::support::fixture;

/// What one request may take beyond what the server has.
const PROMISED: usize = 64 << 20;
/// How long `/health` may take meanwhile.
const HEALTHY: Duration = Duration::from_millis(100);

async fn start(dir: &std::path::Path) -> Server {
    let url = format!("sqlite://{}", dir.join("floods.db").display());
    let mut place = Place::new(&url, &dir.join("data")).with("INSTRUCTD_ENCODER", fixture("bert-tiny").display());
    place.model = "builtin".into();
    Server::start(&place).await
}

/// Status of the answer, growth of the peak in bytes, and the longest `/health` meanwhile.
async fn attacked(server: &Server, path: &str, body: &Value, at_once: usize) -> (u16, usize, Duration) {
    server.forget_peak();
    let (before, _) = server.memory();
    let text = body.to_string();
    let all = (0..at_once).map(|_| {
        let request = server.http.post(format!("{}{path}", server.url)).header("content-type", "application/json");
        let request = request.bearer_auth(ADMIN_KEY).body(text.clone());
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            answer.bytes().await.unwrap();
            status
        })
    });
    let all: Vec<_> = all.collect();
    let mut slowest = Duration::ZERO;
    while !all.iter().all(tokio::task::JoinHandle::is_finished) {
        let began = Instant::now();
        let health = server.http.get(format!("{}/health", server.url)).send().await.unwrap();
        assert_eq!(health.status(), 200);
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut status = 0;
    for one in all {
        status = one.await.unwrap();
        assert!(status < 500, "{path}: {status}");
    }
    let (_, peak) = server.memory();
    (status, peak.saturating_sub(before), slowest)
}

/// (name, path, body, whether it must be refused)
fn attacks() -> Vec<(&'static str, &'static str, Value, bool)> {
    let user = |text: String| json!([{"role": "user", "content": text}]);
    let case = json!({"input": "i", "label": "a"});
    let long = "word ".repeat(50_000);
    vec![
        (
            "a template for each of 256 examples",
            "/v1/choices",
            json!({"template": format!("{}{{input}}{{label}}", "x".repeat(100_000)), "input": "y", "choices": ["a"],
                "examples": vec![case.clone(); 256]}),
            true,
        ),
        (
            "a separator for each of 256 examples",
            "/v1/choices",
            json!({"template": "{input}{label}", "separator": "x".repeat(100_000), "input": "y", "choices": ["a"],
                "examples": vec![case.clone(); 256]}),
            true,
        ),
        (
            "sixteen prompts without content, each with all choices",
            "/v1/choices",
            json!({"template": format!("{}{{input}} {{label}}", "x ".repeat(50_000)), "input": "y", "calibrate": true,
                "content_free": vec!["n"; 16], "choices": (0..60).map(|i| format!("c{i}")).collect::<Vec<_>>()}),
            true,
        ),
        (
            "a long conversation with all choices",
            "/v1/choices",
            json!({"messages": user(long.clone()), "choices": (0..256).map(|i| format!("c{i}")).collect::<Vec<_>>()}),
            true,
        ),
        ("the largest text to be counted", "/tokenize", json!({"prompt": "a ".repeat(130_000)}), false),
        ("one word without end", "/tokenize", json!({"prompt": "x".repeat(260_000)}), false),
        ("a text over the limit", "/tokenize", json!({"prompt": "x".repeat(1_000_000)}), true),
        ("a million ids to be written", "/detokenize", json!({"tokens": vec![5; 900_000]}), true),
        (
            "a million ids to be continued",
            "/v1/completions",
            json!({"prompt": vec![5; 900_000], "max_tokens": 1}),
            true,
        ),
        ("empty lists as prompts", "/v1/completions", json!({"prompt": vec![json!([]); 600_000]}), true),
        (
            "an echo before each of 256 samples",
            "/v1/completions",
            json!({"prompt": "x".repeat(200_000), "echo": true, "n": 256, "max_tokens": 1}),
            true,
        ),
        (
            "log-probs of everything",
            "/v1/completions",
            json!({"prompt": "x", "n": 256, "max_tokens": 400, "logprobs": 20, "ignore_eos": true}),
            true,
        ),
        (
            "as many log-probs as are allowed",
            "/v1/completions",
            json!({"prompt": "x", "n": 48, "max_tokens": 120, "logprobs": 20, "ignore_eos": true}),
            false,
        ),
        (
            "as many chat log-probs as are allowed",
            "/v1/chat/completions",
            json!({"messages": user("hi".into()), "n": 48, "max_tokens": 120, "logprobs": true, "top_logprobs": 20,
                "ignore_eos": true}),
            false,
        ),
        (
            "alternatives of everything",
            "/v1/chat/completions",
            json!({"messages": user("hi".into()), "n": 256, "max_tokens": 400, "logprobs": true, "top_logprobs": 20}),
            true,
        ),
        ("one layer 400,000 times", "/v1/attention", json!({"text": "a", "layers": vec![0; 400_000]}), true),
        ("all layers of a long text", "/v1/attention", json!({"text": "a ".repeat(50)}), false),
        (
            "a prompt for each of 256 completions",
            "/v1/rewards",
            json!({"prompt": "x".repeat(1_000_000), "completions": vec!["y"; 256]}),
            true,
        ),
        (
            "a prompt within the limit for each of 256 completions",
            "/v1/rewards",
            json!({"prompt": "x".repeat(250_000), "completions": vec!["y"; 256]}),
            true,
        ),
        (
            "two thousand texts",
            "/v1/embeddings",
            json!({"input": (0..2048).map(|i| format!("t{} t{} t7", i % 90, i % 77)).collect::<Vec<_>>()}),
            false,
        ),
        ("three thousand texts", "/v1/embeddings", json!({"input": vec!["t5"; 3000]}), true),
        (
            "every token for every gap",
            "/v1/fill-mask",
            json!({"tokens": vec![5; 60], "positions": (0..60).collect::<Vec<_>>(), "top_k": 1000}),
            true,
        ),
        (
            "as many stop strings and biases as there are",
            "/v1/completions",
            json!({"prompt": "x", "stop": vec!["s".repeat(256); 17]}),
            true,
        ),
        ("long texts to be ranked", "/v1/prompts", json!({"messages": user("x".repeat(1_900_000))}), true),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_takes_more_than_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    // What is loaded or grows once belongs to nobody's request.
    for (path, body) in [
        ("/tokenize", json!({"prompt": "a ".repeat(1000)})),
        ("/v1/embeddings", json!({"input": "t5"})),
        ("/v1/completions", json!({"prompt": "x", "n": 48, "max_tokens": 120, "ignore_eos": true})),
        ("/v1/attention", json!({"text": "a"})),
    ] {
        let answer = server.call("POST", path, Some(body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json);
    }
    for (name, path, body, refused) in attacks() {
        // What a request needs by itself it needs every time. Thread stacks and buffers that grow once, and other work
        // of the machine that holds up `/health`, do not come back each time.
        let (mut least, mut quickest) = (usize::MAX, Duration::MAX);
        for _ in 0..5 {
            let (status, grown, health) = attacked(&server, path, &body, 1).await;
            eprintln!("{name}: {status}, {:.1} MB, /health {health:?}", grown as f64 / 1e6);
            assert_eq!(status == 400 || status == 413, refused, "{name}: {status}");
            (least, quickest) = (least.min(grown), quickest.min(health));
            if least <= PROMISED && quickest <= HEALTHY {
                break;
            }
        }
        assert!(least <= PROMISED, "{name}: {least} bytes in every try");
        assert!(quickest <= HEALTHY, "{name}: /health took {quickest:?} at best");
    }
}

/// Many at once: each is served or told to come back, and the server is alive beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_large_requests_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let text = json!({"prompt": "a ".repeat(130_000)});
    let view = json!({"text": "a ".repeat(50)});
    let texts = json!({"input": (0..1000).map(|i| format!("t{} t7", i % 90)).collect::<Vec<_>>()});
    for (path, body) in [("/tokenize", text), ("/v1/attention", view), ("/v1/embeddings", texts)] {
        let (_, grown, health) = attacked(&server, path, &body, 40).await;
        eprintln!("40 × {path}: {:.1} MB, /health {health:?}", grown as f64 / 1e6);
        // Two at the same time, the rest waits as its body.
        assert!(grown <= 5 * PROMISED, "{path}: {grown} bytes");
        assert!(health < Duration::from_secs(1), "{path}: /health took {health:?}");
    }
}

/// Reward models answer anybody only when they were promoted and are still in use.
#[tokio::test]
async fn untried_and_retired_reward_models_are_not_for_strangers() {
    use super::client::{Server, version};
    use instructd::domain::ModelKind;
    let server = Server::start().await;
    let scorer = version("scorer", ModelKind::Reward, None);
    server.services.store.models().put(scorer.clone()).await.unwrap();
    let ask = json!({"model": "scorer", "prompt": "q", "completions": ["a"]});
    let refused = server.open_post("/v1/rewards", ask.clone()).await.expect(400);
    assert_eq!(refused.param().as_deref(), Some("model"), "{}", refused.text);
    server.post("/v1/rewards", ask.clone()).await.expect(200);
    server.services.store.models().activate(&scorer.id, 5).await.unwrap();
    server.open_post("/v1/rewards", ask.clone()).await.expect(200);
    let next = version("next", ModelKind::Reward, None);
    server.services.store.models().put(next.clone()).await.unwrap();
    server.services.store.models().activate(&next.id, 6).await.unwrap();
    server.services.store.models().retire(&scorer.id).await.unwrap();
    let refused = server.post("/v1/rewards", ask).await.expect(400);
    assert!(refused.text.contains("retired"), "{}", refused.text);
}
