//! Both backends: jobs that people name and search, and what is known of two versions.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::{conformance, is_not_found};
use super::fixture::*;

conformance!(jobs_are_named_and_found, versions_meet, promotions_are_remembered);

async fn jobs_are_named_and_found(store: Arc<Store>) {
    let named = JobNotes {
        name: Some("Kürzere Antworten".into()),
        note: Some("100% of_it".into()),
        tags: vec!["short".into()],
        created_by: Some("ada".into()),
    };
    let first = store.jobs().enqueue(Job { notes: named.clone(), ..job("sft", None, 0) }).await.unwrap();
    assert_eq!(first.notes, named);
    let second = store.jobs().enqueue(job("ppo", None, 0)).await.unwrap();
    assert_eq!(second.notes, JobNotes::default());
    let find = async |filter: JobFilter| {
        let found = store.jobs().find(Page { after: None, limit: 10 }, &filter).await.unwrap();
        found.into_iter().map(|j| j.id).collect::<Vec<_>>()
    };
    let text = |t: &str| JobFilter { text: Some(t.into()), ..JobFilter::default() };
    assert_eq!(find(JobFilter::default()).await, [second.id.clone(), first.id.clone()]);
    assert_eq!(find(text("ANTWORTEN")).await, std::slice::from_ref(&first.id));
    assert_eq!(find(text("100% OF_IT")).await, std::slice::from_ref(&first.id));
    assert_eq!(find(text("100_ of")).await, [] as [JobId; 0], "_ and % are themselves");
    assert_eq!(find(text("base")).await.len(), 2, "arguments are searched");
    assert_eq!(find(JobFilter { kind: Some("ppo".into()), ..text("base") }).await, std::slice::from_ref(&second.id));
    assert_eq!(find(JobFilter { state: Some(JobState::Failed), ..JobFilter::default() }).await, [] as [JobId; 0]);
    let after = Page { after: Some(second.id.to_string()), limit: 10 };
    assert_eq!(store.jobs().find(after, &JobFilter::default()).await.unwrap()[0].id, first.id);

    let other = JobNotes { note: None, created_by: Some("eve".into()), ..named.clone() };
    let changed = store.jobs().describe(&first.id, other).await.unwrap();
    assert_eq!(changed.notes, JobNotes { note: None, ..named }, "the author stays");
    is_not_found(store.jobs().describe(&"nope".into(), JobNotes::default()).await);
    for (i, kind) in ["sample", "log", "sample"].iter().enumerate() {
        store.jobs().append_events(&first.id, &[((*kind).to_owned(), json!({"step": i}))]).await.unwrap();
    }
    assert_eq!(store.jobs().samples(&first.id, 10).await.unwrap(), [json!({"step": 0}), json!({"step": 2})]);
}

async fn versions_meet(store: Arc<Store>) {
    let (old, new) = (model("old", ModelKind::Policy), model("new", ModelKind::Policy));
    for m in [&old, &new] {
        store.models().put(m.clone()).await.unwrap();
    }
    let ada = labeler(&store, "ada").await;
    let prompt = store.prompts().put(prompt("p")).await.unwrap();
    let by = |text: &str, m: &ModelVersion, reward| Completion {
        model_version_id: Some(m.id.clone()),
        origin: CompletionOrigin::Model,
        reward,
        ..completion(&prompt.id, text)
    };
    let written = vec![by("n", &new, Some(1.5)), by("o", &old, None), completion(&prompt.id, "human")];
    store.completions().put(written.clone()).await.unwrap();
    let set = comparison_set(&prompt.id, &written, 2);
    store.sets().put(set.clone()).await.unwrap();
    assert_eq!(store.models().set_counts(&new.id).await.unwrap(), (1, 0));
    assert_eq!(store.models().meetings(&new.id, &old.id).await.unwrap(), []);

    let first = judgment(&set, &ada, None, "k1");
    let stored = store.judgments().submit(submit(first, None, T0)).await.unwrap().judgment;
    let met = store.models().meetings(&new.id, &old.id).await.unwrap();
    assert_eq!((met.len(), met[0].tier_a, met[0].tier_b), (1, 0, 1));
    assert_eq!(met[0].prompt_id, prompt.id);
    assert_eq!(store.models().meetings(&old.id, &new.id).await.unwrap()[0].tier_a, 1);
    // A correction counts instead of what it corrects, and is no new ranking.
    let mut second = Judgment {
        id: JudgmentId::new(),
        revision: 2,
        supersedes_id: Some(stored.id.clone()),
        idempotency_key: "k2".into(),
        ..stored.clone()
    };
    second.items.iter_mut().for_each(|i| i.tier = 0);
    store.judgments().submit(submit(second, None, T0)).await.unwrap();
    let met = store.models().meetings(&new.id, &old.id).await.unwrap();
    assert_eq!((met.len(), met[0].tier_a, met[0].tier_b), (1, 0, 0));
    assert_eq!(store.models().set_counts(&new.id).await.unwrap(), (1, 1));
    assert_eq!(store.models().rankings_since(T0 - 1).await.unwrap(), 1);
    assert_eq!(store.models().rankings_since(T0).await.unwrap(), 0);

    let shared = store.models().shared_prompts(&new.id, &old.id, 10).await.unwrap();
    assert_eq!(shared.len(), 1);
    assert_eq!((shared[0].text_a.as_str(), shared[0].reward_a), ("n", Some(1.5)));
    assert_eq!((shared[0].text_b.as_str(), shared[0].reward_b), ("o", None));
    assert_eq!(shared[0].messages[0]["content"], "p");
    // The newest text of each version speaks for it.
    store.completions().put(vec![by("newer", &new, None)]).await.unwrap();
    let shared = store.models().shared_prompts(&new.id, &old.id, 10).await.unwrap();
    assert_eq!((shared.len(), shared[0].text_a.as_str()), (1, "newer"));
}

async fn promotions_are_remembered(store: Arc<Store>) {
    store.audit_log().append(&"ada".into(), "promote", "v2", json!({"replaced": "v1"}), T0).await.unwrap();
    store.audit_log().append(&"ada".into(), "retire", "v0", json!({}), T0).await.unwrap();
    store.audit_log().append(&"ada".into(), "roll_back", "v1", json!({}), T0 + 1).await.unwrap();
    let step = |to: &str, from: Option<&str>, roll_back, at| Activation {
        to: to.into(),
        from: from.map(Into::into),
        roll_back,
        at,
    };
    let expected = [step("v2", Some("v1"), false, T0), step("v1", None, true, T0 + 1)];
    assert_eq!(store.models().activation_history().await.unwrap(), expected);
}
