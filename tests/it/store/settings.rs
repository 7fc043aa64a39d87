//! Settings changed while running, the use of each version, how fast judgments come in, daily tokens of keys.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::conformance;
use super::fixture::*;

conformance!(
    settings_are_replaced_and_removed,
    use_of_versions_counts_last_thumbs,
    judgments_are_counted_by_day,
    tokens_of_a_key_add_up_by_day
);

async fn tokens_of_a_key_add_up_by_day(store: Arc<Store>) {
    let key = ApiKey {
        id: ApiKeyId::new(),
        name: "k".into(),
        key_hash: "h".into(),
        scopes: vec!["inference".into()],
        labeler_id: None,
        daily_tokens: Some(10),
        origin: KeyOrigin::Created,
        revoked: false,
        created: T0,
    };
    store.api_keys().put(key.clone()).await.unwrap();
    assert_eq!(store.api_keys().tokens(&key.id, 3).await.unwrap(), 0);
    for (day, tokens) in [(3, 5), (3, 7), (4, 1)] {
        store.api_keys().add_tokens(&key.id, day, tokens).await.unwrap();
    }
    let mut counted = Vec::new();
    for day in 2..=5 {
        counted.push(store.api_keys().tokens(&key.id, day).await.unwrap());
    }
    assert_eq!(counted, [0, 12, 1, 0]);
}

async fn settings_are_replaced_and_removed(store: Arc<Store>) {
    assert_eq!(store.settings().list().await.unwrap(), vec![]);
    store.settings().put("b", Some(json!(3)), "admin", T0).await.unwrap();
    store.settings().put("a", Some(json!({"share": 0.1})), "admin", T0).await.unwrap();
    store.settings().put("b", Some(json!("x")), "ada", T0 + 1).await.unwrap();
    let setting =
        |name: &str, value, updated, by: &str| Setting { name: name.into(), value, updated, updated_by: by.into() };
    let stored = store.settings().list().await.unwrap();
    assert_eq!(stored, vec![setting("a", json!({"share": 0.1}), T0, "admin"), setting("b", json!("x"), T0 + 1, "ada")]);
    store.settings().put("a", None, "admin", T0).await.unwrap();
    store.settings().put("never", None, "admin", T0).await.unwrap();
    assert_eq!(store.settings().list().await.unwrap().len(), 1);
}

async fn use_of_versions_counts_last_thumbs(store: Arc<Store>) {
    let (old, new) = (model("old", ModelKind::Policy), model("new", ModelKind::Policy));
    let prompt = store.prompts().put(prompt("p")).await.unwrap();
    for m in [&old, &new] {
        store.models().put(m.clone()).await.unwrap();
    }
    let written = |by: &ModelVersion, request: &str, finish: &str, created| Completion {
        model_version_id: Some(by.id.clone()),
        origin: CompletionOrigin::Model,
        token_ids: vec![1, 2, 3],
        request_id: Some(request.into()),
        finish_reason: Some(finish.into()),
        created,
        ..completion(&prompt.id, "text")
    };
    let completions = vec![
        written(&old, "r0", "stop", T0 - 1),
        written(&old, "r1", "stop", T0),
        written(&new, "r2", "length", T0),
        written(&new, "r2", "abort", T0 + 5),
        completion(&prompt.id, "by a person"),
    ];
    store.completions().put(completions.clone()).await.unwrap();
    let thumb = |on: &Completion, value: serde_json::Value, who: &str| FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: on.id.clone(),
        kind: "thumb".into(),
        value,
        actor_hash: Some(who.into()),
        idempotency_key: FeedbackId::new().to_string(),
        created: T0,
    };
    // Ada changes her mind: her last thumb counts. Ids made in one millisecond do not tell an order.
    let mut first = thumb(&completions[2], json!("up"), "ada");
    first.id = "00000000000000000000000001".into();
    for event in [
        first,
        thumb(&completions[2], json!("down"), "ada"),
        thumb(&completions[2], json!(true), "bob"),
        thumb(&completions[3], json!(-1), "bob"),
        thumb(&completions[0], json!("up"), "bob"),
    ] {
        store.feedback().put(event).await.unwrap();
    }
    let mut used = store.models().usage(T0).await.unwrap();
    used.sort_by_key(|u| u.requests + u.completions);
    let [of_old, of_new] = used.as_slice() else { panic!("{used:?}") };
    assert_eq!((of_old.model_version_id.clone(), of_old.requests, of_old.completions), (old.id, 1, 1));
    assert_eq!((of_old.thumbs_up, of_old.cut, of_old.tokens), (0, 0, 3), "what was before the time does not count");
    assert_eq!((of_new.requests, of_new.completions, of_new.tokens), (1, 2, 6));
    assert_eq!((of_new.cut, of_new.aborted), (1, 1));
    assert_eq!((of_new.thumbs_up, of_new.thumbs_down), (1, 2));
}

async fn judgments_are_counted_by_day(store: Arc<Store>) {
    const DAY: Micros = 86_400_000_000;
    let ada = labeler(store.as_ref(), "ada").await;
    for (i, (day, active_ms, outcome)) in
        [(0, 100, Outcome::Ranked), (2, 300, Outcome::Skip), (2, 900, Outcome::Ranked)].into_iter().enumerate()
    {
        let set = stored_set(store.as_ref(), &format!("p{i}"), &["a", "b"], 1).await;
        let now = T0 + day * DAY;
        let lease = LeaseRequest { set_id: Some(set.id.clone()), ..lease(&ada, now) };
        let assignment = store.leases().next(lease).await.unwrap().unwrap();
        let word = judgment(&set, &ada, Some(&assignment), &format!("k{i}"));
        let items = if outcome == Outcome::Ranked { word.items.clone() } else { vec![] };
        let strength = word.strength.filter(|_| outcome == Outcome::Ranked);
        let word = Judgment { active_ms, outcome, items, strength, created: now, ..word };
        store.judgments().submit(submit(word, Some(&assignment), now)).await.unwrap();
    }
    let all = store.judgments().throughput(0, None).await.unwrap();
    let day = |n, judgments, skips| DayCount { day: T0 / DAY + n, judgments, skips };
    assert_eq!(all.days, vec![day(0, 1, 0), day(2, 2, 1)]);
    assert_eq!(all.median_active_ms, Some(300));
    let late = store.judgments().throughput(T0 + DAY, None).await.unwrap();
    assert_eq!((late.days.len(), late.median_active_ms), (1, Some(300)));
    assert_eq!(store.judgments().throughput(T0 + 9 * DAY, None).await.unwrap().median_active_ms, None);
}
