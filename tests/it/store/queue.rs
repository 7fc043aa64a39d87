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
    a_new_checkpoint_begins_the_count_of_crashes_anew,
    crashes_and_shutdowns_requeue_differently,
    cancel_and_resume,
    a_name_for_a_model_is_that_of_one_live_job,
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

async fn claim(store: &Store, owner: &str) -> Option<(Job, Fence)> {
    store.jobs().claim(owner, 60, &[], 3).await.unwrap()
}

async fn jobs_are_claimed_in_order_and_once(store: Arc<Store>) {
    assert_eq!(claim(&store, "w").await, None);
    let low = store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let high = store.jobs().enqueue(job("ppo", None, 5)).await.unwrap();
    let (first, fence) = claim(&store, "w").await.unwrap();
    assert_eq!((&first.id, first.state, first.attempt, first.crash_count), (&high.id, JobState::Running, 1, 0));
    assert_eq!(fence, Fence { job_id: high.id.clone(), attempt: 1, lease_owner: "w".into() });
    assert!(first.lease_expires.unwrap() > store.now().await.unwrap());
    assert_eq!(store.jobs().claim("w", 60, &["reward"], 3).await.unwrap(), None, "kinds are respected");
    assert_eq!(store.jobs().claim("w", 60, &["reward", "sft"], 3).await.unwrap().unwrap().0.id, low.id);
    assert_eq!(claim(&store, "w").await, None);
    assert_eq!(store.jobs().list(page(10), Some(JobState::Running)).await.unwrap().len(), 2);
    assert_eq!(store.jobs().count(JobState::Running).await.unwrap(), 2);
    assert_eq!(store.jobs().count(JobState::Queued).await.unwrap(), 0);
    store.jobs().finish(&fence, JobState::Succeeded, Some(json!({"x": 1})), None).await.unwrap();
    let done = store.jobs().get(&high.id).await.unwrap();
    assert_eq!((done.state, done.result, done.lease_owner), (JobState::Succeeded, Some(json!({"x": 1})), None));
    assert!(done.started.is_some() && done.finished >= done.started);
}

async fn concurrent_claims_never_share_a_job(store: Arc<Store>) {
    for _ in 0..10 {
        store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    }
    let workers: Vec<_> = (0..6)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                while let Some((job, _)) = claim(&store, &format!("w{i}")).await {
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
    while let Some((job, _)) = claim(&store, "late").await {
        assert!(!all.contains(&job.id));
        all.push(job.id);
    }
    assert_eq!(all.len(), 10);
    assert!(store.jobs().list(page(20), None).await.unwrap().iter().all(|j| j.attempt == 1));
}

async fn fences_hold(store: Arc<Store>) {
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let (claimed, fence) = claim(&store, "w").await.unwrap();
    let progress = Progress { phase: "train".into(), step: 3, total_steps: Some(9), ..Default::default() };
    assert!(!store.jobs().heartbeat(&fence, 60, Some(&progress)).await.unwrap());
    assert!(!store.jobs().heartbeat(&fence, 120, None).await.unwrap());
    store.jobs().checkpoint(&fence, "ckpt-3").await.unwrap();
    let seen = store.jobs().get(&claimed.id).await.unwrap();
    assert_eq!((seen.progress, seen.checkpoint_uri), (Some(progress), Some("ckpt-3".into())));
    assert!(seen.lease_expires > claimed.lease_expires);
    for place in [Some("cluster: raysubmit_1"), None] {
        store.jobs().place(&fence, place).await.unwrap();
        assert_eq!(store.jobs().get(&claimed.id).await.unwrap().external_ref.as_deref(), place);
    }
    for stale in
        [Fence { attempt: fence.attempt + 1, ..fence.clone() }, Fence { lease_owner: "other".into(), ..fence.clone() }]
    {
        lost(store.jobs().heartbeat(&stale, 60, None).await);
        lost(store.jobs().checkpoint(&stale, "x").await);
        lost(store.jobs().place(&stale, None).await);
        lost(store.jobs().finish(&stale, JobState::Succeeded, None, None).await);
        lost(store.jobs().requeue(&stale, None, 3).await);
    }
    conflict(store.jobs().finish(&fence, JobState::Queued, None, None).await);
    store.jobs().finish(&fence, JobState::Failed, None, Some("no")).await.unwrap();
    lost(store.jobs().heartbeat(&fence, 60, None).await);
    assert_eq!(store.jobs().get(&claimed.id).await.unwrap().error.as_deref(), Some("no"));
}

async fn lost_workers_count_as_crashes(store: Arc<Store>) {
    let queued = store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    // A lease of -1 s has run out at once: as if the worker had vanished.
    let (_, first) = store.jobs().claim("w1", -1, &[], 3).await.unwrap().unwrap();
    let (second, _) = store.jobs().claim("w2", -1, &[], 3).await.unwrap().unwrap();
    assert_eq!((second.attempt, second.crash_count), (2, 1));
    lost(store.jobs().heartbeat(&first, 60, None).await);
    assert_eq!(store.jobs().claim("w3", -1, &[], 3).await.unwrap().unwrap().0.crash_count, 2);
    let next = store.jobs().enqueue(job("sft", None, -1)).await.unwrap();
    let (got, _) = claim(&store, "w4").await.unwrap();
    assert_eq!(got.id, next.id, "the poisonous job is failed and the next one is taken");
    let dead = store.jobs().get(&queued.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count), (JobState::Failed, 3));
    assert!(dead.error.unwrap().contains("3 times"));
}

async fn a_new_checkpoint_begins_the_count_of_crashes_anew(store: Arc<Store>) {
    let queued = store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    // Many more losses than the limit, each after progress: by a lost lease or by a crash that was noticed.
    for n in 0..12 {
        let (_, fence) =
            store.jobs().claim(&format!("w{n}"), if n % 2 == 0 { -1 } else { 60 }, &[], 3).await.unwrap().unwrap();
        store.jobs().checkpoint(&fence, &format!("checkpoints/step-{n}")).await.unwrap();
        if n % 2 == 1 {
            assert_eq!(store.jobs().requeue(&fence, Some("out of memory"), 3).await.unwrap(), JobState::Queued);
        }
    }
    // The same checkpoint once more is no progress.
    for n in 0..2 {
        let (job, fence) = claim(&store, &format!("same {n}")).await.unwrap();
        assert_eq!(job.crash_count, n + 1);
        store.jobs().checkpoint(&fence, "checkpoints/step-11").await.unwrap();
        store.jobs().requeue(&fence, Some("out of memory"), 3).await.unwrap();
    }
    let dead = store.jobs().get(&queued.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count), (JobState::Failed, 3));
}

async fn crashes_and_shutdowns_requeue_differently(store: Arc<Store>) {
    let queued = store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let (_, fence) = claim(&store, "w1").await.unwrap();
    assert_eq!(store.jobs().requeue(&fence, None, 3).await.unwrap(), JobState::Queued);
    let back = store.jobs().get(&queued.id).await.unwrap();
    assert_eq!((back.state, back.attempt, back.crash_count), (JobState::Queued, 0, 0));
    lost(store.jobs().heartbeat(&fence, 60, None).await);
    for crash in 1..=3 {
        let (_, fence) = claim(&store, &format!("c{crash}")).await.unwrap();
        let state = store.jobs().requeue(&fence, Some("out of memory"), 3).await.unwrap();
        assert_eq!(state, if crash < 3 { JobState::Queued } else { JobState::Failed });
    }
    let dead = store.jobs().get(&queued.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count, dead.attempt), (JobState::Failed, 3, 3));
    assert!(dead.error.unwrap().contains("out of memory") && dead.finished.is_some());
}

async fn cancel_and_resume(store: Arc<Store>) {
    let queued = store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    assert_eq!(store.jobs().cancel(&queued.id).await.unwrap().state, JobState::Cancelled);
    conflict(store.jobs().cancel(&queued.id).await);
    let back = store.jobs().resume(&queued.id).await.unwrap();
    assert_eq!((back.state, back.finished, back.error), (JobState::Queued, None, None));
    conflict(store.jobs().resume(&queued.id).await);
    let (_, fence) = claim(&store, "w").await.unwrap();
    store.jobs().checkpoint(&fence, "ckpt-1").await.unwrap();
    let running = store.jobs().cancel(&queued.id).await.unwrap();
    assert_eq!((running.state, running.cancel_requested), (JobState::Running, true));
    assert!(store.jobs().heartbeat(&fence, 60, None).await.unwrap(), "the worker hears of it");
    assert_eq!(store.jobs().requeue(&fence, Some("killed"), 3).await.unwrap(), JobState::Cancelled);
    let resumed = store.jobs().resume(&queued.id).await.unwrap();
    assert_eq!((resumed.cancel_requested, resumed.checkpoint_uri), (false, Some("ckpt-1".into())));
    assert!(matches!(store.jobs().cancel(&"no".into()).await, Err(StoreError::NotFound { .. })));
}

async fn a_name_for_a_model_is_that_of_one_live_job(store: Arc<Store>) {
    let named = |kind: &str, name: &str| Job { args: json!({"publish_as": name}), ..job(kind, None, 0) };
    let first = store.jobs().enqueue(named("reward", "judge")).await.unwrap();
    let refused = store.jobs().enqueue(named("sft", "judge")).await;
    assert!(
        matches!(&refused, Err(StoreError::Conflict(said)) if said.contains(first.id.as_str()) && said.contains("'judge'")),
        "{refused:?}"
    );
    store.jobs().enqueue(named("sft", "other")).await.unwrap();
    for _ in 0..2 {
        store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    }
    // A running job will take the name too; one that has ended without a model has left it free.
    let (running, fence) = claim(&store, "a").await.unwrap();
    assert_eq!(running.id, first.id);
    conflict(store.jobs().enqueue(named("sft", "judge")).await);
    store.jobs().finish(&fence, JobState::Cancelled, None, None).await.unwrap();
    // Of many at once, one is queued.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, job) = (store.clone(), named("sft", "judge"));
        tasks.spawn(async move { store.jobs().enqueue(job).await.is_ok() });
    }
    let queued = tasks.join_all().await.into_iter().filter(|queued| *queued).count();
    assert_eq!(queued, 1);
}

async fn unique_keys_cover_live_jobs_only(store: Arc<Store>) {
    let first = store.jobs().enqueue(job("sft", Some("k"), 0)).await.unwrap();
    conflict(store.jobs().enqueue(job("sft", Some("k"), 0)).await);
    store.jobs().enqueue(job("sft", Some("other"), 0)).await.unwrap();
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    store.jobs().cancel(&first.id).await.unwrap();
    store.jobs().enqueue(job("sft", Some("k"), 0)).await.unwrap();
    conflict(store.jobs().resume(&first.id).await);
}

async fn events_are_numbered(store: Arc<Store>) {
    let id = store.jobs().enqueue(job("sft", None, 0)).await.unwrap().id;
    let event = |i: i64| ("log".to_owned(), json!({"line": i}));
    assert_eq!(store.jobs().append_events(&id, &[event(1), event(2)]).await.unwrap(), 2);
    let writers: Vec<_> = (0..5)
        .map(|i| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move { store.jobs().append_events(&id, &[("log".into(), json!(i))]).await.unwrap() })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let all = store.jobs().events(&id, 0, 100).await.unwrap();
    assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    assert_eq!((all[1].kind.as_str(), &all[1].data), ("log", &json!({"line": 2})));
    assert_eq!(store.jobs().events(&id, 5, 1).await.unwrap()[0].seq, 6);
    assert!(matches!(store.jobs().append_events(&"no".into(), &[]).await, Err(StoreError::NotFound { .. })));
}

async fn curves(store: Arc<Store>) {
    let id = store.jobs().enqueue(job("sft", None, 0)).await.unwrap().id;
    let point = |step, name: &str, value| Metric { step, name: name.into(), value };
    store
        .jobs()
        .put_metrics(&id, &[point(1, "loss", 3.0), point(1, "kl", 0.0), point(2, "loss", f64::NAN)])
        .await
        .unwrap();
    store.jobs().put_metrics(&id, &[point(2, "loss", 2.5), point(1, "loss", 2.75)]).await.unwrap();
    let all = store.jobs().metrics(&id, &[]).await.unwrap();
    assert_eq!(all, [point(1, "kl", 0.0), point(1, "loss", 2.75), point(2, "loss", 2.5)]);
    let some = store.jobs().metrics(&id, &["loss".into(), "nothing".into()]).await.unwrap();
    assert_eq!(some, all[1..]);
}
