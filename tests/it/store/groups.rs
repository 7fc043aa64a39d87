//! Writes that share a transaction, on both databases: one that fails harms none of its neighbours.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict, is_lost};
use super::fixture::*;

conformance!(a_failing_write_does_not_affect_the_others, concurrent_leases_never_exceed_the_overlap,);

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
