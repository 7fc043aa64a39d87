//! The job queue's part of the conformance suite: claims, fences, crashes, cancel, events, curves.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::conformance;
use super::fixture::*;

conformance!(
    jobs_are_claimed_in_order_and_once,
    concurrent_claims_never_share_a_job,
    fences_hold,
    lost_workers_count_as_crashes,
    crashes_and_shutdowns_requeue_differently,
    cancel_and_resume,
    unique_keys_cover_live_jobs_only,
    events_are_numbered,
    curves,
);

fn lost<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(StoreError::LeaseLost(_))), "{result:?}");
}

fn conflict<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
}

async fn claim(store: &dyn Store, owner: &str) -> Option<(Job, Fence)> {
    store.claim_job(owner, 60, &[], 3).await.unwrap()
}

async fn jobs_are_claimed_in_order_and_once(store: Arc<dyn Store>) {
    assert_eq!(claim(&*store, "w").await, None);
    let low = store.enqueue_job(job("sft", None, 0)).await.unwrap();
    let high = store.enqueue_job(job("ppo", None, 5)).await.unwrap();
    let (first, fence) = claim(&*store, "w").await.unwrap();
    assert_eq!((&first.id, first.state, first.attempt, first.crash_count), (&high.id, JobState::Running, 1, 0));
    assert_eq!(fence, Fence { job_id: high.id.clone(), attempt: 1, lease_owner: "w".into() });
    assert!(first.lease_expires.unwrap() > store.now().await.unwrap());
    assert_eq!(store.claim_job("w", 60, &["reward"], 3).await.unwrap(), None, "kinds are respected");
    assert_eq!(store.claim_job("w", 60, &["reward", "sft"], 3).await.unwrap().unwrap().0.id, low.id);
    assert_eq!(claim(&*store, "w").await, None);
    assert_eq!(store.list_jobs(page(10), Some(JobState::Running)).await.unwrap().len(), 2);
    assert_eq!(store.count_jobs(JobState::Running).await.unwrap(), 2);
    assert_eq!(store.count_jobs(JobState::Queued).await.unwrap(), 0);
    store.finish_job(&fence, JobState::Succeeded, Some(json!({"x": 1})), None).await.unwrap();
    let done = store.get_job(&high.id).await.unwrap();
    assert_eq!((done.state, done.result, done.lease_owner), (JobState::Succeeded, Some(json!({"x": 1})), None));
    assert!(done.started.is_some() && done.finished >= done.started);
}

async fn concurrent_claims_never_share_a_job(store: Arc<dyn Store>) {
    for _ in 0..10 {
        store.enqueue_job(job("sft", None, 0)).await.unwrap();
    }
    let workers: Vec<_> = (0..6)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                while let Some((job, _)) = claim(&*store, &format!("w{i}")).await {
                    mine.push(job.id);
                }
                mine
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    all.sort();
    all.dedup();
    // SKIP LOCKED may show a worker an empty queue while another is taking the last job: none is lost.
    while let Some((job, _)) = claim(&*store, "late").await {
        assert!(!all.contains(&job.id));
        all.push(job.id);
    }
    assert_eq!(all.len(), 10);
    assert!(store.list_jobs(page(20), None).await.unwrap().iter().all(|j| j.attempt == 1));
}

async fn fences_hold(store: Arc<dyn Store>) {
    store.enqueue_job(job("sft", None, 0)).await.unwrap();
    let (claimed, fence) = claim(&*store, "w").await.unwrap();
    let progress = Progress { phase: "train".into(), step: 3, total_steps: Some(9), ..Default::default() };
    assert!(!store.heartbeat_job(&fence, 60, Some(&progress)).await.unwrap());
    assert!(!store.heartbeat_job(&fence, 120, None).await.unwrap());
    store.checkpoint_job(&fence, "ckpt-3").await.unwrap();
    let seen = store.get_job(&claimed.id).await.unwrap();
    assert_eq!((seen.progress, seen.checkpoint_uri), (Some(progress), Some("ckpt-3".into())));
    assert!(seen.lease_expires > claimed.lease_expires);
    for stale in
        [Fence { attempt: fence.attempt + 1, ..fence.clone() }, Fence { lease_owner: "other".into(), ..fence.clone() }]
    {
        lost(store.heartbeat_job(&stale, 60, None).await);
        lost(store.checkpoint_job(&stale, "x").await);
        lost(store.finish_job(&stale, JobState::Succeeded, None, None).await);
        lost(store.requeue_job(&stale, None, 3).await);
    }
    conflict(store.finish_job(&fence, JobState::Queued, None, None).await);
    store.finish_job(&fence, JobState::Failed, None, Some("no")).await.unwrap();
    lost(store.heartbeat_job(&fence, 60, None).await);
    assert_eq!(store.get_job(&claimed.id).await.unwrap().error.as_deref(), Some("no"));
}

async fn lost_workers_count_as_crashes(store: Arc<dyn Store>) {
    let queued = store.enqueue_job(job("sft", None, 0)).await.unwrap();
    // A lease of -1 s has run out at once: as if the worker had vanished.
    let (_, first) = store.claim_job("w1", -1, &[], 3).await.unwrap().unwrap();
    let (second, _) = store.claim_job("w2", -1, &[], 3).await.unwrap().unwrap();
    assert_eq!((second.attempt, second.crash_count), (2, 1));
    lost(store.heartbeat_job(&first, 60, None).await);
    assert_eq!(store.claim_job("w3", -1, &[], 3).await.unwrap().unwrap().0.crash_count, 2);
    let next = store.enqueue_job(job("sft", None, -1)).await.unwrap();
    let (got, _) = claim(&*store, "w4").await.unwrap();
    assert_eq!(got.id, next.id, "the poisonous job is failed and the next one is taken");
    let dead = store.get_job(&queued.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count), (JobState::Failed, 3));
    assert!(dead.error.unwrap().contains("3 times"));
}

async fn crashes_and_shutdowns_requeue_differently(store: Arc<dyn Store>) {
    let queued = store.enqueue_job(job("sft", None, 0)).await.unwrap();
    let (_, fence) = claim(&*store, "w1").await.unwrap();
    assert_eq!(store.requeue_job(&fence, None, 3).await.unwrap(), JobState::Queued);
    let back = store.get_job(&queued.id).await.unwrap();
    assert_eq!((back.state, back.attempt, back.crash_count), (JobState::Queued, 0, 0));
    lost(store.heartbeat_job(&fence, 60, None).await);
    for crash in 1..=3 {
        let (_, fence) = claim(&*store, &format!("c{crash}")).await.unwrap();
        let state = store.requeue_job(&fence, Some("out of memory"), 3).await.unwrap();
        assert_eq!(state, if crash < 3 { JobState::Queued } else { JobState::Failed });
    }
    let dead = store.get_job(&queued.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count, dead.attempt), (JobState::Failed, 3, 3));
    assert!(dead.error.unwrap().contains("out of memory") && dead.finished.is_some());
}

async fn cancel_and_resume(store: Arc<dyn Store>) {
    let queued = store.enqueue_job(job("sft", None, 0)).await.unwrap();
    assert_eq!(store.cancel_job(&queued.id).await.unwrap().state, JobState::Cancelled);
    conflict(store.cancel_job(&queued.id).await);
    let back = store.resume_job(&queued.id).await.unwrap();
    assert_eq!((back.state, back.finished, back.error), (JobState::Queued, None, None));
    conflict(store.resume_job(&queued.id).await);
    let (_, fence) = claim(&*store, "w").await.unwrap();
    store.checkpoint_job(&fence, "ckpt-1").await.unwrap();
    let running = store.cancel_job(&queued.id).await.unwrap();
    assert_eq!((running.state, running.cancel_requested), (JobState::Running, true));
    assert!(store.heartbeat_job(&fence, 60, None).await.unwrap(), "the worker hears of it");
    assert_eq!(store.requeue_job(&fence, Some("killed"), 3).await.unwrap(), JobState::Cancelled);
    let resumed = store.resume_job(&queued.id).await.unwrap();
    assert_eq!((resumed.cancel_requested, resumed.checkpoint_uri), (false, Some("ckpt-1".into())));
    assert!(matches!(store.cancel_job(&"no".into()).await, Err(StoreError::NotFound { .. })));
}

async fn unique_keys_cover_live_jobs_only(store: Arc<dyn Store>) {
    let first = store.enqueue_job(job("sft", Some("k"), 0)).await.unwrap();
    conflict(store.enqueue_job(job("sft", Some("k"), 0)).await);
    store.enqueue_job(job("sft", Some("other"), 0)).await.unwrap();
    store.enqueue_job(job("sft", None, 0)).await.unwrap();
    store.enqueue_job(job("sft", None, 0)).await.unwrap();
    store.cancel_job(&first.id).await.unwrap();
    store.enqueue_job(job("sft", Some("k"), 0)).await.unwrap();
    conflict(store.resume_job(&first.id).await);
}

async fn events_are_numbered(store: Arc<dyn Store>) {
    let id = store.enqueue_job(job("sft", None, 0)).await.unwrap().id;
    let event = |i: i64| ("log".to_owned(), json!({"line": i}));
    assert_eq!(store.append_job_events(&id, &[event(1), event(2)]).await.unwrap(), 2);
    let writers: Vec<_> = (0..5)
        .map(|i| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move { store.append_job_events(&id, &[("log".into(), json!(i))]).await.unwrap() })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let all = store.job_events(&id, 0, 100).await.unwrap();
    assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    assert_eq!((all[1].kind.as_str(), &all[1].data), ("log", &json!({"line": 2})));
    assert_eq!(store.job_events(&id, 5, 1).await.unwrap()[0].seq, 6);
    assert!(matches!(store.append_job_events(&"no".into(), &[]).await, Err(StoreError::NotFound { .. })));
}

async fn curves(store: Arc<dyn Store>) {
    let id = store.enqueue_job(job("sft", None, 0)).await.unwrap().id;
    let point = |step, name: &str, value| Metric { step, name: name.into(), value };
    store.put_metrics(&id, &[point(1, "loss", 3.0), point(1, "kl", 0.0), point(2, "loss", f64::NAN)]).await.unwrap();
    store.put_metrics(&id, &[point(2, "loss", 2.5), point(1, "loss", 2.75)]).await.unwrap();
    let all = store.metrics(&id, &[]).await.unwrap();
    assert_eq!(all, [point(1, "kl", 0.0), point(1, "loss", 2.75), point(2, "loss", 2.5)]);
    let some = store.metrics(&id, &["loss".into(), "nothing".into()]).await.unwrap();
    assert_eq!(some, all[1..]);
}
