//! SIGKILL of the server while it sends webhooks: every acknowledged judgment is told, under one id, by whichever
//! server runs afterwards.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::server::{Place, Server};
use crate::api::webhooks::Receiver;
use crate::support::eventually::{LONG, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_senders_lose_no_event() {
    let (receiver, host) = Receiver::start().await;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("test.db").display());
    let place = Place::new(&url, &dir.path().join("data"))
        .with("INSTRUCTD_WEBHOOKS__HOSTS", json!([host]))
        .with("INSTRUCTD_WEBHOOKS__FIRST_RETRY_SECONDS", 1);
    let mut server = Server::start(&place).await;
    let webhook = json!({"url": format!("http://{host}/hook"), "events": ["judgment.created"]});
    server.call("POST", "/admin/webhooks", Some(webhook)).await.expect(201);
    // Some of the answers are failures, so that attempts are in flight and to come at every kill.
    receiver.answers((0..60).map(|i| if i % 3 == 0 { 503 } else { 204 }));
    let mut acknowledged = BTreeSet::new();
    for kill in 0..4 {
        for i in 0..12 {
            let body = json!({
                "messages": [{"role": "user", "content": format!("question {kill} {i}")}],
                "completions": [{"text": "one", "tier": 0}, {"text": "other", "tier": 1}],
            });
            let stored = server.call("POST", "/v1/comparisons", Some(body)).await.expect(201);
            acknowledged.insert(stored["judgment"]["id"].as_str().unwrap().to_owned());
        }
        server.kill();
        server = Server::start(&place).await;
    }
    assert_eq!(acknowledged.len(), 48);
    // Judgment → ids of its messages.
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    eventually(LONG, "every judgment is told", async || {
        for message in receiver.take() {
            let id = message.header("webhook-id").to_owned();
            let judgment = message.json()["data"]["judgment_id"].as_str().unwrap().to_owned();
            told.entry(judgment).or_default().insert(id);
        }
        let pending = server.call("GET", "/admin/webhook-deliveries?state=pending", None).await.expect(200);
        (told.len() == 48 && pending["data"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), acknowledged);
    assert!(told.values().all(|ids| ids.len() == 1), "a message that is sent again has its first id");
}
