//! What a labeler can still judge, what was known when judging, and guidelines, on both databases.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict};
use super::fixture::*;

conformance!(
    open_sets_are_counted_for_each_labeler,
    sets_without_a_labeler_left_are_found,
    leases_in_hand_are_resumed,
    only_holders_at_work_are_counted,
    judgments_remember_what_was_known,
    labelers_see_their_own_sets,
    quotas_count_rankings_by_api,
    guidelines_keep_their_versions,
);

async fn open(store: &Store, labeler: &LabelerId, now: Micros) -> i64 {
    store.leases().open_for(labeler, &ProjectId::first(), SetKind::Normal, now, 1000).await.unwrap()
}

async fn skip(store: &Store, set: &ComparisonSet, held: &Assignment, now: Micros) {
    let mut skip = judgment(set, &held.labeler_id, Some(held), &format!("skip {}", held.id));
    (skip.outcome, skip.items, skip.strength) = (Outcome::Skip, vec![], None);
    store.judgments().submit(submit(skip, Some(held), now)).await.unwrap();
}

async fn open_sets_are_counted_for_each_labeler(store: Arc<Store>) {
    let first = stored_set(&store, "q1", &["a", "b"], 1).await;
    stored_set(&store, "q2", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    assert_eq!((open(&store, &ada, T0).await, open(&store, &bob, T0).await), (2, 2));
    assert_eq!(
        store.leases().open_for(&ada, &ProjectId::first(), SetKind::Normal, T0, 1).await.unwrap(),
        1,
        "counted up to a limit"
    );
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    assert_eq!((open(&store, &ada, T0).await, open(&store, &bob, T0).await), (2, 1), "what one holds is one's own");
    assert_eq!(open(&store, &bob, held.expires_at).await, 2, "an expired lease holds nothing");
    let named = |who: &LabelerId| LeaseRequest { set_id: Some(first.id.clone()), ..lease(who, T0) };
    assert_eq!(store.leases().why_none(&named(&bob)).await.unwrap(), NoLease::Taken);
    skip(&store, &first, &held, T0).await;
    assert_eq!((open(&store, &ada, T0).await, open(&store, &bob, T0).await), (1, 2));
    assert_eq!(store.leases().next(named(&ada)).await.unwrap(), None);
    assert_eq!(store.leases().why_none(&named(&ada)).await.unwrap(), NoLease::Judged);
    store.sets().retire(&first.id).await.unwrap();
    assert_eq!(store.leases().why_none(&named(&bob)).await.unwrap(), NoLease::Closed);
    // As many as are counted are handed out.
    let mut given = 0;
    while store.leases().next(lease(&bob, T0)).await.unwrap().is_some() {
        given += 1;
    }
    assert_eq!((given, store.leases().why_none(&lease(&bob, T0)).await.unwrap()), (1, NoLease::Empty));
}

async fn sets_without_a_labeler_left_are_found(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let now = store.now().await.unwrap();
    let stuck = async || store.counts().await.unwrap().sets_stuck;
    assert_eq!(stuck().await, 0, "nobody has looked at it yet");
    let ada = labeler(&store, "ada").await;
    let held = store.leases().next(lease(&ada, now)).await.unwrap().unwrap();
    skip(&store, &set, &held, now).await;
    assert_eq!(stuck().await, 1);
    let bob = labeler(&store, "bob").await;
    assert_eq!(stuck().await, 0);
    store.people().set_active(&bob, false).await.unwrap();
    assert_eq!(stuck().await, 1, "who may not come in is nobody to wait for");
}

async fn leases_in_hand_are_resumed(store: Arc<Store>) {
    for q in ["q1", "q2", "q3"] {
        stored_set(&store, q, &["a", "b"], 1).await;
    }
    let ada = labeler(&store, "ada").await;
    let first = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let second = store.leases().next(lease(&ada, T0 + 1)).await.unwrap().unwrap();
    let resume = |except: Vec<SetId>, now| LeaseRequest { resume: Some(except), ..lease(&ada, now) };
    let again = store.leases().next(resume(vec![], T0 + 2)).await.unwrap().unwrap();
    assert_eq!((&again.id, &again.lease_token, again.order_seed), (&first.id, &first.lease_token, first.order_seed));
    assert!(again.expires_at > first.expires_at);
    let other = store.leases().next(resume(vec![first.set_id.clone()], T0 + 3)).await.unwrap().unwrap();
    assert_eq!(other.id, second.id);
    let both = vec![first.set_id.clone(), second.set_id.clone()];
    let third = store.leases().next(resume(both, T0 + 4)).await.unwrap().unwrap();
    assert!(third.id != first.id && third.id != second.id, "then a new one");
    assert_eq!(
        store.leases().next(lease(&ada, T0 + 5)).await.unwrap(),
        None,
        "who does not ask for it gets new work only"
    );
    let much_later = T0 + 10 * LEASE;
    assert!(
        store.leases().next(resume(vec![], much_later)).await.unwrap().is_some(),
        "expired leases come back as before"
    );
    assert_eq!(store.leases().held(&ada, &ProjectId::first(), SetKind::Normal, much_later).await.unwrap(), 1);
}

async fn only_holders_at_work_are_counted(store: Arc<Store>) {
    stored_set(&store, "q", &["a", "b"], 1).await;
    let ada = labeler(&store, "ada").await;
    let now = store.now().await.unwrap();
    let long = 3_600_000_000;
    let request = LeaseRequest { expires_at: now + long, ..lease(&ada, now - 600_000_000) };
    let held = store.leases().next(request).await.unwrap().unwrap();
    assert_eq!(store.counts().await.unwrap().leases, 0, "no sign of life for ten minutes");
    store.leases().renew(&held.id, &held.lease_token, now, now + long).await.unwrap();
    assert_eq!(store.counts().await.unwrap().leases, 1);
}

async fn judgments_remember_what_was_known(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let ada = labeler(&store, "ada").await;
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let first = judgment(&set, &ada, Some(&held), "first");
    let shown = SubmitJudgment { reveals: vec![Knowledge::Authors], ..submit(first.clone(), Some(&held), T0) };
    assert_eq!(store.judgments().submit(shown).await.unwrap().judgment.knowledge, Knowledge::Blind);
    assert_eq!(store.judgments().reveals(&set.id, &ada).await.unwrap(), [Knowledge::Authors]);
    let mut second = judgment(&set, &ada, None, "second");
    second.supersedes_id = Some(first.id.clone());
    second.items.iter_mut().for_each(|i| i.tier = 1 - i.tier);
    let second = store.judgments().submit(submit(second, None, T0 + 1)).await.unwrap().judgment;
    assert_eq!(second.knowledge, Knowledge::Authors);
    let latest = async |informed| {
        let filter = RankedFilter { informed, ..RankedFilter::default() };
        let found = store.judgments().ranked(&filter).await.unwrap();
        assert_eq!(found.len(), 1);
        found[0].judgment_id.clone()
    };
    assert_eq!((latest(false).await, latest(true).await), (first.id.clone(), second.id.clone()));
    let judged = judged(&store, None, None).await;
    assert_eq!(judged.iter().map(|j| &j.judgment_id).collect::<Vec<_>>(), [&first.id]);
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Done);
    // Where the reviewer is the one who knew, the settling word counts.
    store.sets().settle(&set.id, &ada, T0 + 2).await.unwrap();
    assert_eq!(latest(false).await, second.id);

    // The authors are known from any set with the same completions; such a first word leaves its place to others.
    let twin = comparison_set_of(&set);
    store.sets().put(twin.clone()).await.unwrap();
    let request = LeaseRequest { set_id: Some(twin.id.clone()), ..lease(&ada, T0) };
    let held = store.leases().next(request).await.unwrap().unwrap();
    let informed = submit(judgment(&twin, &ada, Some(&held), "twin"), Some(&held), T0);
    assert_eq!(store.judgments().submit(informed).await.unwrap().judgment.knowledge, Knowledge::Authors);
    assert_eq!(store.leases().get(&held.id).await.unwrap().state, AssignmentState::Released);
    assert_eq!(store.sets().get(&twin.id).await.unwrap().status, SetStatus::Open);
    let bob = labeler(&store, "bob").await;
    assert!(store.sets().unjudged_with(&set.completion_ids[0], &bob).await.unwrap().is_some());
    assert_eq!(store.sets().unjudged_with(&set.completion_ids[0], &ada).await.unwrap(), None);
    assert_eq!(store.leases().next(lease(&bob, T0)).await.unwrap().unwrap().set_id, twin.id);
}

/// Another open set of the same completions.
fn comparison_set_of(set: &ComparisonSet) -> ComparisonSet {
    ComparisonSet { id: SetId::new(), status: SetStatus::Open, ..set.clone() }
}

async fn labelers_see_their_own_sets(store: Arc<Store>) {
    let made = stored_set(&store, "made", &["a", "b"], 1).await;
    let handed = stored_set(&store, "handed", &["a", "b"], 1).await;
    let foreign = stored_set(&store, "foreign", &["a", "b"], 1).await;
    let ada = labeler(&store, "ada").await;
    store.sets().note_maker(&made.id, &ada).await.unwrap();
    assert_eq!(store.sets().maker(&made.id).await.unwrap(), Some(ada.clone()));
    assert_eq!(store.sets().maker(&foreign.id).await.unwrap(), None);
    let request = LeaseRequest { set_id: Some(handed.id.clone()), ..lease(&ada, T0) };
    let held = store.leases().next(request).await.unwrap().unwrap();
    assert_eq!(store.leases().assignment_of(&handed.id, &ada).await.unwrap(), Some(held));
    let mut own: Vec<_> = store.sets().list_of(page(10), None, &ada).await.unwrap().into_iter().map(|s| s.id).collect();
    let mut wanted = vec![made.id.clone(), handed.id.clone()];
    own.sort();
    wanted.sort();
    assert_eq!(own, wanted);
    assert_eq!(store.sets().list_of(page(10), Some(SetStatus::Done), &ada).await.unwrap(), vec![]);
    assert!(store.sets().is_of(&made.id, &ada).await.unwrap() && store.sets().is_of(&handed.id, &ada).await.unwrap());
    assert!(!store.sets().is_of(&foreign.id, &ada).await.unwrap());
    let prompts = store.prompts().list_of(page(1), &ada).await.unwrap();
    let after = Page { after: Some(prompts[0].id.to_string()), limit: 10 };
    assert_eq!(store.prompts().list_of(after, &ada).await.unwrap().len(), 1, "two in all, a page at a time");
}

async fn quotas_count_rankings_by_api(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    for (n, fits) in [(1, true), (2, true), (3, false)] {
        let set = stored_set(&store, &format!("q{n}"), &["a", "b"], 1).await;
        let limited =
            SubmitJudgment { quota: Some((T0, 2)), ..submit(judgment(&set, &ada, None, &format!("k{n}")), None, T0) };
        match store.judgments().submit(limited).await {
            Ok(_) => assert!(fits, "{n}"),
            error => {
                assert!(!fits, "{n}");
                is_conflict(error);
            }
        }
    }
}

async fn guidelines_keep_their_versions(store: Arc<Store>) {
    assert_eq!(store.guidelines().list().await.unwrap(), vec![]);
    let version = |id: &str, lang: &str, text: &str| GuidelineVersion {
        id: id.into(),
        project_id: ProjectId::first(),
        lang: lang.into(),
        text: text.into(),
        created: T0,
        created_by: "admin".into(),
    };
    let all = [version("3", "zh", "丙"), version("2", "en", ""), version("1", "en", "one")];
    for one in all.iter().rev() {
        store.guidelines().put(one.clone()).await.unwrap();
    }
    assert_eq!(store.guidelines().list().await.unwrap(), all);
    assert_eq!(
        store.guidelines().latest(&ProjectId::first(), "en").await.unwrap().as_ref(),
        Some(&all[1]),
        "back to the file"
    );
    assert_eq!(store.guidelines().latest(&ProjectId::first(), "da").await.unwrap(), None);
    is_conflict(store.guidelines().put(all[0].clone()).await);
}
