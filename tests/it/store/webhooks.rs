//! Webhooks' part of the conformance suite: events are found once, deliveries have one sender, notices begin once.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::{conformance, is_lost, is_not_found};
use super::fixture::*;

conformance!(
    stored_events_are_found_once,
    one_server_sends_a_delivery,
    deliveries_are_listed_sent_again_and_removed,
    notices_begin_once,
    scores_of_known_answers,
    a_promotion_has_its_audit_entry,
);

async fn webhook(store: &Store, id: &str, created: Micros) -> Webhook {
    let events = vec![WebhookEvent::JudgmentCreated, WebhookEvent::JobFailed];
    let webhook = Webhook { id: id.into(), url: "https://example.org/hook".into(), events, created };
    store.webhooks().put(webhook.clone(), "whsec_x").await.unwrap();
    webhook
}

fn new(id: &str, event: WebhookEvent, source: &str, now: Micros) -> NewDelivery {
    NewDelivery { id: id.into(), event, source: source.into(), body: format!("{{\"id\":\"{id}\"}}"), now }
}

async fn judged_set(store: &Store, text: &str, created: Micros) -> Judgment {
    let set = stored_set(store, text, &["a", "b"], 3).await;
    let given = Judgment { created, ..judgment(&set, &"admin".into(), None, text) };
    store.judgments().submit(submit(given, None, created)).await.unwrap().judgment
}

async fn stored_events_are_found_once(store: Arc<Store>) {
    assert_eq!(store.webhooks().list().await.unwrap(), []);
    let hook = webhook(&store, "w", T0).await;
    let listed = store.webhooks().list().await.unwrap();
    assert_eq!(listed, [Subscription { webhook: hook, secret: "whsec_x".into(), derived_until: T0 }]);
    let found = async |event, since, limit| {
        let found: Vec<Occurrence> = store.webhooks().undelivered("w", event, since, limit).await.unwrap();
        assert!(found.iter().all(|o| o.event == event));
        found
    };
    // Judgments: since a time, some at once, without imported ones.
    judged_set(&store, "before", T0 - 1).await;
    let first = judged_set(&store, "first", T0).await;
    let second = judged_set(&store, "second", T0 + 5).await;
    let imported = prompt("imported");
    let texts = [completion(&imported.id, "x"), completion(&imported.id, "y")];
    let set = comparison_set(&imported.id, &texts, 1);
    let ranking = Judgment { created: T0 + 6, ..judgment(&set, &"import".into(), None, "imported") };
    import(&store, imported, texts.to_vec(), set, ranking).await;
    let judgments = WebhookEvent::JudgmentCreated;
    let sources = |found: Vec<Occurrence>| found.into_iter().map(|o| o.source).collect::<Vec<_>>();
    assert_eq!(sources(found(judgments, T0, 10).await), [first.id.to_string(), second.id.to_string()]);
    let one = found(judgments, T0, 1).await.remove(0);
    assert_eq!((one.at, &one.source), (T0, &first.id.to_string()));
    let data = json!({"judgment_id": first.id, "set_id": first.set_id, "outcome": "ranked", "revision": 1});
    assert_eq!(one.data, data);
    // A stored delivery ends the search for its event at this webhook only, whoever stores it again.
    webhook(&store, "v", T0).await;
    for id in ["d1", "d2"] {
        let delivery = new(id, judgments, &first.id.to_string(), T0 + 9);
        store.webhooks().enqueue("w", vec![delivery], Some(T0 + 7)).await.unwrap();
    }
    assert_eq!(sources(found(judgments, T0, 10).await), [second.id.to_string()]);
    assert_eq!(store.webhooks().undelivered("v", judgments, T0, 10).await.unwrap().len(), 2);
    assert_eq!(store.webhooks().deliveries(None, None, &page(10)).await.unwrap().len(), 1);
    let derived: Vec<_> = store.webhooks().list().await.unwrap().into_iter().map(|s| s.derived_until).collect();
    assert_eq!(derived, [T0, T0 + 7], "those of v and w");
    // Jobs: every end of each, by its event; the names of texts are not among the data.
    let before = store.now().await.unwrap();
    let named = JobNotes { name: Some("first try".into()), note: Some("why".into()), ..JobNotes::default() };
    let queued = store.jobs().enqueue(Job { notes: named, ..job("sft", None, 0) }).await.unwrap();
    for _ in 0..2 {
        let (_, fence) = store.jobs().claim("me", 60, &[], 3).await.unwrap().unwrap();
        store.jobs().finish(&fence, JobState::Failed, None, Some("a secret reason")).await.unwrap();
        assert_eq!(found(WebhookEvent::JobSucceeded, before, 10).await, []);
        store.jobs().resume(&queued.id).await.unwrap();
    }
    let failures = found(WebhookEvent::JobFailed, before, 10).await;
    assert_eq!(failures.len(), 2);
    let data = json!({"job_id": queued.id, "kind": "sft", "name": "first try", "model_id": null});
    assert!(failures.iter().all(|o| o.data == data), "{failures:?}");
    let delivery = new("d3", WebhookEvent::JobFailed, &failures[0].source, T0);
    store.webhooks().enqueue("w", vec![delivery], None).await.unwrap();
    assert_eq!(found(WebhookEvent::JobFailed, before, 10).await, failures[1..]);
    let (_, fence) = store.jobs().claim("me", 60, &[], 3).await.unwrap().unwrap();
    let made = ModelVersion { job_id: Some(queued.id.clone()), ..model("made", ModelKind::Policy) };
    store.models().put(made.clone()).await.unwrap();
    store.jobs().finish(&fence, JobState::Succeeded, None, None).await.unwrap();
    let success = found(WebhookEvent::JobSucceeded, before, 10).await;
    assert_eq!((success.len(), &success[0].data["model_id"]), (1, &json!(made.id)));
    // A webhook that is gone gets nothing.
    store.webhooks().delete("w").await.unwrap();
    is_not_found(store.webhooks().delete("w").await);
    store.webhooks().enqueue("w", vec![new("d4", judgments, "s", T0)], None).await.unwrap();
    assert_eq!(store.webhooks().deliveries(None, None, &page(10)).await.unwrap(), []);
}

async fn one_server_sends_a_delivery(store: Arc<Store>) {
    webhook(&store, "w", T0).await;
    webhook(&store, "v", T0).await;
    let event = WebhookEvent::Test;
    let deliveries = (0..3).map(|i| new(&format!("d{i}"), event, &i.to_string(), T0 + i)).collect();
    store.webhooks().enqueue("w", deliveries, None).await.unwrap();
    let claim = async |me: &str, now, limit| {
        let held: Vec<DueDelivery> = store.webhooks().claim("w", me, now, now + 10, limit).await.unwrap();
        held.into_iter().map(|d| d.id).collect::<Vec<_>>()
    };
    assert_eq!(claim("one", T0 - 1, 9).await, [""; 0], "nothing is due yet");
    assert_eq!(store.webhooks().claim("v", "one", T0 + 9, T0 + 19, 9).await.unwrap(), []);
    assert_eq!(claim("one", T0 + 2, 2).await, ["d0", "d1"]);
    assert_eq!(claim("two", T0 + 3, 9).await, ["d2"], "the others are held");
    let end = |state, code, next| DeliveryEnd {
        state,
        code,
        error: code.is_none().then(|| "no answer".to_owned()),
        next_attempt: next,
        now: T0 + 4,
    };
    store.webhooks().finish("d0", "one", end(DeliveryState::Delivered, Some(204), T0 + 4)).await.unwrap();
    store.webhooks().finish("d2", "two", end(DeliveryState::Pending, None, T0 + 50)).await.unwrap();
    is_lost(store.webhooks().finish("d1", "two", end(DeliveryState::Delivered, Some(200), T0)).await);
    // The server that holds d1 is gone: another one takes over, and the first one's result counts no more.
    assert_eq!(claim("two", T0 + 30, 9).await, ["d1"]);
    is_lost(store.webhooks().finish("d1", "one", end(DeliveryState::Delivered, Some(200), T0)).await);
    store.webhooks().finish("d1", "two", end(DeliveryState::Failed, Some(500), T0 + 4)).await.unwrap();
    assert_eq!(claim("two", T0 + 49, 9).await, [""; 0]);
    assert_eq!(claim("one", T0 + 50, 9).await, ["d2"]);
    // A hold that ends later than any server holds was written by a clock that was ahead.
    let taken = store.webhooks().claim("w", "two", T0 + 50, T0 + 55, 9).await.unwrap();
    assert_eq!(taken.len(), 1);
    let d = store.webhooks().delivery("d2").await.unwrap();
    assert_eq!((d.state, d.attempts, d.last_code), (DeliveryState::Pending, 1, None));
    assert_eq!((d.last_error.as_deref(), d.ended), (Some("no answer"), None));
    let d = store.webhooks().delivery("d0").await.unwrap();
    assert_eq!((d.state, d.last_code, d.ended, d.created), (DeliveryState::Delivered, Some(204), Some(T0 + 4), T0));
    // Two servers that claim at once share nothing.
    let many = (0..40).map(|i| new(&format!("m{i}"), event, &format!("m{i}"), T0)).collect();
    store.webhooks().enqueue("v", many, None).await.unwrap();
    let claims = ["one", "two", "three", "four"].map(|me| {
        let store = store.clone();
        tokio::spawn(async move { store.webhooks().claim("v", me, T0, T0 + 10, 12).await.unwrap() })
    });
    let mut all = Vec::new();
    for held in claims {
        all.extend(held.await.unwrap().into_iter().map(|d| d.id));
    }
    assert_eq!(all.len(), 40);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 40, "a delivery was claimed twice");
}

async fn deliveries_are_listed_sent_again_and_removed(store: Arc<Store>) {
    webhook(&store, "w", T0).await;
    webhook(&store, "v", T0).await;
    let event = WebhookEvent::Test;
    for i in 0..4 {
        let to = if i == 3 { "v" } else { "w" };
        // The same time for two of them.
        let delivery = new(&format!("d{i}"), event, &i.to_string(), T0 + i / 2);
        store.webhooks().enqueue(to, vec![delivery], None).await.unwrap();
    }
    let list = async |webhook: Option<&str>, state, after: Option<&str>| {
        let page = Page { after: after.map(str::to_owned), limit: 2 };
        let found: Vec<Delivery> = store.webhooks().deliveries(webhook, state, &page).await.unwrap();
        found.into_iter().map(|d| d.id).collect::<Vec<_>>()
    };
    assert_eq!(list(None, None, None).await, ["d3", "d2"]);
    assert_eq!(list(None, None, Some("d2")).await, ["d1", "d0"]);
    assert_eq!(list(Some("w"), None, None).await, ["d2", "d1"]);
    for id in ["d0", "d1"] {
        store.webhooks().claim("w", "me", T0, T0 + 10, 1).await.unwrap();
        let end = DeliveryEnd {
            state: if id == "d0" { DeliveryState::Failed } else { DeliveryState::Delivered },
            code: Some(200),
            error: None,
            next_attempt: T0,
            now: T0 + 20,
        };
        store.webhooks().finish(id, "me", end).await.unwrap();
    }
    assert_eq!(list(None, Some(DeliveryState::Failed), None).await, ["d0"]);
    assert_eq!(list(None, Some(DeliveryState::Pending), None).await, ["d3", "d2"]);
    let again = store.webhooks().resend("d0", T0 + 30).await.unwrap();
    assert_eq!((again.state, again.attempts, again.next_attempt), (DeliveryState::Pending, 0, T0 + 30));
    assert_eq!((again.ended, again.body.as_str()), (None, "{\"id\":\"d0\"}"));
    is_not_found(store.webhooks().resend("nothing", T0).await);
    is_not_found(store.webhooks().delivery("nothing").await);
    // d1 has ended; it stays while its event would still be looked for.
    assert_eq!(store.webhooks().expire(T0 + 20, 5).await.unwrap(), 0, "not older than the limit");
    assert_eq!(store.webhooks().expire(T0 + 21, 5).await.unwrap(), 0, "found again otherwise");
    store.webhooks().enqueue("w", Vec::new(), Some(T0 + 6)).await.unwrap();
    assert_eq!(store.webhooks().expire(T0 + 21, 5).await.unwrap(), 1);
    is_not_found(store.webhooks().delivery("d1").await);
    assert_eq!(list(Some("w"), None, None).await, ["d2", "d0"], "what is to be sent stays");
}

async fn notices_begin_once(store: Arc<Store>) {
    assert!(store.webhooks().queue_is_empty().await.unwrap());
    let set = stored_set(&store, "p", &["a", "b"], 1).await;
    assert!(!store.webhooks().queue_is_empty().await.unwrap());
    store.judgments().submit(submit(judgment(&set, &"admin".into(), None, "k"), None, T0)).await.unwrap();
    assert!(store.webhooks().queue_is_empty().await.unwrap(), "the set is done");

    webhook(&store, "w", T0).await;
    let event = WebhookEvent::QueueEmpty;
    let tell = async |raised, now: Micros| {
        let delivery = new(&format!("n{now}"), event, &now.to_string(), now);
        store.webhooks().notice(event, raised, now, vec![("w".to_owned(), delivery)]).await.unwrap()
    };
    let told = async || store.webhooks().deliveries(None, None, &page(10)).await.unwrap().len();
    assert!(!tell(true, T0).await, "the first state is no change");
    assert!(!tell(true, T0 + 1).await);
    assert_eq!(told().await, 0);
    assert!(tell(false, T0 + 2).await);
    assert_eq!(told().await, 0, "the end of a notice is not told");
    assert!(tell(true, T0 + 3).await);
    assert!(!tell(true, T0 + 4).await);
    assert_eq!(told().await, 1);
    assert!(tell(false, T0 + 5).await);
    // Two servers that see the change at once tell of it once.
    let tasks = [6, 7, 8].map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let delivery = new(&format!("n{i}"), event, &i.to_string(), T0 + i);
            store.webhooks().notice(event, true, T0 + i, vec![("w".to_owned(), delivery)]).await.unwrap()
        })
    });
    let mut changes = 0;
    for task in tasks {
        changes += usize::from(task.await.unwrap());
    }
    assert_eq!((changes, told().await), (1, 2));
}

async fn scores_of_known_answers(store: Arc<Store>) {
    assert_eq!(store.webhooks().gold_scores(10).await.unwrap(), [0.0; 0]);
    // The known order of three answers is the stored one; tiers as given, and the share of the three pairs that is met.
    for (i, (tiers, kind)) in [
        ([0, 1, 2], SetKind::Gold),
        ([2, 1, 0], SetKind::Gold),
        ([0, 0, 1], SetKind::Gold),
        ([0, 1, 2], SetKind::Calibration),
    ]
    .into_iter()
    .enumerate()
    {
        let set = stored_set(&store, &format!("p{i}"), &["a", "b", "c"], 1).await;
        let known: Vec<_> = set.completion_ids.iter().cloned().zip(0..).collect();
        store.sets().make_gold(&set.id, kind, &known, None).await.unwrap();
        let at = T0 + i as i64;
        let mut given = Judgment { created: at, ..judgment(&set, &"admin".into(), None, &format!("k{i}")) };
        for (item, tier) in given.items.iter_mut().zip(tiers) {
            item.tier = tier;
        }
        store.judgments().submit(submit(given, None, at)).await.unwrap();
    }
    let scores = store.webhooks().gold_scores(10).await.unwrap();
    assert_eq!(scores.len(), 3, "{scores:?}");
    for (score, expected) in scores.iter().zip([2.5 / 3.0, 0.0, 1.0]) {
        assert!((score - expected).abs() < 1e-9, "{scores:?}");
    }
    assert_eq!(store.webhooks().gold_scores(1).await.unwrap().len(), 1);
}

async fn a_promotion_has_its_audit_entry(store: Arc<Store>) {
    webhook(&store, "w", T0).await;
    let (base, better) = (model("base", ModelKind::Policy), model("better", ModelKind::Policy));
    for version in [&base, &better] {
        store.models().put(version.clone()).await.unwrap();
    }
    let by = Signature { actor: "admin".into(), credential: Some("configured".into()) };
    let promote = async |id: &ModelVersionId, now| {
        store.models().promote(id, &by, "promote", json!({"replaced": base.id}), now).await
    };
    assert_eq!(promote(&better.id, T0).await.unwrap().state, ModelState::Active);
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().id, better.id);
    is_not_found(promote(&"nothing".into(), T0 + 1).await);
    let entries = store.audit_log().list(&AuditFilter::default(), None, 10).await.unwrap();
    assert_eq!(entries.len(), 1, "a refused promotion has no entry");
    assert_eq!((entries[0].action.as_str(), entries[0].target.as_str()), ("promote", better.id.as_str()));
    let event = WebhookEvent::ModelPromoted;
    let found = store.webhooks().undelivered("w", event, T0, 10).await.unwrap();
    assert_eq!(found.len(), 1);
    let data = json!({
        "model_id": better.id, "name": "better", "kind": "policy", "replaced": base.id, "roll_back": false,
    });
    assert_eq!((&found[0].data, found[0].at), (&data, T0));
    let delivery = new("d", event, &found[0].source, T0);
    store.webhooks().enqueue("w", vec![delivery], None).await.unwrap();
    assert_eq!(store.webhooks().undelivered("w", event, T0, 10).await.unwrap(), []);
}
