//! Conversations, spans of judgments, and corrected completions.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    turns_follow_each_other,
    spans_come_back_with_their_judgment,
    corrections_are_demonstrations_of_an_edit,
    conversations_and_notes_go_with_the_person,
);

fn turn(labeler: &LabelerId, before: &ComparisonSet, next: &ComparisonSet, now: Micros) -> NewTurn {
    NewTurn {
        labeler_id: labeler.clone(),
        before: before.id.clone(),
        continued: before.completion_ids[0].clone(),
        set_id: next.id.clone(),
        now,
    }
}

async fn turns_follow_each_other(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let mut sets = Vec::new();
    for i in 0..6 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 1).await);
    }
    assert_eq!(store.conversations().of_set(&sets[0].id).await.unwrap(), None);
    let two = store.conversations().put_turn(turn(&ada, &sets[0], &sets[1], T0)).await.unwrap();
    assert_eq!((&two.labeler_id, two.created), (&ada, T0));
    let three = store.conversations().put_turn(turn(&ada, &sets[1], &sets[2], T0 + 5)).await.unwrap();
    let expected = |n: usize, continued: Option<&CompletionId>, created| ConversationTurn {
        turn: n as i64 + 1,
        set_id: sets[n].id.clone(),
        continued: continued.cloned(),
        judgment_id: None,
        created,
    };
    let turns = [
        expected(0, None, T0),
        expected(1, Some(&sets[0].completion_ids[0]), T0),
        expected(2, Some(&sets[1].completion_ids[0]), T0 + 5),
    ];
    assert_eq!((&three.id, &three.turns[..]), (&two.id, &turns[..]));
    for set in &sets[..3] {
        assert_eq!(store.conversations().of_set(&set.id).await.unwrap().as_ref(), Some(&three));
    }
    assert_eq!(store.conversations().get(&three.id).await.unwrap(), three);
    is_not_found(store.conversations().get(&"no".into()).await);
    // A turn names its labeler's latest judgment, and nobody else's.
    store.judgments().submit(submit(judgment(&sets[1], &bob, None, "b"), None, T0)).await.unwrap();
    let first = judgment(&sets[1], &ada, None, "a");
    store.judgments().submit(submit(first.clone(), None, T0)).await.unwrap();
    let again = Judgment { supersedes_id: Some(first.id), ..judgment(&sets[1], &ada, None, "c") };
    let again = store.judgments().submit(submit(again, None, T0)).await.unwrap().judgment;
    let three = store.conversations().get(&three.id).await.unwrap();
    let judged: Vec<_> = three.turns.iter().map(|turn| turn.judgment_id.clone()).collect();
    assert_eq!(judged, [None, Some(again.id), None]);
    // Only behind the last turn, and only by the same person.
    is_conflict(store.conversations().put_turn(turn(&ada, &sets[0], &sets[3], T0)).await);
    is_conflict(store.conversations().put_turn(turn(&ada, &sets[1], &sets[3], T0)).await);
    is_conflict(store.conversations().put_turn(turn(&bob, &sets[2], &sets[3], T0)).await);
    // A set is in one conversation.
    is_conflict(store.conversations().put_turn(turn(&ada, &sets[3], &sets[2], T0)).await);
    assert_eq!(store.conversations().of_set(&sets[3].id).await.unwrap(), None, "and nothing of it is stored");
    let (x, y) = tokio::join!(
        store.conversations().put_turn(turn(&bob, &sets[3], &sets[4], T0)),
        store.conversations().put_turn(turn(&bob, &sets[3], &sets[5], T0)),
    );
    assert_eq!(usize::from(x.is_ok()) + usize::from(y.is_ok()), 1, "one of two at the same time");
    let of = async |who: &LabelerId, after: Option<&ConversationId>| {
        let page = Page { after: after.map(ToString::to_string), limit: 1 };
        store.conversations().list(who, page).await.unwrap()
    };
    assert_eq!(of(&ada, None).await, std::slice::from_ref(&three));
    assert_eq!(of(&ada, Some(&three.id)).await, []);
    assert_eq!(of(&bob, None).await[0].turns.len(), 2);
}

fn span(completion: &CompletionId, start: i64, end: i64, note: Option<&str>) -> Span {
    Span { completion_id: completion.clone(), start, end, note: note.map(Into::into) }
}

/// A judgment with three spans, in the order in which they are read.
fn marked(set: &ComparisonSet, who: &LabelerId, key: &str) -> Judgment {
    let [a, b] = [&set.completion_ids[0], &set.completion_ids[1]];
    let mut spans = vec![span(a, 10, 12, None), span(a, 2, 4, Some("no \u{1F600} 'quoted'")), span(b, 0, 1, Some("x"))];
    spans.sort_by(|x, y| (&x.completion_id, x.start).cmp(&(&y.completion_id, y.start)));
    Judgment { spans, ..judgment(set, who, None, key) }
}

async fn spans_come_back_with_their_judgment(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let given = marked(&set, &ada, "k1");
    let stored = store.judgments().submit(submit(given.clone(), None, T0)).await.unwrap().judgment;
    assert_eq!(stored.spans, given.spans);
    store.judgments().submit(submit(judgment(&set, &bob, None, "k2"), None, T0)).await.unwrap();
    assert_eq!(store.judgments().get(&stored.id).await.unwrap(), stored, "with items, flags and spans apart");
    let listed = store.judgments().list(Page { after: None, limit: 10 }, Some(&ada)).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&stored));
    assert_eq!(store.judgments().of_set(&set.id).await.unwrap()[0], stored);
    let again = store.judgments().submit(submit(given.clone(), None, T0)).await.unwrap();
    assert!(again.replayed && again.judgment == stored);
    for ranked in store.judgments().ranked(&RankedFilter::default()).await.unwrap() {
        for item in &ranked.items {
            let of_item = given.spans.iter().filter(|s| s.completion_id == item.completion_id);
            let expected: Vec<_> = of_item.map(|s| (s.start, s.end, s.note.clone())).collect();
            let found: Vec<_> = item.spans.iter().map(|s| (s.start, s.end, s.note.clone())).collect();
            assert_eq!(found, if ranked.labeler_id == ada { expected } else { vec![] });
        }
    }
    let foreign = stored_set(&store, "other", &["c", "d"], 1).await;
    let spans = vec![span(&foreign.completion_ids[0], 0, 1, None)];
    is_conflict(store.judgments().submit(submit(Judgment { spans, ..marked(&set, &bob, "k3") }, None, T0)).await);
}

async fn corrections_are_demonstrations_of_an_edit(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let edit = |of: usize, text: &str| Completion {
        origin: CompletionOrigin::Edit,
        parent_completion_id: Some(set.completion_ids[of].clone()),
        ..completion(&set.prompt_id, text)
    };
    let mut given = submit(judgment(&set, &ada, None, "k"), None, T0);
    given.ideal_answer = Some(completion(&set.prompt_id, "ideal"));
    given.corrections = vec![edit(0, "better a \u{1F600}"), edit(1, "better b\n")];
    store.judgments().submit(given.clone()).await.unwrap();
    store.judgments().submit(given.clone()).await.unwrap();
    let all = store.demonstrations().page(None, 9).await.unwrap();
    let facts = |c: &Completion| (c.text.clone(), c.id.clone(), c.origin, c.parent_completion_id.clone());
    let mut found: Vec<_> = all.iter().map(|(_, _, c)| facts(c)).collect();
    let mut expected: Vec<_> = given.ideal_answer.iter().chain(&given.corrections).map(facts).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected, "each once, with the completion that it corrects");
    let corrections = store.sets().corrections(&set.id).await.unwrap();
    assert!(corrections.iter().all(|(who, _)| *who == ada));
    let mut found: Vec<_> = corrections.iter().map(|(_, c)| facts(c)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    expected.retain(|c| c.0 != "ideal");
    assert_eq!(found, expected, "without the ideal answer, which corrects nothing");
    let other = stored_set(&store, "other", &["a", "b"], 1).await;
    assert_eq!(store.sets().corrections(&other.id).await.unwrap(), []);
}

async fn conversations_and_notes_go_with_the_person(store: Arc<Store>) {
    for how in [Erase::Anonymise, Erase::Remove] {
        let who = labeler(&store, &format!("{how:?}")).await;
        let (first, second) = (
            stored_set(&store, &format!("first {how:?}"), &["a", "b"], 1).await,
            stored_set(&store, &format!("second {how:?}"), &["a", "b"], 1).await,
        );
        for set in [&first, &second] {
            store.sets().note_maker(&set.id, &who).await.unwrap();
        }
        let conversation = store.conversations().put_turn(turn(&who, &first, &second, T0)).await.unwrap();
        let key = format!("{how:?}");
        let stored = store.judgments().submit(submit(marked(&first, &who, &key), None, T0)).await.unwrap().judgment;
        let data = store.privacy().personal_data(&who, "").await.unwrap();
        let sets = vec![first.id.clone(), second.id.clone()];
        assert_eq!(data.conversations, [(conversation.id.clone(), sets, T0)]);
        store.privacy().erase_labeler(&who, how, "", T0).await.unwrap();
        is_not_found(store.conversations().get(&conversation.id).await);
        assert_eq!(store.privacy().personal_data(&who, "").await.unwrap().conversations, []);
        match how {
            Erase::Anonymise => {
                let spans = store.judgments().get(&stored.id).await.unwrap().spans;
                assert_eq!(spans.len(), 3, "positions are kept");
                assert!(spans.iter().all(|s| s.note.is_none()), "words are not");
            }
            Erase::Remove => {
                is_not_found(store.judgments().get(&stored.id).await);
                is_not_found(store.sets().get(&second.id).await);
            }
        }
    }
}
