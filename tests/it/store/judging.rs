//! The judgments' part of the conformance suite: replay, revisions, refusals, skips, the training view, imports.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    judgments_replay_and_revise,
    bad_rankings_are_refused_whole,
    skips_free_the_place,
    rankings_by_api_take_a_place,
    ranked_sets_show_latest_revisions_only,
    imports_are_idempotent,
    demonstrations_and_feedback_are_idempotent,
);

async fn judgments_replay_and_revise(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b", "c"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let mut first = submit(judgment(&set, &ada, Some(&held), "key"), Some(&held), T0);
    first.ideal_answer = Some(completion(&set.prompt_id, "better than all"));
    let stored = store.judgments().submit(first.clone()).await.unwrap();
    assert_eq!((&stored.judgment, stored.replayed), (&first.judgment, false));
    assert_eq!(store.judgments().get(&first.judgment.id).await.unwrap(), first.judgment);
    assert_eq!(store.demonstrations().page(None, 9).await.unwrap()[0].2.text, "better than all");
    assert_eq!(store.leases().get(&held.id).await.unwrap().state, AssignmentState::Submitted);

    // A retry, whatever the time it states: the stored one, unchanged.
    let mut retry = first.clone();
    retry.judgment.id = JudgmentId::new();
    retry.judgment.active_ms += 900;
    let replay = store.judgments().submit(retry.clone()).await.unwrap();
    assert_eq!((replay.judgment, replay.replayed), (first.judgment.clone(), true));
    // Anything else under the same key is refused and leaves what is stored.
    let others: [fn(&mut SubmitJudgment); 7] = [
        |s| s.judgment.rationale = Some("changed my mind".into()),
        |s| s.judgment.items[0].tier += 7,
        |s| s.judgment.outcome = Outcome::AllBad,
        |s| s.judgment.flags.clear(),
        |s| s.judgment.labeler_id = "bob".into(),
        |s| s.ideal_answer = None,
        |s| s.ideal_answer.as_mut().unwrap().text.push('!'),
    ];
    for (i, change) in others.into_iter().enumerate() {
        let mut other = retry.clone();
        change(&mut other);
        let refused = store.judgments().submit(other).await;
        assert!(matches!(refused, Err(StoreError::KeyReused(_))), "{i}: {refused:?}");
    }
    assert_eq!(store.judgments().get(&first.judgment.id).await.unwrap(), first.judgment);
    // Without the key it is a second word on the same set.
    retry.judgment.labeler_id = ada.clone();
    retry.judgment.idempotency_key = "other".into();
    is_conflict(store.judgments().submit(retry).await);

    // A revision supersedes; the former judgment stays as it was. It needs no lease.
    let mut second = judgment(&set, &ada, None, "key 2");
    second.supersedes_id = Some(first.judgment.id.clone());
    second.items.reverse();
    let revised = store.judgments().submit(submit(second.clone(), None, T0 + 1)).await.unwrap().judgment;
    assert_eq!((revised.revision, revised.assignment_id.as_ref()), (2, Some(&held.id)));
    assert_eq!(store.judgments().get(&first.judgment.id).await.unwrap(), first.judgment);
    // Only the latest can be revised, and only by its author.
    second.idempotency_key = "key 3".into();
    second.id = JudgmentId::new();
    is_conflict(store.judgments().submit(submit(second.clone(), None, T0)).await);
    second.supersedes_id = Some(revised.id.clone());
    second.labeler_id = bob;
    is_conflict(store.judgments().submit(submit(second, None, T0)).await);
    assert_eq!(store.judgments().list(page(10), Some(&ada)).await.unwrap().len(), 2);
    assert_eq!(store.judgments().list(page(10), Some(&"bob".into())).await.unwrap(), vec![]);
}

async fn bad_rankings_are_refused_whole(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let other = stored_set(&store, "q2", &["x", "y"], 1).await;
    let ada = labeler(&store, "ada").await;
    let good = judgment(&set, &ada, None, "key");
    let mut foreign = good.clone();
    foreign.items[1].completion_id = other.completion_ids[0].clone();
    let mut twice = good.clone();
    twice.items[1].completion_id = twice.items[0].completion_id.clone();
    let mut partial = good.clone();
    partial.items.pop();
    let mut negative = good.clone();
    negative.items[0].tier = -1;
    let mut flagged = good.clone();
    flagged.flags[0].completion_id = Some(other.completion_ids[0].clone());
    for bad in [foreign, twice, partial, negative, flagged] {
        is_conflict(store.judgments().submit(submit(bad, None, T0)).await);
    }
    let mut nobody = good.clone();
    nobody.labeler_id = "nobody".into();
    is_conflict(store.judgments().submit(submit(nobody, None, T0)).await);
    assert_eq!(store.counts().await.unwrap().judgments, 0);
    store.judgments().submit(submit(good, None, T0)).await.unwrap();
}

async fn skips_free_the_place(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let mut skip = judgment(&set, &ada, Some(&held), "skip");
    (skip.outcome, skip.items, skip.strength) = (Outcome::Skip, vec![], None);
    let skipped = store.judgments().submit(submit(skip, Some(&held), T0)).await.unwrap().judgment;
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Open);
    assert_eq!(store.leases().next(lease(&ada, T0)).await.unwrap(), None, "not to the one who skipped it");
    let bobs = store.leases().next(lease(&bob, T0)).await.unwrap().unwrap();
    store.judgments().submit(submit(judgment(&set, &bob, Some(&bobs), "b"), Some(&bobs), T0)).await.unwrap();
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Done);
    // She may still change her mind: her word is kept, though her place is gone.
    let mut ranked = judgment(&set, &ada, None, "after all");
    ranked.supersedes_id = Some(skipped.id);
    store.judgments().submit(submit(ranked, None, T0)).await.unwrap();
    assert_eq!(store.leases().get(&held.id).await.unwrap().state, AssignmentState::Released);
    let outcomes: Vec<_> = store.judgments().ranked(&RankedFilter::default()).await.unwrap();
    assert!(outcomes.len() == 2 && outcomes.iter().all(|r| r.outcome == Outcome::Ranked));
}

async fn rankings_by_api_take_a_place(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    store.judgments().submit(submit(judgment(&set, &"admin".into(), None, "api"), None, T0)).await.unwrap();
    is_conflict(store.judgments().submit(submit(judgment(&set, &"admin".into(), None, "api 2"), None, T0)).await);
    assert!(store.leases().next(lease(&ada, T0)).await.unwrap().is_some());
    assert_eq!(store.leases().next(lease(&bob, T0)).await.unwrap(), None);
    is_not_found(
        store
            .judgments()
            .submit(submit(Judgment { set_id: "no".into(), ..judgment(&set, &ada, None, "x") }, None, T0))
            .await,
    );
}

async fn ranked_sets_show_latest_revisions_only(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let ada = labeler(&store, "ada").await;
    let first = judgment(&set, &ada, None, "1");
    store.judgments().submit(submit(first.clone(), None, T0)).await.unwrap();
    let mut second = judgment(&set, &ada, None, "2");
    (second.supersedes_id, second.created) = (Some(first.id.clone()), T0 + 100);
    (second.items[0].tier, second.items[1].tier) = (1, 0);
    store.judgments().submit(submit(second.clone(), None, T0)).await.unwrap();
    let mut heldout = prompt("h");
    (heldout.split, heldout.tags) = (Split::Heldout, vec!["c".into()]);
    let heldout = store.prompts().put(heldout).await.unwrap();
    let texts: Vec<_> = ["x", "y"].iter().map(|t| completion(&heldout.id, t)).collect();
    store.completions().put(texts.clone()).await.unwrap();
    let gold = ComparisonSet { kind: SetKind::Gold, ..comparison_set(&heldout.id, &texts, 1) };
    store.sets().put(gold.clone()).await.unwrap();
    store.judgments().submit(submit(judgment(&gold, &"admin".into(), None, "3"), None, T0)).await.unwrap();

    let default = RankedFilter::default();
    let golden =
        store.judgments().ranked(&RankedFilter { set_kind: Some(SetKind::Gold), ..default.clone() }).await.unwrap();
    assert_eq!(golden.len(), 1, "known answers come only when asked for");
    let all = store.judgments().ranked(&default).await.unwrap();
    assert_eq!(all.len(), 1);
    let latest = all.iter().find(|r| r.labeler_id == ada).unwrap();
    assert_eq!((&latest.judgment_id, &latest.set_id, latest.split), (&second.id, &set.id, Split::Train));
    let texts: Vec<_> = latest.items.iter().map(|i| (i.text.as_str(), i.tier)).collect();
    assert_eq!(texts, [("b", 0), ("a", 1)]);
    assert_eq!(latest.messages, prompt("q").messages);

    let filtered = |filter: RankedFilter| {
        let store = store.clone();
        async move {
            store.judgments().ranked(&filter).await.unwrap().into_iter().map(|r| r.judgment_id).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        filtered(RankedFilter { as_of: Some(T0 + 99), labeler_id: Some(ada), ..default.clone() }).await,
        [first.id]
    );
    assert_eq!(
        filtered(RankedFilter { split: Some(Split::Heldout), set_kind: Some(SetKind::Gold), ..default.clone() })
            .await
            .len(),
        1
    );
    assert_eq!(
        filtered(RankedFilter { set_kind: Some(SetKind::Normal), ..default.clone() }).await,
        [second.id.clone()]
    );
    assert_eq!(filtered(RankedFilter { tag: Some("b".into()), ..default.clone() }).await, [second.id]);
    assert_eq!(filtered(RankedFilter { tag: Some("zz".into()), ..default }).await, []);
}

async fn imports_are_idempotent(store: Arc<Store>) {
    let add = |texts: &'static [&'static str], key: &'static str| {
        let store = store.clone();
        async move {
            let prompt = prompt("imported");
            let texts: Vec<_> = texts.iter().map(|t| completion(&prompt.id, t)).collect();
            let mut set = comparison_set(&prompt.id, &texts, 1);
            set.selection_policy = "import".into();
            let judgment = judgment(&set, &"import".into(), None, key);
            import(&store, prompt, texts, set, judgment).await
        }
    };
    assert_eq!(add(&["a", "b"], "k1").await, Imported::New);
    assert_eq!(add(&["a", "b"], "k2").await, Imported::Known, "same prompt, same texts, same places");
    assert_eq!(add(&["b", "a"], "k2").await, Imported::New, "another judgment of the same set");
    assert_eq!(add(&["b", "a"], "k4").await, Imported::Known);
    assert_eq!(add(&["a", "c"], "k3").await, Imported::New);
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.prompts, counts.completions, counts.sets_done, counts.judgments), (1, 4, 2, 3));
    let ranked = store.judgments().ranked(&RankedFilter::default()).await.unwrap();
    assert_eq!(ranked.len(), 3);
    assert_eq!((&ranked[0].set_id, ranked[0].labeler_id.as_str()), (&ranked[1].set_id, "import"));
    assert_eq!(ranked[1].labeler_id.as_str(), "import-2");
    // Pages are the same rankings, however they are cut.
    for limit in [1, 2, 3, 100] {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let (mut page, next) = store
                .judgments()
                .ranked_page(&RankedFilter::default(), LabelerKind::Human, after.as_ref(), limit)
                .await
                .unwrap();
            pages.append(&mut page);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(pages, ranked, "{limit}");
    }
    for set in ranked.iter().map(|one| &one.set_id) {
        let of_set: Vec<_> = ranked.iter().filter(|one| one.set_id == *set).cloned().collect();
        assert_eq!(store.judgments().ranked_of_set(&RankedFilter::default(), set).await.unwrap(), of_set);
    }
}

async fn demonstrations_and_feedback_are_idempotent(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let prompt = prompt("q");
    let answer = completion(&prompt.id, "the answer");
    let first = store.demonstrations().put(prompt.clone(), answer.clone(), Some(ada), T0).await.unwrap();
    let (mut again, mut p2) = (answer.clone(), prompt.clone());
    (again.id, p2.id) = (CompletionId::new(), PromptId::new());
    again.prompt_id = p2.id.clone();
    assert_eq!(store.demonstrations().put(p2, again, None, T0 + 9).await.unwrap(), first);
    let all = store.demonstrations().page(None, 9).await.unwrap();
    assert_eq!(all, vec![(first, prompt, answer.clone())]);

    let event = FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: answer.id.clone(),
        kind: "thumb".into(),
        value: json!(1),
        actor_hash: None,
        idempotency_key: "f".into(),
        created: T0,
    };
    let stored = store.feedback().put(event.clone()).await.unwrap();
    let retry = FeedbackEvent { id: FeedbackId::new(), created: T0 + 5, ..event.clone() };
    assert_eq!((store.feedback().put(retry.clone()).await.unwrap(), stored), (event.clone(), event.clone()));
    // A number in another form is the same number; anything else under the key is other feedback.
    let same = FeedbackEvent { value: json!(1.0), ..retry.clone() };
    assert_eq!(store.feedback().put(same).await.unwrap(), event);
    for other in
        [FeedbackEvent { value: json!(-1), ..retry.clone() }, FeedbackEvent { kind: "score".into(), ..retry.clone() }]
    {
        let refused = store.feedback().put(other).await;
        assert!(matches!(refused, Err(StoreError::KeyReused(_))), "{refused:?}");
    }
    assert_eq!(store.feedback().list(page(5)).await.unwrap(), vec![event.clone()]);
    is_not_found(
        store.feedback().put(FeedbackEvent { completion_id: "no".into(), idempotency_key: "g".into(), ..event }).await,
    );
}
