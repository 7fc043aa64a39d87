//! Rankings by language models: apart from people's, and counted nowhere unless a filter asks.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    models_are_labelers_that_are_no_people,
    rankings_are_stored_once_by_criteria,
    sets_to_judge_are_those_asked_for,
    rankings_of_models_fill_no_place_and_count_nowhere,
    a_data_set_contains_them_when_it_asks,
    a_removed_set_takes_its_rankings_along,
    open_sets_come_first_by_their_score,
);

fn judge() -> ModelLabeler {
    ModelLabeler { id: "judge-1".into(), name: "wise (m)".into(), created: T0 }
}

/// A ranking in storage order, the last completion best.
fn ranking(set: &ComparisonSet, criteria: &str, created: Micros) -> ModelJudgment {
    let best_last = set.completion_ids.iter().rev().zip(0..);
    ModelJudgment {
        // In the order of time.
        id: format!("{created} {criteria} {}", set.id).into(),
        set_id: set.id.clone(),
        labeler_id: judge().id,
        criteria: criteria.into(),
        doubt: 0.25,
        items: best_last.map(|(id, tier)| (id.clone(), tier)).collect(),
        created,
    }
}

async fn models_are_labelers_that_are_no_people(store: Arc<Store>) {
    let before = (store.people().list().await.unwrap(), store.counts().await.unwrap().labelers);
    store.model_judgments().put_labeler(ModelLabeler { name: "old name".into(), ..judge() }).await.unwrap();
    store.model_judgments().put_labeler(ModelLabeler { created: T0 + 1, ..judge() }).await.unwrap();
    assert_eq!(store.model_judgments().labelers().await.unwrap(), [judge()], "stored once, with its newest name");
    assert_eq!((store.people().list().await.unwrap(), store.counts().await.unwrap().labelers), before);
    let id = judge().id;
    is_not_found(store.people().get(&id).await);
    is_not_found(store.people().set_active(&id, true).await);
    is_not_found(store.people().change(&id, Some(Role::Admin), None, Some(true)).await);
    // Nobody takes its place, neither a person nor a file.
    is_conflict(store.people().put(Labeler::new(id, "me".into(), Role::Admin, T0)).await);
    assert_eq!(store.model_judgments().labelers().await.unwrap(), [judge()]);
}

async fn rankings_are_stored_once_by_criteria(store: Arc<Store>) {
    store.model_judgments().put_labeler(judge()).await.unwrap();
    let set = stored_set(&store, "q", &["a", "b", "c"], 1).await;
    let first = ranking(&set, "helpful", T0);
    assert_eq!(store.model_judgments().append(vec![first.clone()]).await.unwrap(), 1);
    let again = ranking(&set, "helpful", T0 + 1);
    let other = ranking(&set, "harmless", T0 + 2);
    assert_eq!(store.model_judgments().append(vec![again, other.clone()]).await.unwrap(), 1, "one is new");
    let all = store.model_judgments().all(&of_kind(SetKind::Normal)).await.unwrap();
    assert_eq!(all, [first, other.clone()]);
    assert_eq!(store.model_judgments().of_set(&set.id).await.unwrap(), all);
    assert_eq!(store.model_judgments().of_set(&"gone".into()).await.unwrap(), []);
    assert_eq!(
        store.model_judgments().all(&JudgedFilter { since: Some(T0 + 2), ..of_kind(SetKind::Normal) }).await.unwrap(),
        [other]
    );
    assert_eq!(store.model_judgments().all(&of_kind(SetKind::Gold)).await.unwrap(), []);
    // All or none.
    let second = stored_set(&store, "q2", &["a", "b"], 1).await;
    for items in [vec![(second.completion_ids[0].clone(), 0)], ranking(&set, "x", T0).items] {
        let wrong = ModelJudgment { items, ..ranking(&second, "helpful", T0) };
        is_conflict(store.model_judgments().append(vec![ranking(&set, "kind", T0), wrong]).await);
    }
    assert_eq!(store.model_judgments().all(&of_kind(SetKind::Normal)).await.unwrap().len(), 2);
    let gone = ModelJudgment { set_id: "gone".into(), ..ranking(&second, "helpful", T0) };
    assert_eq!(store.model_judgments().append(vec![gone]).await.unwrap(), 0);
}

async fn sets_to_judge_are_those_asked_for(store: Arc<Store>) {
    store.model_judgments().put_labeler(judge()).await.unwrap();
    let ada = labeler(&store, "ada").await;
    let mut sets = Vec::new();
    for text in ["open", "ranked", "judged", "retired", "gold", "asked"] {
        let source = if text == "asked" { "chat" } else { "api" };
        let prompt = store.prompts().put(Prompt { source: source.into(), ..prompt(text) }).await.unwrap();
        let texts = ["a", "b"].map(|answer| completion(&prompt.id, answer));
        store.completions().put(texts.to_vec()).await.unwrap();
        // Ids in the order of the list.
        let set = ComparisonSet { id: format!("set {}", sets.len()).into(), ..comparison_set(&prompt.id, &texts, 1) };
        store.sets().put(set.clone()).await.unwrap();
        sets.push(set);
    }
    store.judgments().submit(submit(judgment(&sets[1], &ada, None, "k"), None, T0)).await.unwrap();
    store.model_judgments().append(vec![ranking(&sets[2], "helpful", T0)]).await.unwrap();
    store.sets().retire(&sets[3].id).await.unwrap();
    let tiers: Vec<(CompletionId, i64)> = sets[4].completion_ids.iter().cloned().zip(0..).collect();
    store.sets().make_gold(&sets[4].id, SetKind::Gold, &tiers, None).await.unwrap();
    let found = async |which, criteria: &str, without_requests, limit| {
        let (labeler_id, criteria) = (judge().id, criteria.to_owned());
        let wanted = ToJudge { labeler_id, criteria, which, without_requests, limit };
        let ids = store.model_judgments().to_judge(&wanted).await.unwrap();
        ids.iter().map(|id| sets.iter().position(|set| set.id == *id).unwrap()).collect::<Vec<_>>()
    };
    // The newest first.
    assert_eq!(found(SetsToJudge::Open, "helpful", true, 9).await, [0]);
    assert_eq!(found(SetsToJudge::Open, "helpful", false, 9).await, [5, 0]);
    assert_eq!(found(SetsToJudge::Ranked, "helpful", true, 9).await, [1]);
    assert_eq!(found(SetsToJudge::All, "helpful", true, 9).await, [1, 0]);
    assert_eq!(found(SetsToJudge::All, "other", true, 9).await, [2, 1, 0]);
    assert_eq!(found(SetsToJudge::All, "other", true, 2).await, [2, 1]);
}

async fn rankings_of_models_fill_no_place_and_count_nowhere(store: Arc<Store>) {
    store.model_judgments().put_labeler(judge()).await.unwrap();
    let ada = labeler(&store, "ada").await;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let before = store.counts().await.unwrap();
    store.model_judgments().append(vec![ranking(&set, "helpful", T0)]).await.unwrap();
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Open);
    let after = store.counts().await.unwrap();
    assert_eq!((after.judgments, after.sets_open), (before.judgments, before.sets_open));
    assert_eq!(judged(&store, None, None).await, []);
    assert_eq!(store.judgments().of_set(&set.id).await.unwrap(), []);
    assert_eq!(store.judgments().list(page(9), None).await.unwrap(), []);
    assert_eq!(store.judgments().ranked(&RankedFilter::default()).await.unwrap(), []);
    let informed = RankedFilter { informed: true, unsettled: true, ..RankedFilter::default() };
    assert_eq!(store.judgments().ranked(&informed).await.unwrap(), []);
    // The only place is free.
    let leased = store.leases().next(lease(&ada, T0)).await.unwrap();
    assert_eq!(leased.map(|assignment| assignment.set_id), Some(set.id));
}

async fn a_data_set_contains_them_when_it_asks(store: Arc<Store>) {
    store.model_judgments().put_labeler(judge()).await.unwrap();
    let ada = labeler(&store, "ada").await;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let by_ada = store.judgments().submit(submit(judgment(&set, &ada, None, "k"), None, T0)).await.unwrap().judgment;
    let (old, new) = (ranking(&set, "helpful", T0 + 5), ranking(&set, "harmless", T0 + 9));
    store.model_judgments().append(vec![old.clone(), new.clone()]).await.unwrap();
    let of = async |labelers, change: &dyn Fn(&mut RankedFilter)| {
        let mut filter = RankedFilter { labelers, ..RankedFilter::default() };
        change(&mut filter);
        let found = store.judgments().ranked(&filter).await.unwrap();
        found.into_iter().map(|ranked| ranked.judgment_id).collect::<Vec<_>>()
    };
    assert_eq!(of(LabelersUsed::Human, &|_| ()).await, std::slice::from_ref(&by_ada.id));
    // The judge's last word, by whatever criteria; at an earlier time its earlier one.
    assert_eq!(of(LabelersUsed::Model, &|_| ()).await, std::slice::from_ref(&new.id));
    assert_eq!(of(LabelersUsed::Model, &|f| f.as_of = Some(T0 + 6)).await, std::slice::from_ref(&old.id));
    assert_eq!(of(LabelersUsed::Model, &|f| f.as_of = Some(T0)).await, []);
    assert_eq!(of(LabelersUsed::All, &|_| ()).await, [by_ada.id, new.id.clone()]);
    assert_eq!(of(LabelersUsed::All, &|f| f.labeler_id = Some(judge().id)).await, std::slice::from_ref(&new.id));
    assert_eq!(of(LabelersUsed::Model, &|f| f.split = Some(Split::Heldout)).await, []);
    let filter = RankedFilter { labelers: LabelersUsed::Model, ..RankedFilter::default() };
    for set in store.judgments().ranked(&filter).await.unwrap().into_iter().map(|one| one.set_id) {
        let all = store.judgments().ranked(&filter).await.unwrap();
        let of_set: Vec<_> = all.into_iter().filter(|one| one.set_id == set).collect();
        assert_eq!(store.judgments().ranked_of_set(&filter, &set).await.unwrap(), of_set);
    }
    let (found, more) = store.judgments().ranked_page(&filter, LabelerKind::Model, None, 1).await.unwrap();
    assert_eq!(more, Some(new.id));
    let texts: Vec<(&str, i64)> = found[0].items.iter().map(|item| (item.text.as_str(), item.tier)).collect();
    assert_eq!(texts, [("b", 0), ("a", 1)], "best first");
    assert_eq!(
        (found[0].knowledge, found[0].outcome, found[0].labeler_id.as_str()),
        (Knowledge::Blind, Outcome::Ranked, "judge-1")
    );
    assert_eq!(store.judgments().latest().await.unwrap(), Some(T0 + 9));
}

async fn a_removed_set_takes_its_rankings_along(store: Arc<Store>) {
    store.model_judgments().put_labeler(judge()).await.unwrap();
    let ada = labeler(&store, "ada").await;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    store.sets().note_maker(&set.id, &ada).await.unwrap();
    store.model_judgments().append(vec![ranking(&set, "helpful", T0)]).await.unwrap();
    let erased = store.privacy().erase_labeler(&ada, Erase::Remove, "nobody", T0).await.unwrap();
    assert_eq!(erased.sets, 1);
    is_not_found(store.sets().get(&set.id).await);
    assert_eq!(store.model_judgments().all(&of_kind(SetKind::Normal)).await.unwrap(), []);
}

async fn open_sets_come_first_by_their_score(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let first = stored_set(&store, "q1", &["a", "b"], 1).await;
    let second = stored_set(&store, "q2", &["a", "b"], 1).await;
    assert!(store.sets().prioritise(&second.id, 0.5).await.unwrap());
    let leased = store.leases().next(lease(&ada, T0)).await.unwrap();
    assert_eq!(leased.map(|assignment| assignment.set_id), Some(second.id));
    store.judgments().submit(submit(judgment(&first, &bob, None, "k"), None, T0)).await.unwrap();
    assert!(!store.sets().prioritise(&first.id, 0.5).await.unwrap(), "it is done");
    assert_eq!(store.sets().get(&first.id).await.unwrap().selection_score, None);
}
