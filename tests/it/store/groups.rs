//! Writes that share a transaction, and on PostgreSQL statements: one that fails harms none of its neighbours, and they
//! see each other.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::backend;
use super::conformance::{conformance, is_conflict, is_lost};
use super::fixture::*;

conformance!(
    a_failing_write_does_not_affect_the_others,
    concurrent_leases_never_exceed_the_overlap,
    concurrent_leases_follow_the_queue_and_the_quota,
    concurrent_labelers_fill_every_place_once,
    concurrent_judgments_see_each_other,
);

/// Runs the futures concurrently, each in a task; returns their results in order.
async fn together<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect()
}

/// Rankings that wait together, and between them some that the rules refuse and some that only the database does.
async fn a_failing_write_does_not_affect_the_others(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let mut sets = Vec::new();
    for i in 0..40 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 3).await);
    }
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let forged = Assignment { lease_token: "forged".into(), ..held.clone() };
    let words: Vec<_> = sets
        .iter()
        .enumerate()
        .map(|(i, set)| match i % 8 {
            // Nobody of that id: the database refuses what was partly written.
            3 => submit(judgment(set, &"nobody".into(), None, &format!("k{i}")), None, T0),
            5 => submit(judgment(set, &ada, Some(&forged), &format!("k{i}")), Some(&forged), T0),
            _ => submit(judgment(set, &bob, None, &format!("k{i}")), None, T0),
        })
        .collect();
    let tasks = words.into_iter().map(|word| {
        let store = store.clone();
        tokio::spawn(async move { store.judgments().submit(word).await })
    });
    let outcomes = futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    for (i, outcome) in outcomes.into_iter().enumerate() {
        match (i % 8, outcome.unwrap()) {
            (3, refused) => assert!(is_conflict(refused)),
            (5, refused) => assert!(is_lost(refused)),
            (_, stored) => {
                let stored = stored.unwrap().judgment;
                assert_eq!(store.judgments().get(&stored.id).await.unwrap(), stored);
            }
        }
    }
    let stored = store.judgments().list(page(100), None).await.unwrap();
    assert_eq!(stored.len(), 30, "as many as were acknowledged");
    assert!(stored.iter().all(|j| j.labeler_id == bob && j.items.len() == 2 && j.flags.len() == 1));
}

async fn concurrent_leases_never_exceed_the_overlap(store: Arc<Store>) {
    for i in 0..4 {
        stored_set(&store, &format!("q{i}"), &["a", "b"], 2).await;
    }
    let mut people = Vec::new();
    for i in 0..20 {
        people.push(labeler(&store, &format!("person {i}")).await);
    }
    let tasks = people.iter().map(|who| {
        let (store, request) = (store.clone(), lease(who, T0));
        tokio::spawn(async move { store.leases().next(request).await.unwrap() })
    });
    let got = futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    let mut sets: Vec<SetId> = got.into_iter().filter_map(|a| a.unwrap()).map(|a| a.set_id).collect();
    sets.sort();
    assert_eq!(sets.len(), 8, "every place, and no more");
    assert!(sets.chunk_by(|a, b| a == b).all(|places| places.len() == 2), "{sets:?}");
}

/// Ordinary, calibration and gold sets, labelers with a quota, and two leases of one labeler.
async fn concurrent_leases_follow_the_queue_and_the_quota(store: Arc<Store>) {
    let mut sets = Vec::new();
    for i in 0..12 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 2).await);
    }
    for (set, kind) in [(&sets[10], SetKind::Gold), (&sets[11], SetKind::Calibration)] {
        let tiers: Vec<_> = (0..).zip(&set.completion_ids).map(|(tier, id)| (id.clone(), tier)).collect();
        store.sets().make_gold(&set.id, kind, &tiers, None).await.unwrap();
    }
    let mut people = Vec::new();
    for i in 0..16 {
        people.push(labeler(&store, &format!("person {i:02}")).await);
    }
    let request = |i: usize| {
        let base = lease(&people[i.min(15)], T0);
        match i {
            0 | 1 => LeaseRequest { pick: Pick::Instead(SetKind::Gold), ..base },
            2 => LeaseRequest { pick: Pick::First(SetKind::Calibration), ..base },
            3 => LeaseRequest { quota: Some((T0, 0)), ..base },
            4 => LeaseRequest { quota: Some((T0, 1)), ..base },
            5 => LeaseRequest { set_id: Some(sets[9].id.clone()), ..base },
            // The last labeler comes twice.
            _ => base,
        }
    };
    let got = together((0..17).map(|i| {
        let (store, request) = (store.clone(), request(i));
        async move { store.leases().next(request).await.unwrap().map(|a| a.set_id) }
    }))
    .await;
    assert_eq!(got[0..2], [Some(sets[10].id.clone()), Some(sets[10].id.clone())]);
    assert_eq!(got[2], Some(sets[11].id.clone()));
    assert_eq!(got[3], None, "the quota is used up");
    assert_eq!(got[5], Some(sets[9].id.clone()));
    // The other twelve leases are on the first sets of the queue, and nobody has a set twice.
    assert_ne!(got[15], got[16]);
    let mut order: Vec<_> = sets[..10].iter().map(|set| &set.id).collect();
    order.sort();
    let ordinary = || got[6..].iter().chain([&got[4]]).flatten();
    assert_eq!(ordinary().count(), 12);
    let places: Vec<_> = order.iter().map(|id| ordinary().filter(|got| got == id).count()).collect();
    assert_eq!(places[..5], [2; 5], "{places:?}");
    assert_eq!(places[5] + places[6], 2, "{places:?}");
}

async fn concurrent_labelers_fill_every_place_once(store: Arc<Store>) {
    let mut sets = std::collections::HashMap::new();
    for i in 0..24 {
        let set = stored_set(&store, &format!("q{i}"), &["a", "b"], 2).await;
        sets.insert(set.id.clone(), set);
    }
    let mut people = Vec::new();
    for i in 0..12 {
        people.push(labeler(&store, &format!("person {i}")).await);
    }
    together(people.iter().map(|who| {
        let (store, who, sets) = (store.clone(), who.clone(), sets.clone());
        async move {
            while let Some(held) = store.leases().next(lease(&who, T0)).await.unwrap() {
                let key = format!("{} by {who}", held.set_id);
                let judged = judgment(&sets[&held.set_id], &who, Some(&held), &key);
                let stored = store.judgments().submit(submit(judged, Some(&held), T0)).await.unwrap();
                assert!(!stored.replayed);
            }
        }
    }))
    .await;
    assert_eq!(store.judgments().list(page(100), None).await.unwrap().len(), 48);
    for id in sets.keys() {
        let judged: Vec<_> = store.judgments().of_set(id).await.unwrap().into_iter().map(|j| j.labeler_id).collect();
        assert!(judged.len() == 2 && judged[0] != judged[1], "{judged:?}");
        assert_eq!(store.sets().get(id).await.unwrap().status, SetStatus::Done);
    }
}

/// Judgments of one set, of one labeler with a quota, and of one key, all at the same time.
async fn concurrent_judgments_see_each_other(store: Arc<Store>) {
    let mut sets = Vec::new();
    for i in 0..5 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 3).await);
    }
    let (ada, bob, eve) = (labeler(&store, "ada").await, labeler(&store, "bob").await, labeler(&store, "eve").await);
    let named = LeaseRequest { set_id: Some(sets[0].id.clone()), ..lease(&ada, T0) };
    let held = store.leases().next(named).await.unwrap().unwrap();
    let once = submit(judgment(&sets[0], &ada, Some(&held), "once"), Some(&held), T0);
    let answer = completion(&PromptId::new(), "the ideal");
    let of_bob = SubmitJudgment {
        ideal_answer: Some(answer.clone()),
        reveals: vec![Knowledge::Authors],
        ..submit(judgment(&sets[0], &bob, None, "bob"), None, T0)
    };
    let limited = |i: usize| SubmitJudgment {
        quota: Some((T0, 2)),
        ..submit(judgment(&sets[i], &eve, None, &format!("eve {i}")), None, T0)
    };
    let mut all = vec![once.clone(), once.clone(), of_bob, once];
    all.extend((0..5).map(limited));
    let outcomes = together(all.into_iter().map(|given| {
        let store = store.clone();
        async move { store.judgments().submit(given).await }
    }))
    .await;
    let of_ada: Vec<_> = [0, 1, 3].iter().map(|i| outcomes[*i].as_ref().unwrap()).collect();
    assert_eq!(of_ada.iter().filter(|done| !done.replayed).count(), 1, "one is stored and two are repetitions");
    assert!(of_ada.iter().all(|done| done.judgment == of_ada[0].judgment));
    let of_bob = outcomes[2].as_ref().unwrap();
    assert_eq!((of_bob.replayed, &of_bob.revealed), (false, &vec![Knowledge::Authors]));
    let stored = store.completions().get(&answer.id).await.unwrap();
    assert_eq!((&stored.text, &stored.token_ids), (&answer.text, &answer.token_ids));
    assert_eq!(
        stored.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        answer.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
    assert_eq!(stored.prompt_id, sets[0].prompt_id);
    let (stored, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().skip(4).partition(Result::is_ok);
    assert_eq!((stored.len(), refused.len()), (2, 3), "a quota of two");
    assert!(refused.into_iter().all(is_conflict));
    let first = store.judgments().of_set(&sets[0].id).await.unwrap();
    let expected = if first.len() == 3 { SetStatus::Done } else { SetStatus::Open };
    assert_eq!(store.sets().get(&sets[0].id).await.unwrap().status, expected);
}

/// Judgments and leases that wait together cost statements by the group, not by the labeler.
#[tokio::test]
async fn a_group_shares_its_statements_on_postgres() {
    let Some(fresh) = backend::postgres().await else { return };
    let store = fresh.store.clone();
    let mut sets = Vec::new();
    for i in 0..40 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 1).await);
    }
    let mut people = Vec::new();
    for i in 0..40 {
        people.push(labeler(&store, &format!("person {i}")).await);
    }
    let before = store.statements();
    let outcomes = together(people.iter().zip(&sets).map(|(who, set)| {
        let (store, given) = (store.clone(), submit(judgment(set, who, None, who.as_str()), None, T0));
        async move { store.judgments().submit(given).await }
    }))
    .await;
    assert!(outcomes.iter().all(Result::is_ok));
    let sent = store.statements() - before;
    assert!(sent < 40, "{sent} statements for 40 judgments");
    store.close().await;
}
