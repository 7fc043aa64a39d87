//! SIGTERM with streams and a job under way: the server ends in time and the job goes back to the queue.

use std::time::Duration;

use instructd::domain::JobState;
use serde_json::json;
use tokio::time::Instant;

use super::server::{ADMIN_KEY, Place, Server};
use crate::store::backend::{self, Fresh};
use crate::support::eventually::{LONG, eventually};

/// What a server promises between SIGTERM and its end.
const IN_TIME: Duration = Duration::from_secs(10);

async fn stops_in_time(fresh: Fresh) {
    let data = tempfile::tempdir().unwrap();
    let place = Place::new(&fresh.url, data.path()).with("INSTRUCTD_SERVER__DRAIN_TIMEOUT_SECONDS", 2);
    let mut server = Server::start(&place).await;
    for i in 0..4 {
        let body = json!({"messages": [{"role": "user", "content": format!("t{i}")}], "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
    let args = json!({"epochs": 100_000, "checkpoint_every": 5, "batch_size": 2, "max_length": 16});
    let job = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await;
    assert!([201, 202].contains(&job.status), "{} {}", job.status, job.json);
    let id = job.json["id"].as_str().unwrap().to_owned();
    eventually(LONG, "the first checkpoint", async || {
        let seen = fresh.store.jobs().get(&id.as_str().into()).await.unwrap();
        assert!(!seen.state.is_terminal(), "{:?}", seen.error);
        seen.checkpoint_uri
    })
    .await;
    // A stream of events that is read, and streams of tokens that nobody reads.
    let events = server.http.get(format!("{}/admin/jobs/{id}/events", server.url)).bearer_auth(ADMIN_KEY);
    let mut events = events.send().await.unwrap();
    assert_eq!(events.status(), 200);
    events.chunk().await.unwrap().expect("the job's first events");
    let mut unread = Vec::new();
    for _ in 0..8 {
        let body = json!({"model": "llama-tied-tiny", "prompt": [1, 2], "max_tokens": 20, "n": 8, "stream": true,
            "ignore_eos": true});
        let sent = server.http.post(format!("{}/v1/completions", server.url)).json(&body).send().await.unwrap();
        assert_eq!(sent.status(), 200);
        unread.push(sent);
    }
    let asked = Instant::now();
    server.signal(libc::SIGTERM);
    let status = server.end().await;
    let took = asked.elapsed();
    assert!(status.success(), "{status}: {}", server.words());
    assert!(took < IN_TIME, "it took {took:?}: {}", server.words());
    while let Ok(Some(_)) = events.chunk().await {}

    let back = fresh.store.jobs().get(&id.as_str().into()).await.unwrap();
    assert_eq!((back.state, back.attempt, back.crash_count), (JobState::Queued, 0, 0), "{:?}", back.error);
    assert!(back.checkpoint_uri.is_some() && back.lease_owner.is_none());
    // The next server takes it up where it was.
    let step = back.progress.map_or(0, |p| p.step);
    let server = Server::start(&place).await;
    eventually(LONG, "a step after the restart", async || {
        let seen = fresh.store.jobs().get(&id.as_str().into()).await.unwrap();
        assert!(!seen.state.is_terminal(), "{:?}", seen.error);
        seen.progress.filter(|p| seen.state == JobState::Running && p.step > step)
    })
    .await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_in_time_on_sqlite() {
    stops_in_time(backend::sqlite().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_in_time_on_postgres() {
    if let Some(fresh) = backend::postgres().await {
        stops_in_time(fresh).await;
    }
}
