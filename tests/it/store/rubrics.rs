//! Versions of rubrics, which of them is active, and ratings with their judgments.

use std::collections::BTreeMap;
use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    versions_are_stored_once_and_one_is_active,
    ratings_come_back_with_their_judgment,
    ratings_of_the_latest_revision_count,
    imported_ratings_follow_their_texts,
    tags_go_with_the_person_and_numbers_stay,
);

fn dimension(key: &str, kind: DimensionKind) -> Dimension {
    Dimension {
        key: key.into(),
        label: BTreeMap::from([("en".into(), key.to_uppercase()), ("zh".into(), "有用".into())]),
        kind,
        required: false,
        points: (kind == DimensionKind::Likert).then_some(7),
        low: BTreeMap::new(),
        high: BTreeMap::new(),
        suggestions: vec![],
    }
}

fn version(id: &str, created: Micros) -> RubricVersion {
    let kinds = [("helpful", DimensionKind::Likert), ("unsafe", DimensionKind::Flag), ("notes", DimensionKind::Tags)];
    let definition = RubricDefinition {
        name: format!("rubric {id}"),
        dimensions: kinds.map(|(key, kind)| dimension(key, kind)).into(),
        rationale: RationaleUse::Optional,
    };
    RubricVersion { rubric: Rubric { version: id.into(), definition }, created, created_by: "admin".into() }
}

fn rating(completion: &CompletionId, dimension: &str, value: RatingValue) -> Rating {
    Rating { completion_id: completion.clone(), dimension: dimension.into(), value }
}

/// A judgment of the set with three ratings, in the order in which they are read.
fn rated(set: &ComparisonSet, labeler: &LabelerId, key: &str, points: i64) -> Judgment {
    let [a, b] = [&set.completion_ids[0], &set.completion_ids[1]];
    let mut ratings = vec![
        rating(a, "helpful", RatingValue::Likert(points)),
        rating(a, "notes", RatingValue::Tags(vec!["warm \u{1F600}".into(), "'quoted'".into()])),
        rating(b, "unsafe", RatingValue::Flag(true)),
    ];
    ratings.sort_by(|x, y| (&x.completion_id, &x.dimension).cmp(&(&y.completion_id, &y.dimension)));
    Judgment { rubric_version: Some("v1".into()), ratings, ..judgment(set, labeler, None, key) }
}

async fn versions_are_stored_once_and_one_is_active(store: Arc<Store>) {
    assert_eq!(
        (store.rubrics().active(&ProjectId::first()).await.unwrap(), store.rubrics().list().await.unwrap()),
        (None, vec![])
    );
    let (first, second) = (version("v1", T0), version("v2", T0 + 1));
    store.rubrics().put(first.clone()).await.unwrap();
    store.rubrics().put(RubricVersion { created: T0 + 9, ..first.clone() }).await.unwrap();
    store.rubrics().put(second.clone()).await.unwrap();
    assert_eq!(store.rubrics().list().await.unwrap(), [second.clone(), first.clone()], "stored once, newest first");
    assert_eq!(store.rubrics().get("v1").await.unwrap(), first);
    is_not_found(store.rubrics().get("v3").await);
    assert_eq!(
        store.rubrics().active(&ProjectId::first()).await.unwrap(),
        None,
        "a stored version is not active by itself"
    );
    let admin: LabelerId = "admin".into();
    is_not_found(store.rubrics().activate(&ProjectId::first(), Some("v3"), &admin, T0).await);
    for (version, expected) in [(Some("v2"), Some(&second)), (Some("v1"), Some(&first)), (None, None)] {
        store.rubrics().activate(&ProjectId::first(), version, &admin, store.now().await.unwrap()).await.unwrap();
        assert_eq!(store.rubrics().active(&ProjectId::first()).await.unwrap().as_ref(), expected.map(|v| &v.rubric));
    }
}

async fn ratings_come_back_with_their_judgment(store: Arc<Store>) {
    store.rubrics().put(version("v1", T0)).await.unwrap();
    let ada = labeler(&store, "ada").await;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let word = rated(&set, &ada, "k", 5);
    let stored = store.judgments().submit(submit(word.clone(), None, T0)).await.unwrap().judgment;
    assert_eq!((&stored.ratings, &stored.rubric_version), (&word.ratings, &word.rubric_version));
    let read = store.judgments().get(&stored.id).await.unwrap();
    assert_eq!(read, stored, "as the answer to the submission says");
    assert_eq!((read.items.len(), read.flags.len()), (2, 1));
    let again = store.judgments().submit(submit(word, None, T0)).await.unwrap();
    assert!(again.replayed && again.judgment == stored);
    assert_eq!(store.judgments().of_set(&set.id).await.unwrap(), std::slice::from_ref(&stored));
    assert_eq!(store.judgments().list(page(10), Some(&ada)).await.unwrap(), std::slice::from_ref(&stored));
    // The view that training reads has them beside the texts.
    let ranked = store.judgments().ranked(&RankedFilter::default()).await.unwrap().remove(0);
    assert_eq!(ranked.rubric_version.as_deref(), Some("v1"));
    let of_a = &ranked.items[0].ratings;
    assert_eq!(of_a["helpful"], RatingValue::Likert(5));
    assert_eq!(of_a["notes"], RatingValue::Tags(vec!["warm \u{1F600}".into(), "'quoted'".into()]));
    assert_eq!(ranked.items[1].ratings, BTreeMap::from([("unsafe".to_owned(), RatingValue::Flag(true))]));
    // A rating of another set's completion is refused with all that came with it.
    let other = stored_set(&store, "other", &["a", "b"], 1).await;
    let mut strange = rated(&other, &ada, "k2", 1);
    strange.ratings[0].completion_id = set.completion_ids[0].clone();
    is_conflict(store.judgments().submit(submit(strange, None, T0)).await);
    assert!(store.judgments().of_set(&other.id).await.unwrap().is_empty());
    let unknown = Judgment { rubric_version: Some("never".into()), ..rated(&other, &ada, "k3", 1) };
    is_conflict(store.judgments().submit(submit(unknown, None, T0)).await);
}

async fn ratings_of_the_latest_revision_count(store: Arc<Store>) {
    store.rubrics().put(version("v1", T0)).await.unwrap();
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let first = store.judgments().submit(submit(rated(&set, &ada, "k1", 2), None, T0)).await.unwrap().judgment;
    let again = Judgment { supersedes_id: Some(first.id), ..rated(&set, &ada, "k2", 7) };
    store.judgments().submit(submit(again, None, T0)).await.unwrap();
    store.judgments().submit(submit(rated(&set, &bob, "k3", 4), None, T0)).await.unwrap();
    let all = store.judgments().ratings(&of_kind(SetKind::Normal)).await.unwrap();
    assert_eq!(all.len(), 6, "three of each labeler: a revision takes the place of the whole judgment");
    let helpful: Vec<_> = all
        .iter()
        .filter(|g| g.rating.dimension == "helpful")
        .map(|g| (g.labeler_id.as_str(), g.rating.value.clone(), g.rubric_version.as_str()))
        .collect();
    assert_eq!(helpful, [("ada", RatingValue::Likert(7), "v1"), ("bob", RatingValue::Likert(4), "v1")]);
    assert!(store.judgments().ratings(&of_kind(SetKind::Gold)).await.unwrap().is_empty());
    assert!(
        store
            .judgments()
            .ratings(&JudgedFilter { since: Some(T0 + 1), ..of_kind(SetKind::Normal) })
            .await
            .unwrap()
            .is_empty()
    );
}

async fn imported_ratings_follow_their_texts(store: Arc<Store>) {
    store.rubrics().put(version("v1", T0)).await.unwrap();
    let ada = labeler(&store, "ada").await;
    // The set is here already, with its texts in another order.
    let bring = |texts: [&str; 2], points: [i64; 2]| {
        let there = prompt("q");
        let completions: Vec<_> = texts.iter().map(|t| completion(&there.id, t)).collect();
        let set = ComparisonSet { selection_policy: "import".into(), ..comparison_set(&there.id, &completions, 1) };
        let ratings = completions.iter().zip(points);
        let ratings = ratings.map(|(c, n)| rating(&c.id, "helpful", RatingValue::Likert(n))).collect();
        let word = Judgment { rubric_version: Some("v1".into()), ratings, ..judgment(&set, &ada, None, "import") };
        (there, completions, set, word)
    };
    let (there, completions, set, word) = bring(["good", "poor"], [6, 2]);
    assert_eq!(import(&store, there, completions.clone(), set, word).await, Imported::New);
    // The same line once more, and one with the same places and other ratings, which is another judgment.
    let (there, again, set, word) = bring(["good", "poor"], [6, 2]);
    assert_eq!(import(&store, there, again, set, word).await, Imported::Known);
    let (there, turned, set, mut word) = bring(["poor", "good"], [3, 7]);
    word.items[0].tier = 1;
    word.items[1].tier = 0;
    assert_eq!(import(&store, there, turned, set, word).await, Imported::New);
    let ranked = store.judgments().ranked(&RankedFilter::default()).await.unwrap();
    let points: Vec<Vec<_>> = ranked
        .iter()
        .map(|r| r.items.iter().map(|i| (i.text.as_str(), i.ratings["helpful"].clone())).collect())
        .collect();
    let points_of = |good, poor| vec![("good", RatingValue::Likert(good)), ("poor", RatingValue::Likert(poor))];
    assert_eq!(points, [points_of(6, 2), points_of(7, 3)]);
    assert_eq!(ranked[1].items[0].completion_id, completions[0].id, "on the completions of the first line");
}

async fn tags_go_with_the_person_and_numbers_stay(store: Arc<Store>) {
    store.rubrics().put(version("v1", T0)).await.unwrap();
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    for (who, key) in [(&ada, "a"), (&bob, "b")] {
        let set = stored_set(&store, key, &["a", "b"], 1).await;
        store.judgments().submit(submit(rated(&set, who, key, 5), None, T0)).await.unwrap();
    }
    store.privacy().erase_labeler(&ada, Erase::Anonymise, "nobody", T0).await.unwrap();
    store.privacy().erase_labeler(&bob, Erase::Remove, "nobody", T0).await.unwrap();
    let left: Vec<_> = store.judgments().ratings(&of_kind(SetKind::Normal)).await.unwrap();
    let mut left: Vec<_> = left.iter().map(|g| (g.labeler_id.as_str(), g.rating.dimension.as_str())).collect();
    left.sort_unstable();
    assert_eq!(left, [("ada", "helpful"), ("ada", "unsafe")]);
}
