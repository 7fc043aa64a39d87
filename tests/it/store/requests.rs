//! Both backends: what came in as requests, its expiry, and what is noted of erasures and backups; and the reads behind
//! a labeler's turn.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

use super::conformance::{conformance, is_not_found};
use super::fixture::*;

conformance!(
    requests_are_known,
    old_requests_go,
    erasures_and_backups_are_listed,
    feedback_comes_in_pages_of_whole_prompts,
    a_turn_is_read,
    sign_in_is_read,
);

/// A prompt of a request with one answer.
async fn request(store: &Store, text: &str, created: Micros) -> (PromptId, CompletionId) {
    let asked = Prompt { source: "chat".into(), created, ..prompt(text) };
    let answer = Completion { created, ..completion(&asked.id, &format!("{text}!")) };
    store.completions().put_answers(asked.clone(), vec![answer.clone()], Some("chat")).await.unwrap();
    (asked.id, answer.id)
}

async fn thumb(store: &Store, completion: &CompletionId, key: &str, created: Micros) -> FeedbackEvent {
    let event = FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: completion.clone(),
        kind: "thumb".into(),
        value: json!("up"),
        actor_hash: None,
        idempotency_key: key.into(),
        created,
    };
    store.feedback().put(event).await.unwrap()
}

async fn requests_are_known(store: Arc<Store>) {
    let set = stored_set(&store, "for labeling", &["a", "b"], 1).await;
    let (asked, answer) = request(&store, "asked", T0).await;
    let ours = thumb(&store, &set.completion_ids[0], "ours", T0).await;
    let theirs = thumb(&store, &answer, "theirs", T0 + 1).await;
    let counts = store.prompts().request_counts().await.unwrap();
    assert_eq!(counts, RequestCounts { prompts: 1, completions: 1, feedback_events: 1 });
    let both = [asked.clone(), set.prompt_id.clone(), "unknown".into()];
    assert_eq!(store.prompts().of_requests(&both).await.unwrap(), [asked.clone()].into());
    assert_eq!(store.completions().served(&asked).await.unwrap().into_iter().collect::<Vec<_>>(), [answer]);
    assert!(store.completions().served(&set.prompt_id).await.unwrap().is_empty());
    let facts = async |as_of, without| {
        let which = FeedbackFilter { as_of, without_requests: without };
        let (facts, after) = store.feedback().page(&which, None, 9).await.unwrap();
        assert_eq!(after, None);
        facts.into_iter().map(|f| (f.prompt.id, f.event.id)).collect::<Vec<_>>()
    };
    let (mine, other) = ((set.prompt_id.clone(), ours.id), (asked.clone(), theirs.id));
    let mut both_events = [mine.clone(), other];
    both_events.sort();
    assert_eq!(facts(None, false).await, both_events);
    assert_eq!(facts(Some(T0), false).await, std::slice::from_ref(&mine));
    assert_eq!(facts(None, true).await, [mine]);

    // A prompt that somebody submits is no longer a request's alone.
    let (ada, eve) = (labeler(&store, "ada").await, labeler(&store, "eve").await);
    let again = Prompt { id: PromptId::new(), ..prompt("asked") };
    assert_eq!(store.prompts().submit(again, &ada).await.unwrap().id, asked);
    assert!(store.prompts().is_of(&asked, &ada).await.unwrap());
    assert!(!store.prompts().is_of(&asked, &eve).await.unwrap());
    assert!(store.prompts().of_requests(&both).await.unwrap().is_empty());
    assert_eq!(store.prompts().request_counts().await.unwrap().prompts, 0);
}

async fn feedback_comes_in_pages_of_whole_prompts(store: Arc<Store>) {
    let mut expected = Vec::new();
    for text in ["first", "second", "third", "fourth", "fifth"] {
        let (prompt, answer) = request(&store, text, T0).await;
        for (key, created) in [("later", T0 + 2), ("earlier", T0 + 1), ("last", T0 + 3)] {
            let event = thumb(&store, &answer, &format!("{key} on {text}"), created).await;
            expected.push((prompt.clone(), created, event.id));
        }
    }
    expected.sort();
    let pages = async |which: FeedbackFilter, prompts| {
        let (mut found, mut sizes, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let (page, next) = store.feedback().page(&which, after.as_ref(), prompts).await.unwrap();
            sizes.push(page.len());
            found.extend(page.into_iter().map(|f| (f.prompt.id, f.event.created, f.event.id)));
            after = next;
            if after.is_none() {
                return (found, sizes);
            }
        }
    };
    assert_eq!(pages(FeedbackFilter::default(), 2).await, (expected.clone(), vec![6, 6, 3]));
    // The end of a full last page is found by an empty one.
    assert_eq!(pages(FeedbackFilter::default(), 5).await, (expected.clone(), vec![15, 0]));
    // Pages without an event that is selected are not the end.
    let none = FeedbackFilter { as_of: Some(T0), ..FeedbackFilter::default() };
    assert_eq!(pages(none, 2).await, (vec![], vec![0, 0, 0]));
    let early = FeedbackFilter { as_of: Some(T0 + 1), ..FeedbackFilter::default() };
    expected.retain(|(_, created, _)| *created == T0 + 1);
    assert_eq!(pages(early, 2).await, (expected, vec![2, 2, 1]));
}

async fn old_requests_go(store: Arc<Store>) {
    let (old, old_answer) = request(&store, "old", T0).await;
    let (new, _) = request(&store, "new", T0 + 10).await;
    thumb(&store, &old_answer, "on the old one", T0 + 5).await;
    let kept = stored_set(&store, "kept", &["a", "b"], 1).await;
    let cuts = Cuts { feedback: T0, requests: T0 + 5, kept_feedback: Micros::MIN, kept_prompts: Micros::MIN };
    let records = async |what| {
        let (stored, going) = (
            store.privacy().stored(what, None, 10).await.unwrap().0,
            store.privacy().expiring(what, cuts, None, 10).await.unwrap().0,
        );
        assert!(stored.bytes >= going.bytes && (going.records == 0) == (going.bytes == 0), "{stored:?} {going:?}");
        (stored.records, going.records)
    };
    assert_eq!(records(Expiring::Feedback).await, (1, 1));
    assert_eq!(records(Expiring::Completions).await, (2, 1));
    assert_eq!(records(Expiring::Prompts).await, (2, 1));

    // In stretches of one, forwards and backwards, with what is kept between them.
    for what in [Expiring::Feedback, Expiring::Completions, Expiring::Prompts] {
        let (mut counted, mut after) = (0, None);
        loop {
            let (amount, last) = store.privacy().expiring(what, cuts, after.as_ref(), 1).await.unwrap();
            counted += amount.records;
            after = last;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(counted, 1, "{what:?}");
        let (mut parts, mut after) = (Vec::new(), None);
        loop {
            let (amount, last) = store.privacy().stored(what, after.as_ref(), 1).await.unwrap();
            parts.push(amount);
            after = last;
            if after.is_none() {
                break;
            }
        }
        let whole = store.privacy().stored(what, None, 10).await.unwrap();
        let sum = parts.iter().fold(Amount::default(), |mut sum, part| {
            sum += *part;
            sum
        });
        assert_eq!((sum, None, parts.len() as i64 - 1), (whole.0, whole.1, whole.0.records), "{what:?}");
        let all = Cuts { requests: Micros::MAX, ..cuts };
        let oldest = store.privacy().candidates(what, all, Stretch::After(None), 10).await.unwrap();
        let mut newest = store.privacy().candidates(what, all, Stretch::Before(None), 10).await.unwrap();
        let middle = oldest.first().map(|candidate| candidate.position.clone());
        let rest = store.privacy().candidates(what, all, Stretch::After(middle.as_ref()), 10).await.unwrap();
        assert_eq!(rest, oldest[1..], "{what:?}");
        assert!(oldest.is_sorted_by(|a, b| a.position < b.position));
        newest.reverse();
        assert_eq!(newest, oldest, "{what:?}");
    }

    for (what, gone) in [(Expiring::Feedback, 1), (Expiring::Completions, 1), (Expiring::Prompts, 1)] {
        assert_eq!(store.privacy().expire(what, cuts, None, 10).await.unwrap().0.records, gone, "{what:?}");
        assert_eq!(store.privacy().expire(what, cuts, None, 10).await.unwrap(), (Amount::default(), None), "{what:?}");
    }
    is_not_found(store.completions().get(&old_answer).await);
    is_not_found(store.prompts().get(&old).await);
    assert_eq!(store.prompts().get(&new).await.unwrap().id, new);
    assert_eq!(store.sets().get(&kept.id).await.unwrap(), kept);
}

async fn erasures_and_backups_are_listed(store: Arc<Store>) {
    let (ada, eve) = (labeler(&store, "ada").await, labeler(&store, "eve").await);
    assert_eq!(store.privacy().erased_people().await.unwrap(), []);
    store.privacy().erase_labeler(&eve, Erase::Anonymise, "hash", T0 + 2).await.unwrap();
    store.privacy().erase_labeler(&ada, Erase::Remove, "hash", T0 + 1).await.unwrap();
    let person = |labeler_id, judgments, created| ErasedPerson { labeler_id, judgments, created };
    let expected = [person(ada, Erase::Remove, T0 + 1), person(eve, Erase::Anonymise, T0 + 2)];
    assert_eq!(store.privacy().erased_people().await.unwrap(), expected);

    for (path, at) in [("/b/2", T0 + 2), ("/b/1", T0 + 1), ("/b/2", T0 + 3)] {
        store.backups().put(path, at).await.unwrap();
    }
    let listed = |rows: &[(&str, Micros)]| rows.iter().map(|(p, at)| ((*p).to_owned(), *at)).collect::<Vec<_>>();
    assert_eq!(store.backups().list().await.unwrap(), listed(&[("/b/1", T0 + 1), ("/b/2", T0 + 3)]));
    store.backups().forget("/b/1").await.unwrap();
    store.backups().forget("/b/unknown").await.unwrap();
    assert_eq!(store.backups().list().await.unwrap(), listed(&[("/b/2", T0 + 3)]));
}

async fn a_turn_is_read(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let ada = labeler(&store, "ada").await;
    let ask = OutlookRequest {
        labeler_id: ada.clone(),
        project_id: ProjectId::first(),
        now: T0,
        since: T0 - 10,
        set_id: None,
        special: None,
        again: false,
        most_open: 5,
        most_calibrations: 5,
        lang: None,
        expires_at: T0 + LEASE,
    };
    let outlook = store.leases().outlook(&ask).await.unwrap();
    assert_eq!((outlook.open, outlook.in_hand, outlook.ordinary_free), (1, 0, true));
    let Leased::Set(held) = store.leases().take(lease(&ada, T0), outlook).await.unwrap() else {
        panic!("there is a set to hand out")
    };
    assert_eq!(held.set_id, set.id);
    let outlook = store.leases().outlook(&ask).await.unwrap();
    assert_eq!((outlook.in_hand, outlook.ordinary_free), (1, false));
    assert_eq!(store.leases().take(lease(&ada, T0), outlook).await.unwrap(), Leased::Nothing(NoLease::Held));

    let content = store.sets().content(&set.id).await.unwrap();
    assert_eq!((&content.set, &content.prompt.id), (&set, &set.prompt_id));
    assert_eq!(content.completions.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    is_not_found(store.sets().content(&"none".into()).await);
    let prompts = store.sets().prompts(&[set.id.clone(), "none".into()]).await.unwrap();
    assert_eq!((prompts.len(), &prompts[&set.id]), (1, &content.prompt.messages));

    for place in [Place::Assignment(held.id.clone()), Place::Set(set.id.clone(), Some(held.id.clone()))] {
        let question = store.judgments().question(&place, &ada, None, Some("en"), None, T0).await.unwrap();
        assert_eq!((&question.set, question.assignment.as_ref()), (&set, Some(&held)));
        assert!(question.expected.is_empty() && question.former.is_none() && question.guidelines.is_none());
        assert_eq!(question.authors.len(), 2);
        assert!(question.authors.values().all(|a| a.name == "human" && !a.is_model));
    }
    is_not_found(store.judgments().question(&Place::Set("none".into(), None), &ada, None, None, None, T0).await);

    assert_eq!(store.judgments().latest().await.unwrap(), None);
    let given = judgment(&set, &ada, Some(&held), "k");
    store.judgments().submit(submit(given.clone(), Some(&held), T0 + 7)).await.unwrap();
    assert_eq!(store.judgments().latest().await.unwrap(), Some(given.created));
    let revised = store
        .judgments()
        .question(&Place::Set(set.id.clone(), None), &ada, Some(&given.id), None, None, T0)
        .await
        .unwrap();
    assert_eq!(revised.former, Some((set.id.clone(), ada.clone())));
    store.judgments().put_reveal(&set.id, &ada, Knowledge::Authors, T0 + 8).await.unwrap();
    assert_eq!(store.judgments().reveals(&set.id, &ada).await.unwrap(), [Knowledge::Authors]);

    let ideal = completion(&set.prompt_id, "ideal");
    let first = store.demonstrations().put(content.prompt.clone(), ideal, Some(ada.clone()), T0).await.unwrap();
    let second = completion(&set.prompt_id, "another");
    store.demonstrations().put(content.prompt, second, None, T0 + 1).await.unwrap();
    let texts = async |after: Option<&Demonstration>| {
        let page = store.demonstrations().page(after, 10).await.unwrap();
        page.into_iter().map(|(d, _, c)| (d.labeler_id, c.text)).collect::<Vec<_>>()
    };
    let rest = (None, "another".to_owned());
    assert_eq!(texts(None).await, [(Some(ada), "ideal".to_owned()), rest.clone()]);
    assert_eq!(texts(Some(&first)).await, [rest]);
}

async fn sign_in_is_read(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let key = ApiKey {
        id: "k".into(),
        name: "k".into(),
        key_hash: "kh".into(),
        scopes: vec!["feedback".into()],
        labeler_id: Some(ada.clone()),
        daily_tokens: None,
        origin: KeyOrigin::Created,
        revoked: false,
        created: T0,
    };
    store.api_keys().put(key.clone()).await.unwrap();
    let person = store.people().get(&ada).await.unwrap();
    assert_eq!(store.api_keys().owner("kh").await.unwrap(), Some((key.clone(), Some(person.clone()))));
    assert_eq!(store.api_keys().owner("other").await.unwrap(), None);
    let session = Session {
        token_hash: "t".into(),
        labeler_id: ada.clone(),
        role: Role::Labeler,
        credential: "k".into(),
        used: T0,
        expires: T0 + 100,
        created: T0,
    };
    store.sessions().put(session.clone()).await.unwrap();
    let open = store.sessions().open("t", T0 + 99).await.unwrap().expect("the session is open");
    assert_eq!((open.session, open.person, open.link_is_live), (session, person.clone(), false));
    assert_eq!(open.key, Some((key.clone(), Some(person))));
    assert_eq!(store.sessions().open("t", T0 + 100).await.unwrap(), None);
    store.api_keys().revoke(&key.id).await.unwrap();
    assert_eq!(store.api_keys().owner("kh").await.unwrap(), None);
    assert_eq!(store.sessions().open("t", T0).await.unwrap(), None, "a revoked key ends its sessions");
}
