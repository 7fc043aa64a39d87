//! The one suite that both backends must pass: prompts, sets, leases, judgments, people, models.
//! The job queue's part is in `queue.rs`.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::fixture::*;

/// Makes each case a test for every backend.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod on_sqlite { $($crate::store::conformance::conformance!(@ $case sqlite);)* }
        mod on_postgres { $($crate::store::conformance::conformance!(@ $case postgres);)* }
    };
    (@ $case:ident $backend:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            if let Some(fresh) = $crate::store::backend::$backend().await {
                super::$case(fresh.store.clone()).await;
                fresh.store.close().await;
            }
        }
    };
}
pub(super) use conformance;

conformance!(
    prompts_are_one_per_content,
    completions_come_back_bit_for_bit,
    sets_keep_their_order_and_their_prompt,
    leases_respect_the_overlap,
    a_labeler_never_gets_a_judged_set_again,
    an_expired_lease_frees_its_place,
    tokens_fence_leases,
    concurrent_leasers_never_share_a_place,
    judgments_replay_and_revise,
    bad_rankings_are_refused_whole,
    skips_give_the_place_back,
    rankings_by_api_take_a_place,
    ranked_sets_show_latest_revisions_only,
    imports_are_idempotent,
    demonstrations_and_feedback_are_idempotent,
    gold_answers,
    people_and_access,
    one_model_of_a_kind_is_active,
    a_dropped_caller_does_not_cancel_its_write,
    counts_count,
);

fn is_conflict<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::Conflict(_)) => true,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

fn is_lost<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::LeaseLost(_)) => true,
        other => panic!("expected a lost lease, got {other:?}"),
    }
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::NotFound { .. }) => true,
        other => panic!("expected not found, got {other:?}"),
    }
}

async fn prompts_are_one_per_content(store: Arc<dyn Store>) {
    store.ping().await.unwrap();
    let first = store.put_prompt(prompt("hello")).await.unwrap();
    let again = store.put_prompt(prompt("hello")).await.unwrap();
    assert_eq!(first, again, "the stored row comes back, with its first id");
    assert_eq!(store.get_prompt(&first.id).await.unwrap(), first);
    is_not_found(store.get_prompt(&"nobody".into()).await);
    let mut ids = vec![first.id];
    for i in 0..4 {
        ids.push(store.put_prompt(prompt(&format!("p{i}"))).await.unwrap().id);
    }
    ids.sort();
    ids.reverse();
    let newest = store.list_prompts(page(2), None).await.unwrap();
    assert_eq!(newest.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), ids[..2]);
    let after = Page { after: Some(ids[1].to_string()), limit: 10 };
    let rest = store.list_prompts(after, Some("api")).await.unwrap();
    assert_eq!(rest.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), ids[2..]);
    assert!(store.list_prompts(page(10), Some("import:x")).await.unwrap().is_empty());
}

async fn completions_come_back_bit_for_bit(store: Arc<dyn Store>) {
    let prompt = store.put_prompt(prompt("q")).await.unwrap();
    let written = completion(&prompt.id, "text with 'quotes', $1 and \u{4F60}\u{597D}");
    store.put_completions(vec![written.clone()]).await.unwrap();
    assert_eq!(store.get_completion(&written.id).await.unwrap(), written);
    store.set_completion_reward(&written.id, -1.5).await.unwrap();
    assert_eq!(store.list_completions(&prompt.id).await.unwrap()[0].reward, Some(-1.5));
    is_not_found(store.set_completion_reward(&"nobody".into(), 1.0).await);
    // A batch is stored whole or not at all.
    let (good, bad) = (completion(&prompt.id, "x"), completion(&"no prompt".into(), "y"));
    is_conflict(store.put_completions(vec![good, bad]).await);
    assert_eq!(store.list_completions(&prompt.id).await.unwrap().len(), 1);
    // U+0000 must not be an error anywhere; Postgres cannot keep it as it is.
    let mut odd = completion(&prompt.id, "a\0b");
    odd.sampling = json!({"stop": ["\0"]});
    store.put_completions(vec![odd.clone()]).await.unwrap();
    assert!(["a\0b", "a\u{FFFD}b"].contains(&store.get_completion(&odd.id).await.unwrap().text.as_str()));
}

async fn sets_keep_their_order_and_their_prompt(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["c", "a", "b"], 2).await;
    assert_eq!(store.get_set(&set.id).await.unwrap(), set);
    assert_eq!(store.list_sets(page(10), Some(SetStatus::Open)).await.unwrap(), vec![set.clone()]);
    assert!(store.list_sets(page(10), Some(SetStatus::Done)).await.unwrap().is_empty());
    let other = store.put_prompt(prompt("other")).await.unwrap();
    let mut mixed = comparison_set(&other.id, &[], 1);
    mixed.completion_ids = set.completion_ids.clone();
    is_conflict(store.put_set(mixed).await);
    store.retire_set(&set.id).await.unwrap();
    assert_eq!(store.get_set(&set.id).await.unwrap().status, SetStatus::Retired);
    let ada = labeler(&*store, "ada").await;
    assert_eq!(store.lease_next(lease(&ada, T0)).await.unwrap(), None, "a retired set is not given out");
}

async fn leases_respect_the_overlap(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 2).await;
    let (ada, bob, cy) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await, labeler(&*store, "cy").await);
    let first = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    assert_eq!((&first.set_id, first.state, first.order_seed), (&set.id, AssignmentState::Leased, u64::MAX - 7));
    assert_eq!(store.get_assignment(&first.id).await.unwrap(), first);
    assert_eq!(store.lease_next(lease(&ada, T0 + 1)).await.unwrap(), None, "she holds it already");
    let second = store.lease_next(lease(&bob, T0)).await.unwrap().unwrap();
    assert_eq!(store.lease_next(lease(&cy, T0)).await.unwrap(), None, "both places are taken");
    store.submit_judgment(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), T0)).await.unwrap();
    assert_eq!(store.lease_next(lease(&cy, T0)).await.unwrap(), None, "a submitted place stays taken");
    store.release_lease(&second.id, &second.lease_token).await.unwrap();
    assert!(store.lease_next(lease(&cy, T0)).await.unwrap().is_some(), "a released place is free");
    assert_eq!(store.lease_next(lease(&bob, T0)).await.unwrap(), None);
}

async fn a_labeler_never_gets_a_judged_set_again(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 5).await;
    let ada = labeler(&*store, "ada").await;
    let held = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    // A set she names and holds is the same lease again, longer.
    let named = LeaseRequest { set_id: Some(set.id.clone()), ..lease(&ada, T0 + 5) };
    let again = store.lease_next(named.clone()).await.unwrap().unwrap();
    assert_eq!((&again.id, &again.lease_token, again.expires_at), (&held.id, &held.lease_token, T0 + 5 + LEASE));
    // Run out and not judged: it may come back, as the same assignment.
    let late = T0 + 10 * LEASE;
    let back = store.lease_next(lease(&ada, late)).await.unwrap().unwrap();
    assert_eq!((&back.id, &back.lease_token, back.order_seed), (&held.id, &held.lease_token, held.order_seed));
    store.submit_judgment(submit(judgment(&set, &ada, Some(&back), "k"), Some(&back), late)).await.unwrap();
    assert_eq!(store.lease_next(lease(&ada, late)).await.unwrap(), None);
    assert_eq!(store.lease_next(LeaseRequest { now: late, ..named }).await.unwrap(), None);
    is_not_found(store.lease_next(LeaseRequest { set_id: Some("no".into()), ..lease(&ada, late) }).await);
}

async fn an_expired_lease_frees_its_place(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await);
    let first = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    let renewed = first.expires_at + 1000;
    store.renew_lease(&first.id, &first.lease_token, T0, renewed).await.unwrap();
    assert_eq!(store.lease_next(lease(&bob, first.expires_at)).await.unwrap(), None, "renewed");
    let second = store.lease_next(lease(&bob, renewed)).await.unwrap().unwrap();
    assert_eq!(store.get_assignment(&first.id).await.unwrap().state, AssignmentState::Expired);
    // Bob has the place now: Ada's late work is not lost silently, it is refused.
    is_lost(store.submit_judgment(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), renewed)).await);
    is_lost(store.renew_lease(&first.id, &first.lease_token, renewed, renewed + LEASE).await);
    // Once Bob's lease has run out too, the place is nobody's, and late work counts.
    let late = second.expires_at + 1;
    let done = store.submit_judgment(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), late)).await;
    assert!(!done.unwrap().replayed);
    is_lost(store.submit_judgment(submit(judgment(&set, &bob, Some(&second), "k2"), Some(&second), late)).await);
    assert_eq!(store.get_set(&set.id).await.unwrap().status, SetStatus::Done);
}

async fn tokens_fence_leases(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await);
    let held = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    is_lost(store.renew_lease(&held.id, "forged", T0, T0 + LEASE).await);
    is_lost(store.release_lease(&held.id, "forged").await);
    is_not_found(store.renew_lease(&"nobody".into(), "x", T0, T0).await);
    let mut forged = submit(judgment(&set, &ada, Some(&held), "k"), Some(&held), T0);
    forged.lease_token = Some("forged".into());
    is_lost(store.submit_judgment(forged.clone()).await);
    forged.lease_token = None;
    is_lost(store.submit_judgment(forged).await);
    is_lost(store.submit_judgment(submit(judgment(&set, &bob, Some(&held), "k"), Some(&held), T0)).await);
    store.release_lease(&held.id, &held.lease_token).await.unwrap();
    is_lost(store.submit_judgment(submit(judgment(&set, &ada, Some(&held), "k"), Some(&held), T0)).await);
}

async fn concurrent_leasers_never_share_a_place(store: Arc<dyn Store>) {
    let (sets, overlap, people) = (5usize, 2usize, 12usize);
    for i in 0..sets {
        stored_set(&*store, &format!("q{i}"), &["a", "b"], overlap as i64).await;
    }
    let mut tasks = Vec::new();
    for i in 0..people {
        let ada = labeler(&*store, &format!("ada{i}")).await;
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut got = Vec::new();
            while let Some(held) = store.lease_next(lease(&ada, T0)).await.unwrap() {
                got.push((held.set_id, ada.clone()));
            }
            got
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    assert_eq!(all.len(), sets * overlap, "every place is taken once");
    all.sort();
    all.dedup();
    assert_eq!(all.len(), sets * overlap, "nobody has a set twice");
    for set in store.list_sets(page(10), None).await.unwrap() {
        assert_eq!(all.iter().filter(|(id, _)| *id == set.id).count(), overlap);
    }
}

async fn judgments_replay_and_revise(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b", "c"], 1).await;
    let (ada, bob) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await);
    let held = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    let mut first = submit(judgment(&set, &ada, Some(&held), "key"), Some(&held), T0);
    first.ideal_answer = Some(completion(&set.prompt_id, "better than all"));
    let stored = store.submit_judgment(first.clone()).await.unwrap();
    assert_eq!((&stored.judgment, stored.replayed), (&first.judgment, false));
    assert_eq!(store.get_judgment(&first.judgment.id).await.unwrap(), first.judgment);
    assert_eq!(store.demonstrations().await.unwrap()[0].1.text, "better than all");
    assert_eq!(store.get_assignment(&held.id).await.unwrap().state, AssignmentState::Submitted);

    // A retry with another body under the same key: the stored one, unchanged.
    let mut retry = first.clone();
    retry.judgment.id = JudgmentId::new();
    retry.judgment.rationale = Some("changed my mind".into());
    let replay = store.submit_judgment(retry.clone()).await.unwrap();
    assert_eq!((replay.judgment, replay.replayed), (first.judgment.clone(), true));
    retry.judgment.labeler_id = bob.clone();
    is_conflict(store.submit_judgment(retry.clone()).await);
    // Without the key it is a second word on the same set.
    retry.judgment.labeler_id = ada.clone();
    retry.judgment.idempotency_key = "other".into();
    is_conflict(store.submit_judgment(retry).await);

    // A revision supersedes; the former judgment stays as it was. It needs no lease.
    let mut second = judgment(&set, &ada, None, "key 2");
    second.supersedes_id = Some(first.judgment.id.clone());
    second.items.reverse();
    let revised = store.submit_judgment(submit(second.clone(), None, T0 + 1)).await.unwrap().judgment;
    assert_eq!((revised.revision, revised.assignment_id.as_ref()), (2, Some(&held.id)));
    assert_eq!(store.get_judgment(&first.judgment.id).await.unwrap(), first.judgment);
    // Only the latest can be revised, and only by its author.
    second.idempotency_key = "key 3".into();
    second.id = JudgmentId::new();
    is_conflict(store.submit_judgment(submit(second.clone(), None, T0)).await);
    second.supersedes_id = Some(revised.id.clone());
    second.labeler_id = bob;
    is_conflict(store.submit_judgment(submit(second, None, T0)).await);
    assert_eq!(store.list_judgments(page(10), Some(&ada)).await.unwrap().len(), 2);
    assert_eq!(store.list_judgments(page(10), Some(&"bob".into())).await.unwrap(), vec![]);
}

async fn bad_rankings_are_refused_whole(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 1).await;
    let other = stored_set(&*store, "q2", &["x", "y"], 1).await;
    let ada = labeler(&*store, "ada").await;
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
        is_conflict(store.submit_judgment(submit(bad, None, T0)).await);
    }
    let mut nobody = good.clone();
    nobody.labeler_id = "nobody".into();
    is_conflict(store.submit_judgment(submit(nobody, None, T0)).await);
    assert_eq!(store.counts().await.unwrap().judgments, 0);
    store.submit_judgment(submit(good, None, T0)).await.unwrap();
}

async fn skips_give_the_place_back(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await);
    let held = store.lease_next(lease(&ada, T0)).await.unwrap().unwrap();
    let mut skip = judgment(&set, &ada, Some(&held), "skip");
    (skip.outcome, skip.items, skip.strength) = (Outcome::Skip, vec![], None);
    let skipped = store.submit_judgment(submit(skip, Some(&held), T0)).await.unwrap().judgment;
    assert_eq!(store.get_set(&set.id).await.unwrap().status, SetStatus::Open);
    assert_eq!(store.lease_next(lease(&ada, T0)).await.unwrap(), None, "not to the one who skipped it");
    let bobs = store.lease_next(lease(&bob, T0)).await.unwrap().unwrap();
    store.submit_judgment(submit(judgment(&set, &bob, Some(&bobs), "b"), Some(&bobs), T0)).await.unwrap();
    assert_eq!(store.get_set(&set.id).await.unwrap().status, SetStatus::Done);
    // She may still change her mind: her word is kept, though her place is gone.
    let mut ranked = judgment(&set, &ada, None, "after all");
    ranked.supersedes_id = Some(skipped.id);
    store.submit_judgment(submit(ranked, None, T0)).await.unwrap();
    assert_eq!(store.get_assignment(&held.id).await.unwrap().state, AssignmentState::Released);
    let outcomes: Vec<_> = store.ranked_sets(&RankedFilter::default()).await.unwrap();
    assert!(outcomes.len() == 2 && outcomes.iter().all(|r| r.outcome == Outcome::Ranked));
}

async fn rankings_by_api_take_a_place(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 2).await;
    let (ada, bob) = (labeler(&*store, "ada").await, labeler(&*store, "bob").await);
    store.submit_judgment(submit(judgment(&set, &"admin".into(), None, "api"), None, T0)).await.unwrap();
    is_conflict(store.submit_judgment(submit(judgment(&set, &"admin".into(), None, "api 2"), None, T0)).await);
    assert!(store.lease_next(lease(&ada, T0)).await.unwrap().is_some());
    assert_eq!(store.lease_next(lease(&bob, T0)).await.unwrap(), None);
    is_not_found(
        store
            .submit_judgment(submit(Judgment { set_id: "no".into(), ..judgment(&set, &ada, None, "x") }, None, T0))
            .await,
    );
}

async fn ranked_sets_show_latest_revisions_only(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 2).await;
    let ada = labeler(&*store, "ada").await;
    let first = judgment(&set, &ada, None, "1");
    store.submit_judgment(submit(first.clone(), None, T0)).await.unwrap();
    let mut second = judgment(&set, &ada, None, "2");
    (second.supersedes_id, second.created) = (Some(first.id.clone()), T0 + 100);
    (second.items[0].tier, second.items[1].tier) = (1, 0);
    store.submit_judgment(submit(second.clone(), None, T0)).await.unwrap();
    let mut heldout = prompt("h");
    (heldout.split, heldout.tags) = (Split::Heldout, vec!["c".into()]);
    let heldout = store.put_prompt(heldout).await.unwrap();
    let texts: Vec<_> = ["x", "y"].iter().map(|t| completion(&heldout.id, t)).collect();
    store.put_completions(texts.clone()).await.unwrap();
    let gold = ComparisonSet { kind: SetKind::Gold, ..comparison_set(&heldout.id, &texts, 1) };
    store.put_set(gold.clone()).await.unwrap();
    store.submit_judgment(submit(judgment(&gold, &"admin".into(), None, "3"), None, T0)).await.unwrap();

    let all = store.ranked_sets(&RankedFilter::default()).await.unwrap();
    assert_eq!(all.len(), 2);
    let latest = all.iter().find(|r| r.labeler_id == ada).unwrap();
    assert_eq!((&latest.judgment_id, &latest.set_id, latest.split), (&second.id, &set.id, Split::Train));
    let texts: Vec<_> = latest.items.iter().map(|i| (i.text.as_str(), i.tier)).collect();
    assert_eq!(texts, [("b", 0), ("a", 1)]);
    assert_eq!(latest.messages, prompt("q").messages);

    let filtered = |filter: RankedFilter| {
        let store = store.clone();
        async move { store.ranked_sets(&filter).await.unwrap().into_iter().map(|r| r.judgment_id).collect::<Vec<_>>() }
    };
    let default = RankedFilter::default();
    assert_eq!(
        filtered(RankedFilter { as_of: Some(T0 + 99), labeler_id: Some(ada), ..default.clone() }).await,
        [first.id]
    );
    assert_eq!(filtered(RankedFilter { split: Some(Split::Heldout), ..default.clone() }).await.len(), 1);
    assert_eq!(
        filtered(RankedFilter { set_kind: Some(SetKind::Normal), ..default.clone() }).await,
        [second.id.clone()]
    );
    assert_eq!(filtered(RankedFilter { tag: Some("b".into()), ..default.clone() }).await, [second.id]);
    assert_eq!(filtered(RankedFilter { tag: Some("zz".into()), ..default }).await, []);
}

async fn imports_are_idempotent(store: Arc<dyn Store>) {
    let import = |texts: &'static [&'static str], key: &'static str| {
        let store = store.clone();
        async move {
            let prompt = prompt("imported");
            let texts: Vec<_> = texts.iter().map(|t| completion(&prompt.id, t)).collect();
            let mut set = comparison_set(&prompt.id, &texts, 1);
            set.selection_policy = "import".into();
            let judgment = judgment(&set, &"import".into(), None, key);
            store.import_set(prompt, texts, set, Some(judgment)).await.unwrap()
        }
    };
    assert!(import(&["a", "b"], "k1").await);
    assert!(!import(&["b", "a"], "k2").await, "same prompt, same texts");
    assert!(import(&["a", "c"], "k3").await);
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.prompts, counts.completions, counts.sets_done, counts.judgments), (1, 4, 2, 2));
    assert_eq!(store.ranked_sets(&RankedFilter::default()).await.unwrap().len(), 2);
}

async fn demonstrations_and_feedback_are_idempotent(store: Arc<dyn Store>) {
    let ada = labeler(&*store, "ada").await;
    let prompt = prompt("q");
    let answer = completion(&prompt.id, "the answer");
    let first = store.put_demonstration(prompt.clone(), answer.clone(), Some(ada), T0).await.unwrap();
    let (mut again, mut p2) = (answer.clone(), prompt.clone());
    (again.id, p2.id) = (CompletionId::new(), PromptId::new());
    again.prompt_id = p2.id.clone();
    assert_eq!(store.put_demonstration(p2, again, None, T0 + 9).await.unwrap(), first);
    assert_eq!(store.demonstrations().await.unwrap(), vec![(prompt, answer.clone())]);

    let event = FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: answer.id.clone(),
        kind: "thumb".into(),
        value: json!(1),
        actor_hash: None,
        idempotency_key: "f".into(),
        created: T0,
    };
    let stored = store.put_feedback(event.clone()).await.unwrap();
    let retry = FeedbackEvent { id: FeedbackId::new(), value: json!(-1), ..event.clone() };
    assert_eq!((store.put_feedback(retry).await.unwrap(), stored), (event.clone(), event.clone()));
    assert_eq!(store.list_feedback(page(5)).await.unwrap(), vec![event.clone()]);
    is_not_found(
        store.put_feedback(FeedbackEvent { completion_id: "no".into(), idempotency_key: "g".into(), ..event }).await,
    );
}

async fn gold_answers(store: Arc<dyn Store>) {
    let set = stored_set(&*store, "q", &["a", "b"], 1).await;
    let tiers = vec![(set.completion_ids[1].clone(), 0), (set.completion_ids[0].clone(), 1)];
    store.put_gold(&set.id, &tiers).await.unwrap();
    store.put_gold(&set.id, &tiers).await.unwrap();
    assert_eq!(store.get_gold(&set.id).await.unwrap(), tiers);
    is_conflict(store.put_gold(&set.id, &[("nobody".into(), 0)]).await);
    assert_eq!(store.get_gold(&set.id).await.unwrap(), tiers, "a refused change changes nothing");
}

async fn people_and_access(store: Arc<dyn Store>) {
    let ada = labeler(&*store, "ada").await;
    let known: Vec<_> = store.list_labelers().await.unwrap().into_iter().map(|l| l.id.0).collect();
    assert_eq!(known, ["admin", "import", "ada"]);
    let session =
        Session { token_hash: "h".into(), labeler_id: ada.clone(), role: Role::Labeler, expires: T0 + 10, created: T0 };
    store.put_session(session.clone()).await.unwrap();
    assert_eq!(store.get_session("h", T0).await.unwrap(), Some(session));
    assert_eq!(store.get_session("h", T0 + 10).await.unwrap(), None, "expired");
    store.set_labeler_active(&ada, false).await.unwrap();
    assert!(!store.get_labeler(&ada).await.unwrap().active);
    assert_eq!(store.get_session("h", T0).await.unwrap(), None, "an inactive labeler has no session");
    store.set_labeler_active(&ada, true).await.unwrap();
    store.delete_session("h").await.unwrap();
    assert_eq!(store.get_session("h", T0).await.unwrap(), None);

    let invite = Invite {
        id: InviteId::new(),
        token_hash: "i".into(),
        role: Role::Reviewer,
        note: None,
        expires: T0 + 10,
        used_by: None,
        created: T0,
    };
    store.put_invite(invite.clone()).await.unwrap();
    let person = |id: &str| Labeler { id: id.into(), name: "N".into(), role: Role::Admin, active: true, created: T0 };
    is_not_found(store.redeem_invite("other", person("eve"), T0).await);
    is_conflict(store.redeem_invite("i", person("late"), T0 + 10).await);
    is_not_found(store.get_labeler(&"late".into()).await);
    let new = store.redeem_invite("i", person("bob"), T0).await.unwrap();
    assert_eq!(new.role, Role::Reviewer, "the invite decides the role");
    is_conflict(store.redeem_invite("i", person("eve"), T0).await);
    assert_eq!(store.list_invites().await.unwrap()[0].used_by, Some("bob".into()));

    let key = ApiKey {
        id: ApiKeyId::new(),
        name: "ci".into(),
        key_hash: "kh".into(),
        scopes: vec!["feedback".into()],
        labeler_id: Some(ada),
        revoked: false,
        created: T0,
    };
    store.put_api_key(key.clone()).await.unwrap();
    assert_eq!(store.find_api_key("kh").await.unwrap(), Some(key.clone()));
    assert_eq!(store.find_api_key("other").await.unwrap(), None);
    store.revoke_api_key(&key.id).await.unwrap();
    assert_eq!(store.find_api_key("kh").await.unwrap(), None);
    assert!(store.list_api_keys().await.unwrap()[0].revoked);
    is_not_found(store.revoke_api_key(&"no".into()).await);
    store.audit("admin", "key.revoke", key.id.as_str(), json!({"why": "test"}), T0).await.unwrap();
}

async fn one_model_of_a_kind_is_active(store: Arc<dyn Store>) {
    let (a, b, r) = (model("a", ModelKind::Policy), model("b", ModelKind::Policy), model("r", ModelKind::Reward));
    for m in [&a, &b, &r] {
        store.put_model(m.clone()).await.unwrap();
    }
    is_conflict(store.put_model(model("a", ModelKind::Reward)).await);
    assert_eq!(store.find_model("b").await.unwrap(), Some(b.clone()));
    assert_eq!(store.active_model(ModelKind::Policy).await.unwrap(), None);
    store.activate_model(&a.id, T0).await.unwrap();
    store.activate_model(&r.id, T0).await.unwrap();
    let (x, y) = tokio::join!(store.activate_model(&a.id, T0), store.activate_model(&b.id, T0));
    assert_eq!((x.unwrap().state, y.unwrap().state), (ModelState::Active, ModelState::Active));
    let active: Vec<_> =
        store.list_models().await.unwrap().into_iter().filter(|m| m.state == ModelState::Active).collect();
    assert_eq!(active.len(), 2, "one policy and one reward model");
    store.activate_model(&b.id, T0).await.unwrap();
    assert_eq!(store.active_model(ModelKind::Policy).await.unwrap().unwrap().id, b.id);
    assert_eq!(store.get_model(&a.id).await.unwrap().state, ModelState::Candidate);
    is_conflict(store.retire_model(&b.id).await);
    store.retire_model(&a.id).await.unwrap();
    is_conflict(store.activate_model(&a.id, T0).await);
    assert_eq!(store.active_model(ModelKind::Policy).await.unwrap().unwrap().id, b.id, "and nothing changed");
    is_conflict(store.put_model(ModelVersion { state: ModelState::Active, ..model("c", ModelKind::Policy) }).await);
    is_not_found(store.activate_model(&"no".into(), T0).await);

    let data = DatasetVersion {
        id: DatasetId::new(),
        filter: json!({"split": null}),
        as_of: T0,
        sha256: "ab".into(),
        n_sets: 3,
        n_pairs: 7,
    };
    store.put_dataset(data.clone()).await.unwrap();
    assert_eq!(store.list_datasets().await.unwrap(), vec![data]);
}

async fn a_dropped_caller_does_not_cancel_its_write(store: Arc<dyn Store>) {
    for i in 0..20 {
        let write = store.put_prompt(prompt(&format!("p{i}")));
        // Polled once, so the write has begun; then the caller goes away.
        futures::pin_mut!(write);
        let _ = futures::poll!(write.as_mut());
    }
    // Postgres may run them beside each other: wait until the last connection is back.
    while store.counts().await.unwrap().prompts < 20 {
        tokio::task::yield_now().await;
    }
    store.put_prompt(prompt("and the pool is sound")).await.unwrap();
}

async fn counts_count(store: Arc<dyn Store>) {
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    stored_set(&*store, "q", &["a", "b", "c"], 1).await;
    let ada = labeler(&*store, "ada").await;
    let now = store.now().await.unwrap();
    assert!(now > 1_700_000_000_000_000, "µs since 1970: {now}");
    store.lease_next(lease(&ada, now)).await.unwrap().unwrap();
    store.enqueue_job(job("sft", None, 0)).await.unwrap();
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.prompts, counts.completions, counts.sets_open, counts.leases), (1, 3, 1, 1));
    assert_eq!((counts.labelers, counts.jobs_queued, counts.judgments), (1, 1, 0));
}
