//! Both backends: searches that look at a part of a list at a time.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::conformance;
use super::fixture::*;

conformance!(searches_of_sets_go_on, searches_of_judgments_go_on, searches_of_jobs_go_on);

/// Follows a search with parts of each size to its end, as a caller without time does, and compares what it finds: the
/// `expected` ids, descending. Ids of one millisecond have no order of time.
async fn follow<T>(
    expected: &[String],
    all: usize,
    id: impl Fn(&T) -> String,
    part: impl AsyncFn(Part) -> (Vec<T>, Option<PartEnd>),
) {
    let mut expected = expected.to_vec();
    expected.sort_by(|a, b| b.cmp(a));
    for rows in [1, 2, 3, 100] {
        for limit in [1, 100] {
            let (mut found, mut after, mut looked_at) = (Vec::new(), None, 0);
            loop {
                let (some, end) = part(Part { after: after.clone(), rows, limit }).await;
                looked_at += 1;
                assert!(some.len() as i64 <= limit && looked_at <= all + expected.len() + 1, "{rows} {limit}");
                found.extend(some.iter().map(&id));
                let is_full = some.len() as i64 == limit;
                // A full page ends with its last row, from which the search continues.
                match (is_full, end) {
                    (true, _) => after = found.last().cloned(),
                    (false, Some(end)) => after = Some(end.id),
                    (false, None) => break,
                }
            }
            assert_eq!(found, expected, "parts of {rows}, pages of {limit}");
        }
    }
}

async fn searches_of_sets_go_on(store: Arc<Store>) {
    let mut sets = Vec::new();
    for i in 0..7 {
        let text = if i % 3 == 0 { format!("find ME {i}") } else { format!("leave {i}") };
        sets.push(stored_set(&store, &text, &["a", "b"], 2).await);
    }
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    for set in &sets[..2] {
        store.judgments().submit(submit(judgment(set, &ada, None, &format!("a{}", set.id)), None, T0)).await.unwrap();
    }
    let mut other = judgment(&sets[1], &bob, None, "other");
    other.items.iter_mut().for_each(|item| item.tier = 1 - item.tier);
    store.judgments().submit(submit(other, None, T0)).await.unwrap();
    let ids = |places: &[usize]| places.iter().map(|i| sets[*i].id.to_string()).collect::<Vec<_>>();
    let all = SetFilter::default();
    for (filter, expected) in [
        (SetFilter { text: Some("find me".into()), ..all.clone() }, ids(&[6, 3, 0])),
        (SetFilter { text: Some("nowhere".into()), ..all.clone() }, ids(&[])),
        (SetFilter { disputed: true, ..all.clone() }, ids(&[1])),
        (SetFilter { text: Some("find".into()), labeler_id: Some(ada.clone()), ..all.clone() }, ids(&[0])),
        (SetFilter { text: Some("leave".into()), status: Some(SetStatus::Done), ..all.clone() }, ids(&[1])),
        (
            SetFilter { text: Some("leave".into()), project: Some(ProjectId::first()), ..all.clone() },
            ids(&[5, 4, 2, 1]),
        ),
        (SetFilter { text: Some("leave".into()), kind: Some(SetKind::Gold), ..all }, ids(&[])),
    ] {
        assert!(filter.is_search());
        let part = async |part: Part| store.sets().search(&filter, part, T0).await.unwrap();
        follow(&expected, sets.len(), |row: &SetRow| row.set.id.to_string(), part).await;
    }
    let part = Part { after: None, rows: 2, limit: 9 };
    let six = SetFilter { text: Some("6".into()), ..SetFilter::default() };
    let (rows, end) = store.sets().search(&six, part, T0).await.unwrap();
    assert_eq!(end, Some(PartEnd { id: sets[5].id.to_string(), created: sets[5].created }));
    assert_eq!((rows[0].messages[0].content.as_str(), rows[0].set.completion_ids.len()), ("find ME 6", 2));
}

async fn searches_of_judgments_go_on(store: Arc<Store>) {
    let sets = [stored_set(&store, "find me", &["a", "b"], 9).await, stored_set(&store, "other", &["a", "b"], 9).await];
    let mut stored = Vec::new();
    for (i, name) in ["ada", "bob", "eve"].into_iter().enumerate() {
        let person = labeler(&store, name).await;
        for set in &sets {
            let rationale = (i == 1).then(|| "I find it clear".to_owned());
            let given = Judgment { rationale, ..judgment(set, &person, None, &format!("{name} {}", set.id)) };
            stored.push(store.judgments().submit(submit(given, None, T0)).await.unwrap().judgment);
        }
    }
    // The first one is superseded, and is found no more.
    let again = Judgment { supersedes_id: Some(stored[0].id.clone()), ..stored[0].clone() };
    let again = Judgment { id: JudgmentId::new(), idempotency_key: "again".into(), revision: 2, ..again };
    stored.push(store.judgments().submit(submit(again, None, T0)).await.unwrap().judgment);
    let ids = |places: &[usize]| places.iter().map(|i| stored[*i].id.to_string()).collect::<Vec<_>>();
    let text = |text: &str| JudgmentFilter { text: Some(text.into()), ..JudgmentFilter::default() };
    let bob = Some(stored[2].labeler_id.clone());
    for (filter, expected) in [
        (text("FIND"), ids(&[6, 4, 3, 2])),
        (JudgmentFilter { labeler_id: bob, ..text("find") }, ids(&[3, 2])),
        (JudgmentFilter { set_id: Some(sets[1].id.clone()), ..text("find") }, ids(&[3])),
        (JudgmentFilter { outcome: Some(Outcome::Ranked), kind: Some(SetKind::Normal), ..text("clear") }, ids(&[3, 2])),
        (JudgmentFilter { project: Some("other".into()), ..text("find") }, ids(&[])),
    ] {
        assert!(filter.is_search());
        let part = async |part: Part| store.judgments().search(&filter, part).await.unwrap();
        follow(&expected, stored.len(), |row: &JudgmentRow| row.id.to_string(), part).await;
    }
}

async fn searches_of_jobs_go_on(store: Arc<Store>) {
    let mut jobs = Vec::new();
    for i in 0..5 {
        let args = json!({"note": if i % 2 == 0 { "find me" } else { "leave me" }});
        jobs.push(store.jobs().enqueue(Job { args, ..job("sft", None, 0) }).await.unwrap());
    }
    let ids = |places: &[usize]| places.iter().map(|i| jobs[*i].id.to_string()).collect::<Vec<_>>();
    for (filter, expected) in [
        (JobFilter { text: Some("FIND".into()), ..JobFilter::default() }, ids(&[4, 2, 0])),
        (JobFilter { text: Some("me".into()), kind: Some("ppo".into()), ..JobFilter::default() }, ids(&[])),
    ] {
        let part = async |part: Part| store.jobs().search(&filter, part).await.unwrap();
        follow(&expected, jobs.len(), |job: &Job| job.id.to_string(), part).await;
    }
}
