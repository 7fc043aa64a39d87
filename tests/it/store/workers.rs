//! The part of the conformance suite for several servers: fenced reports, a job's one end, announcements, and
//! that no method of the store is left out of the suite.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::conformance;
use super::fixture::*;

conformance!(
    reports_are_whole_and_fenced,
    a_job_has_one_end_and_one_version,
    every_change_of_state_has_an_event,
    activations_are_announced,
    files_of_a_version,
    judgments_are_counted,
    settings_are_kept_and_removed,
    use_and_throughput_are_counted,
);

fn lost<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(StoreError::LeaseLost(_))), "{result:?}");
}

fn conflict<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
}

async fn claimed(store: &Store, owner: &str, lease_seconds: i64) -> (Job, Fence) {
    store.jobs().claim(owner, lease_seconds, &[], 10).await.unwrap().expect("a job to claim")
}

fn report() -> JobReport {
    JobReport {
        progress: Some(Progress { phase: "train".into(), step: 7, ..Default::default() }),
        checkpoint: Some("ckpt-7".into()),
        metrics: vec![Metric { step: 7, name: "loss".into(), value: 0.5 }],
        events: vec![("log".into(), json!({"message": "m"}))],
    }
}

async fn reports_are_whole_and_fenced(store: Arc<Store>) {
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let (first, paused) = claimed(&store, "paused", -1).await;
    let (second, fence) = claimed(&store, "awake", 60).await;
    assert_eq!(second.id, first.id);
    // The one that slept through its lease writes nothing, not even what needs no lease by itself.
    lost(store.jobs().report(&paused, 60, report()).await);
    let seen = store.jobs().get(&first.id).await.unwrap();
    assert_eq!((seen.progress, seen.checkpoint_uri), (None, None));
    assert!(store.jobs().metrics(&first.id, &[]).await.unwrap().is_empty());
    assert!(!store.jobs().report(&fence, 600, report()).await.unwrap());
    let seen = store.jobs().get(&first.id).await.unwrap();
    assert_eq!((seen.progress.map(|p| p.step), seen.checkpoint_uri.as_deref()), (Some(7), Some("ckpt-7")));
    assert!(seen.lease_expires.unwrap() > second.lease_expires.unwrap() + 500_000_000, "the lease is longer");
    assert_eq!(store.jobs().metrics(&first.id, &[]).await.unwrap().len(), 1);
    store.jobs().cancel(&first.id).await.unwrap();
    assert!(store.jobs().report(&fence, 60, JobReport::default()).await.unwrap(), "cancel was requested");
    let again = store.jobs().get(&first.id).await.unwrap();
    assert_eq!(again.checkpoint_uri.as_deref(), Some("ckpt-7"), "an empty report takes nothing back");
}

async fn a_job_has_one_end_and_one_version(store: Arc<Store>) {
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let (job, paused) = claimed(&store, "paused", -1).await;
    let (_, fence) = claimed(&store, "awake", 60).await;
    let made = |name: &str| ModelVersion { job_id: Some(job.id.clone()), ..model(name, ModelKind::Policy) };
    let files = vec![ModelFile { path: "model.safetensors".into(), bytes: 3, sha256: "ab".into() }];
    lost(store.jobs().complete(&paused, made("late"), files.clone(), json!({})).await);
    // A name that is taken registers nothing and ends nothing.
    store.models().put(model("taken", ModelKind::Policy)).await.unwrap();
    conflict(store.jobs().complete(&fence, made("taken"), files.clone(), json!({})).await);
    assert_eq!(store.jobs().get(&job.id).await.unwrap().state, JobState::Running);
    let version = made("result");
    store.jobs().complete(&fence, version.clone(), files.clone(), json!({"model": "result"})).await.unwrap();
    let done = store.jobs().get(&job.id).await.unwrap();
    assert_eq!((done.state, done.result), (JobState::Succeeded, Some(json!({"model": "result"}))));
    assert_eq!(store.models().find("result").await.unwrap().unwrap().job_id, Some(job.id.clone()));
    assert_eq!(store.models().files(&version.id).await.unwrap(), files);
    lost(store.jobs().complete(&fence, made("twice"), files, json!({})).await);
    assert_eq!(store.models().list().await.unwrap().iter().filter(|m| m.job_id.is_some()).count(), 1);
}

async fn every_change_of_state_has_an_event(store: Arc<Store>) {
    let id = store.jobs().enqueue(job("sft", None, 0)).await.unwrap().id;
    let (_, fence) = claimed(&store, "a", 60).await;
    store.jobs().requeue(&fence, None, 3).await.unwrap();
    let (_, fence) = claimed(&store, "b", -1).await;
    lost(store.jobs().finish(&Fence { lease_owner: "a".into(), ..fence }, JobState::Failed, None, None).await);
    let (_, fence) = claimed(&store, "c", 60).await;
    store.jobs().finish(&fence, JobState::Failed, None, Some("why")).await.unwrap();
    store.jobs().resume(&id).await.unwrap();
    store.jobs().cancel(&id).await.unwrap();
    let events = store.jobs().events(&id, 0, 100).await.unwrap();
    let states: Vec<_> = events.iter().filter(|e| e.kind == "state").map(|e| e.data["state"].clone()).collect();
    assert_eq!(states, ["running", "queued", "running", "running", "failed", "cancelled"]);
    assert_eq!(events.iter().find(|e| e.data["state"] == "failed").unwrap().data["error"], "why");
    // Given up by the queue itself: followers hear of that too.
    let poison = store.jobs().enqueue(job("ppo", None, 0)).await.unwrap().id;
    store.jobs().claim("d", -1, &["ppo"], 1).await.unwrap().unwrap();
    assert_eq!(store.jobs().claim("e", 60, &["ppo"], 1).await.unwrap(), None);
    let last = store.jobs().events(&poison, 0, 100).await.unwrap().pop().unwrap();
    assert_eq!(last.data["state"], "failed");
}

async fn activations_are_announced(store: Arc<Store>) {
    let mut heard = store.models().activations();
    let version = model("a", ModelKind::Policy);
    store.models().put(version.clone()).await.unwrap();
    // Once it listens it says so, because something may have happened before.
    heard.changed().await.unwrap();
    store.models().activate(&version.id, T0).await.unwrap();
    heard.changed().await.unwrap();
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().id, version.id);
}

async fn files_of_a_version(store: Arc<Store>) {
    let version = model("m", ModelKind::Policy);
    store.models().put(version.clone()).await.unwrap();
    assert!(store.models().files(&version.id).await.unwrap().is_empty());
    let file = |path: &str| ModelFile { path: path.into(), bytes: i64::MAX, sha256: "ff".into() };
    store.models().put_files(&version.id, vec![file("b"), file("a/c"), file("B")]).await.unwrap();
    assert_eq!(store.models().files(&version.id).await.unwrap(), [file("B"), file("a/c"), file("b")], "by bytes");
    store.models().put_files(&version.id, vec![file("only")]).await.unwrap();
    assert_eq!(store.models().files(&version.id).await.unwrap(), [file("only")]);
    let negative = ModelFile { bytes: -1, ..file("x") };
    conflict(store.models().put_files(&version.id, vec![negative]).await);
    assert_eq!(store.models().files(&version.id).await.unwrap(), [file("only")], "refused whole");
    assert!(matches!(store.models().put_files(&"no".into(), vec![]).await, Err(StoreError::NotFound { .. })));
}

async fn judgments_are_counted(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    assert_eq!(store.judgments().counts(&ada, 0).await.unwrap(), LabelerCounts::default());
    for (i, created) in [(0, T0), (1, T0 + 10), (2, T0 + 20)] {
        let set = stored_set(&store, &format!("q{i}"), &["a", "b"], 1).await;
        let mut given = judgment(&set, &ada, None, &format!("k{i}"));
        given.created = created;
        store.judgments().submit(submit(given.clone(), None, created)).await.unwrap();
        if i == 0 {
            let mut revised = judgment(&set, &ada, None, "revision");
            revised.supersedes_id = Some(given.id);
            store.judgments().submit(submit(revised, None, created)).await.unwrap();
        }
    }
    let set = stored_set(&store, "skipped", &["a", "b"], 1).await;
    let mut skip = judgment(&set, &ada, None, "skip");
    (skip.outcome, skip.items, skip.strength, skip.created) = (Outcome::Skip, vec![], None, T0 + 30);
    store.judgments().submit(submit(skip, None, T0 + 30)).await.unwrap();
    let counts = store.judgments().counts(&ada, T0 + 10).await.unwrap();
    assert_eq!((counts.today, counts.total), (2, 3), "neither revisions nor skips count");
    assert_eq!((counts.skipped_today, counts.skipped_total), (1, 1));
}

async fn settings_are_kept_and_removed(store: Arc<Store>) {
    assert_eq!(store.settings().list().await.unwrap(), vec![]);
    store.settings().put("b.second", Some(json!({"deep": [1, null]})), "admin", T0).await.unwrap();
    store.settings().put("a.first", Some(json!(1)), "admin", T0).await.unwrap();
    store.settings().put("a.first", Some(json!("two")), "ada", T0 + 1).await.unwrap();
    let all = store.settings().list().await.unwrap();
    let seen: Vec<_> = all.iter().map(|s| (s.name.as_str(), &s.value, s.updated, s.updated_by.as_str())).collect();
    let deep = json!({"deep": [1, null]});
    assert_eq!(seen, [("a.first", &json!("two"), T0 + 1, "ada"), ("b.second", &deep, T0, "admin")]);
    store.settings().put("a.first", None, "admin", T0 + 2).await.unwrap();
    store.settings().put("never.there", None, "admin", T0 + 2).await.unwrap();
    assert_eq!(store.settings().list().await.unwrap().len(), 1);
}

async fn use_and_throughput_are_counted(store: Arc<Store>) {
    let version = model("m", ModelKind::Policy);
    store.models().put(version.clone()).await.unwrap();
    let set = stored_set(&store, "q", &["a", "b"], 9).await;
    let written = |request: &str, reason: &str, created: Micros| Completion {
        model_version_id: Some(version.id.clone()),
        origin: CompletionOrigin::Model,
        request_id: Some(request.into()),
        finish_reason: Some(reason.into()),
        created,
        ..completion(&set.prompt_id, reason)
    };
    let all = vec![written("r1", "stop", T0), written("r1", "length", T0), written("r0", "stop", T0 - 1)];
    store.completions().put(all.clone()).await.unwrap();
    let thumb = |i: usize, value: serde_json::Value, key: &str| FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: all[i].id.clone(),
        kind: "thumb".into(),
        value,
        actor_hash: Some("x".into()),
        idempotency_key: key.into(),
        created: T0,
    };
    store.feedback().put(thumb(0, json!("up"), "1")).await.unwrap();
    store.feedback().put(thumb(1, json!("down"), "2")).await.unwrap();
    let used = store.models().usage(T0).await.unwrap();
    assert_eq!(used.len(), 1, "people's texts are no model's");
    let m = &used[0];
    assert_eq!((&m.model_version_id, m.requests, m.completions, m.tokens), (&version.id, 1, 2, 6));
    assert_eq!((m.cut, m.aborted, m.thumbs_up, m.thumbs_down), (1, 0, 1, 1));

    assert_eq!(
        store.judgments().throughput(0, None).await.unwrap(),
        Throughput { days: vec![], median_active_ms: None }
    );
    const DAY: Micros = 86_400_000_000;
    for (i, (person, created)) in [("a", T0), ("b", T0), ("c", T0 + DAY)].into_iter().enumerate() {
        let who = labeler(&store, person).await;
        let mut given = judgment(&set, &who, None, &format!("k{i}"));
        (given.created, given.active_ms) = (created, 100 * (i as i64 + 1));
        store.judgments().submit(submit(given, None, created)).await.unwrap();
    }
    let seen = store.judgments().throughput(T0, None).await.unwrap();
    let days: Vec<_> = seen.days.iter().map(|d| (d.day, d.judgments, d.skips)).collect();
    assert_eq!((days, seen.median_active_ms), (vec![(T0 / DAY, 2, 0), (T0 / DAY + 1, 1, 0)], Some(200)));
}

/// A method that no case of the suite calls is one on which the two databases may drift apart.
#[test]
fn every_method_is_in_the_suite() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let suite: String = std::fs::read_dir(root.join("tests/it/store"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.ends_with("fixture.rs") || read(p).contains("conformance!("))
        .map(|p| read(&p))
        .collect();
    let suite = suite.split_whitespace().collect::<String>();
    let mut missing = Vec::new();
    let mut methods = 0;
    for file in std::fs::read_dir(root.join("src/store/views")).unwrap().map(|e| e.unwrap().path()) {
        let view = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = read(&file);
        let named = text.lines().filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("pub async fn ").or_else(|| line.strip_prefix("pub fn ")).filter(|_| view != "mod")
        });
        for method in named.filter_map(|rest| rest.split('(').next()) {
            methods += 1;
            if !suite.contains(&format!(".{view}().{method}(")) {
                missing.push(format!("{view}().{method}"));
            }
        }
    }
    assert!(methods > 150, "{methods}");
    assert!(missing.is_empty(), "not in the conformance suite: {missing:?}");
}
