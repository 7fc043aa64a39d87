//! Several servers with the same model behind one: requests are spread, those that fail are passed over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use instructd::config::Config;
use serde_json::json;

use super::client::{Answer, Server, admin};
use super::fake_upstream::{Act, Fake};
use super::upstream::{behind, chat, idle};
use crate::support::eventually::{LONG, eventually};

const PATH: &str = "/v1/chat/completions";

async fn fleet(fakes: &[&Arc<Fake>], change: impl FnOnce(&mut Config)) -> Server {
    let replicas = fakes[1..].iter().map(|fake| fake.url.clone()).collect();
    behind(&fakes[0].url, |c| {
        c.upstream.replicas = replicas;
        // Checks only where a test is about them.
        c.upstream.health_seconds = 0;
        change(c);
    })
    .await
}

fn text(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

/// An address that nobody listens on.
async fn nowhere() -> String {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/v1", free.local_addr().unwrap())
}

#[tokio::test]
async fn requests_go_to_the_least_busy_replica() {
    let [a, b, c] = [
        Fake::start(vec![Act::Write(vec!["a"], "stop")]).await,
        Fake::start(vec![Act::Write(vec!["b"], "stop")]).await,
        Fake::start(vec![Act::Write(vec!["c"], "stop")]).await,
    ];
    let server = fleet(&[&a, &b, &c], |_| {}).await;
    let mut seen = BTreeMap::new();
    for _ in 0..9 {
        *seen.entry(text(&server.open_post(PATH, chat(json!({}))).await.expect(200))).or_insert(0) += 1;
    }
    assert_eq!(seen, BTreeMap::from([("a".into(), 3), ("b".into(), 3), ("c".into(), 3)]), "equally busy ones in turn");

    // Two of them are busy with a stream that does not end: everything goes to the third.
    for fake in [&a, &b] {
        fake.then(vec![Act::Silence("…")]);
    }
    let mut held = Vec::new();
    while a.open.load(SeqCst) + b.open.load(SeqCst) < 2 {
        let request = http::Request::post(PATH).header("content-type", "application/json");
        let request = request.body(axum::body::Body::from(chat(json!({"stream": true})).to_string())).unwrap();
        held.push(tower::ServiceExt::oneshot(server.router.clone(), request).await.unwrap());
        assert!(held.len() < 20, "streams are begun at every replica");
    }
    for _ in 0..5 {
        assert_eq!(text(&server.open_post(PATH, chat(json!({}))).await.expect(200)), "c");
    }
    drop(held);
    for fake in [&a, &b] {
        idle(&server, fake).await;
    }
}

#[tokio::test]
async fn a_failing_replica_is_skipped() {
    let failures = [
        Act::Status(500, json!({}), None),
        Act::Status(503, json!({}), None),
        Act::Status(429, json!({}), Some(60)),
        Act::Status(404, json!({}), None),
    ];
    for failure in failures {
        let bad = Fake::start(vec![failure.clone()]).await;
        let good = Fake::start(vec![Act::Write(vec!["good"], "stop")]).await;
        let server = fleet(&[&bad, &good], |c| {
            c.upstream.retries = 0;
            c.upstream.breaker_failures = 3;
            c.upstream.breaker_pause_seconds = 600;
        })
        .await;
        for _ in 0..10 {
            assert_eq!(text(&server.open_post(PATH, chat(json!({}))).await.expect(200)), "good");
        }
        // Ten requests began at the bad one in turn; a server that is busy is no broken one.
        let expected = if matches!(failure, Act::Status(429, ..)) { 5 } else { 3 };
        assert_eq!(bad.calls(), expected, "{failure:?}");
        assert_eq!(good.calls(), 10);
        server.get("/ready").await.expect(200);
    }
    let metrics = Server::without_engine(|_| {}).await.call("GET", "/metrics", &[admin()], None).await.expect(200).text;
    assert!(metrics.contains("instructd_upstream_failovers_total"), "{metrics}");
}

#[tokio::test]
async fn an_unavailable_replica_does_not_fail_requests() {
    let good = Fake::start(vec![Act::Write(vec!["good"], "stop")]).await;
    let away = nowhere().await;
    // Named first, so that the model is found at the second one.
    let server = behind(&away, |c| {
        c.upstream.replicas = vec![good.url.clone()];
        c.upstream.health_seconds = 0;
        c.upstream.retries = 0;
    })
    .await;
    for _ in 0..6 {
        assert_eq!(text(&server.open_post(PATH, chat(json!({}))).await.expect(200)), "good");
    }
    assert_eq!(good.calls(), 6);
}

#[tokio::test]
async fn a_request_that_may_have_begun_is_not_repeated() {
    let refusal = json!({"error": {"message": "no", "param": "max_tokens"}});
    for (act, status) in [(Act::Hang, 503), (Act::Status(400, refusal, None), 400), (Act::Break("half"), 503)] {
        let [a, b] = [Fake::start(vec![act.clone()]).await, Fake::start(vec![act.clone()]).await];
        let server = fleet(&[&a, &b], |c| c.upstream.response_timeout_seconds = 1).await;
        server.open_post(PATH, chat(json!({}))).await.expect(status);
        assert_eq!(a.calls() + b.calls(), 1, "{act:?}");
    }
}

#[tokio::test]
async fn a_fleet_is_ready_while_one_replica_is() {
    let [a, b] = [0, 1].map(|_| Fake::start(vec![Act::Status(500, json!({}), None)]));
    let (a, b) = (a.await, b.await);
    let server = fleet(&[&a, &b], |c| {
        c.upstream.breaker_failures = 1;
        c.upstream.breaker_pause_seconds = 1;
    })
    .await;
    server.open_post(PATH, chat(json!({}))).await.expect(503);
    assert_eq!((a.calls(), b.calls()), (1, 1), "both were asked");
    assert_eq!(server.get("/ready").await.expect(503).json()["error"]["code"], "upstream_unavailable");
    b.then(vec![Act::Write(vec!["back"], "stop")]);
    eventually(LONG, "readiness", async || (server.get("/ready").await.status == 200).then_some(())).await;
    assert_eq!(text(&server.open_post(PATH, chat(json!({}))).await.expect(200)), "back");
}

#[tokio::test]
async fn a_replica_without_the_model_is_skipped_until_it_has_it() {
    let [a, b] = [
        Fake::start(vec![Act::Write(vec!["a"], "stop")]).await,
        Fake::start(vec![Act::Write(vec!["b"], "stop")]).await,
    ];
    let server = fleet(&[&a, &b], |c| c.upstream.health_seconds = 1).await;
    // Which of the two texts the next four requests get.
    let next = async || {
        let mut texts = String::new();
        for _ in 0..4 {
            texts += &text(&server.open_post(PATH, chat(json!({}))).await.expect(200));
        }
        texts
    };
    a.lists.store(false, SeqCst);
    eventually(LONG, "the check", async || (next().await == "bbbb").then_some(())).await;
    let metrics = server.call("GET", "/metrics", &[admin()], None).await.expect(200).text;
    let host = a.url.trim_start_matches("http://").trim_end_matches("/v1").to_owned();
    let down = format!("instructd_upstream_replica_up{{replica=\"{host}\"}} 0");
    assert!(metrics.contains(&down), "{down} is not in {metrics}");
    // Better a replica that may have the model than none.
    b.lists.store(false, SeqCst);
    eventually(LONG, "the check", async || next().await.contains('a').then_some(())).await;
    a.lists.store(true, SeqCst);
    eventually(LONG, "the check", async || (next().await == "aaaa").then_some(())).await;
}
