//! The one suite that both backends must pass: prompts, sets, leases, people, models.
//! Judgments are in `judging.rs`, the job queue in `queue.rs`.

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
        mod through_a_pooler { $($crate::store::conformance::conformance!(@ $case pooler);)* }
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
pub(crate) use conformance;

conformance!(
    prompts_are_one_per_content,
    completions_round_trip_bit_for_bit,
    sets_keep_their_order_and_their_prompt,
    leases_respect_the_overlap,
    a_labeler_never_gets_a_judged_set_again,
    an_expired_lease_frees_its_place,
    tokens_fence_leases,
    concurrent_leasers_never_share_a_place,
    gold_answers,
    people_and_access,
    identities_are_one_person_each,
    key_maps_are_a_persons_own,
    links_replace_each_other_and_end,
    leases_of_a_clock_that_was_ahead_are_ended,
    one_model_of_a_kind_is_active,
    a_dropped_caller_does_not_cancel_its_write,
    counts_count,
);

pub(super) fn is_conflict<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::Conflict(_)) => true,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

pub(super) fn is_lost<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::LeaseLost(_)) => true,
        other => panic!("expected a lost lease, got {other:?}"),
    }
}

pub(super) fn is_not_found<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(StoreError::NotFound { .. }) => true,
        other => panic!("expected not found, got {other:?}"),
    }
}

async fn prompts_are_one_per_content(store: Arc<Store>) {
    store.ping().await.unwrap();
    let first = store.prompts().put(prompt("hello")).await.unwrap();
    let again = store.prompts().put(prompt("hello")).await.unwrap();
    assert_eq!(first, again, "the stored row comes back, with its first id");
    assert_eq!(store.prompts().get(&first.id).await.unwrap(), first);
    is_not_found(store.prompts().get(&"nobody".into()).await);
    let mut ids = vec![first.id];
    for i in 0..4 {
        ids.push(store.prompts().put(prompt(&format!("p{i}"))).await.unwrap().id);
    }
    ids.sort();
    ids.reverse();
    let newest = store.prompts().list(page(2), None).await.unwrap();
    assert_eq!(newest.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), ids[..2]);
    let after = Page { after: Some(ids[1].to_string()), limit: 10 };
    let rest = store.prompts().list(after, Some("api")).await.unwrap();
    assert_eq!(rest.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), ids[2..]);
    assert!(store.prompts().list(page(10), Some("import:x")).await.unwrap().is_empty());
}

async fn completions_round_trip_bit_for_bit(store: Arc<Store>) {
    let prompt = store.prompts().put(prompt("q")).await.unwrap();
    let written = completion(&prompt.id, "text with 'quotes', $1 and \u{4F60}\u{597D}");
    store.completions().put(vec![written.clone()]).await.unwrap();
    assert_eq!(store.completions().get(&written.id).await.unwrap(), written);
    store.completions().set_reward(&written.id, -1.5).await.unwrap();
    assert_eq!(store.completions().list(&prompt.id).await.unwrap()[0].reward, Some(-1.5));
    is_not_found(store.completions().set_reward(&"nobody".into(), 1.0).await);
    // A batch is stored whole or not at all.
    let (good, bad) = (completion(&prompt.id, "x"), completion(&"no prompt".into(), "y"));
    is_conflict(store.completions().put(vec![good, bad]).await);
    assert_eq!(store.completions().list(&prompt.id).await.unwrap().len(), 1);
    // U+0000 must not be an error anywhere; Postgres cannot keep it as it is.
    let mut odd = completion(&prompt.id, "a\0b");
    odd.sampling = json!({"stop": ["\0"]});
    store.completions().put(vec![odd.clone()]).await.unwrap();
    assert!(["a\0b", "a\u{FFFD}b"].contains(&store.completions().get(&odd.id).await.unwrap().text.as_str()));
}

async fn sets_keep_their_order_and_their_prompt(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["c", "a", "b"], 2).await;
    assert_eq!(store.sets().get(&set.id).await.unwrap(), set);
    assert_eq!(store.sets().list(page(10), Some(SetStatus::Open)).await.unwrap(), vec![set.clone()]);
    assert!(store.sets().list(page(10), Some(SetStatus::Done)).await.unwrap().is_empty());
    let other = store.prompts().put(prompt("other")).await.unwrap();
    let mut mixed = comparison_set(&other.id, &[], 1);
    mixed.completion_ids = set.completion_ids.clone();
    is_conflict(store.sets().put(mixed).await);
    store.sets().retire(&set.id).await.unwrap();
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Retired);
    let ada = labeler(&store, "ada").await;
    assert_eq!(store.leases().next(lease(&ada, T0)).await.unwrap(), None, "a retired set is not given out");
}

async fn leases_respect_the_overlap(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 2).await;
    let (ada, bob, cy) = (labeler(&store, "ada").await, labeler(&store, "bob").await, labeler(&store, "cy").await);
    let first = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    assert_eq!((&first.set_id, first.state, first.order_seed), (&set.id, AssignmentState::Leased, u64::MAX - 7));
    assert_eq!(store.leases().get(&first.id).await.unwrap(), first);
    assert_eq!(store.leases().next(lease(&ada, T0 + 1)).await.unwrap(), None, "she holds it already");
    let second = store.leases().next(lease(&bob, T0)).await.unwrap().unwrap();
    assert_eq!(store.leases().next(lease(&cy, T0)).await.unwrap(), None, "both places are taken");
    store.judgments().submit(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), T0)).await.unwrap();
    assert_eq!(store.leases().next(lease(&cy, T0)).await.unwrap(), None, "a submitted place stays taken");
    store.leases().release(&second.id, &second.lease_token).await.unwrap();
    assert!(store.leases().next(lease(&cy, T0)).await.unwrap().is_some(), "a released place is free");
    assert_eq!(store.leases().next(lease(&bob, T0)).await.unwrap(), None);
}

async fn a_labeler_never_gets_a_judged_set_again(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 5).await;
    let ada = labeler(&store, "ada").await;
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    // A set she names and holds is the same lease again, longer.
    let named = LeaseRequest { set_id: Some(set.id.clone()), ..lease(&ada, T0 + 5) };
    let again = store.leases().next(named.clone()).await.unwrap().unwrap();
    assert_eq!((&again.id, &again.lease_token, again.expires_at), (&held.id, &held.lease_token, T0 + 5 + LEASE));
    // Run out and not judged: it may come back, as the same assignment.
    let late = T0 + 10 * LEASE;
    let back = store.leases().next(lease(&ada, late)).await.unwrap().unwrap();
    assert_eq!((&back.id, &back.lease_token, back.order_seed), (&held.id, &held.lease_token, held.order_seed));
    store.judgments().submit(submit(judgment(&set, &ada, Some(&back), "k"), Some(&back), late)).await.unwrap();
    assert_eq!(store.leases().next(lease(&ada, late)).await.unwrap(), None);
    assert_eq!(store.leases().next(LeaseRequest { now: late, ..named }).await.unwrap(), None);
    is_not_found(store.leases().next(LeaseRequest { set_id: Some("no".into()), ..lease(&ada, late) }).await);
}

async fn an_expired_lease_frees_its_place(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let first = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let renewed = first.expires_at + 1000;
    store.leases().renew(&first.id, &first.lease_token, T0, renewed).await.unwrap();
    assert_eq!(store.leases().next(lease(&bob, first.expires_at)).await.unwrap(), None, "renewed");
    let second = store.leases().next(lease(&bob, renewed)).await.unwrap().unwrap();
    assert_eq!(store.leases().get(&first.id).await.unwrap().state, AssignmentState::Expired);
    // Bob has the place now: Ada's late work is not lost silently, it is refused.
    is_lost(store.judgments().submit(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), renewed)).await);
    is_lost(store.leases().renew(&first.id, &first.lease_token, renewed, renewed + LEASE).await);
    // Once Bob's lease has run out too, the place is nobody's, and late work counts.
    let late = second.expires_at + 1;
    let done = store.judgments().submit(submit(judgment(&set, &ada, Some(&first), "k1"), Some(&first), late)).await;
    assert!(!done.unwrap().replayed);
    is_lost(store.judgments().submit(submit(judgment(&set, &bob, Some(&second), "k2"), Some(&second), late)).await);
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Done);
}

async fn tokens_fence_leases(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    is_lost(store.leases().renew(&held.id, "forged", T0, T0 + LEASE).await);
    is_lost(store.leases().release(&held.id, "forged").await);
    is_not_found(store.leases().renew(&"nobody".into(), "x", T0, T0).await);
    let mut forged = submit(judgment(&set, &ada, Some(&held), "k"), Some(&held), T0);
    forged.lease_token = Some("forged".into());
    is_lost(store.judgments().submit(forged.clone()).await);
    forged.lease_token = None;
    is_lost(store.judgments().submit(forged).await);
    is_lost(store.judgments().submit(submit(judgment(&set, &bob, Some(&held), "k"), Some(&held), T0)).await);
    store.leases().release(&held.id, &held.lease_token).await.unwrap();
    is_lost(store.judgments().submit(submit(judgment(&set, &ada, Some(&held), "k"), Some(&held), T0)).await);
}

async fn concurrent_leasers_never_share_a_place(store: Arc<Store>) {
    let (sets, overlap, people) = (5usize, 2usize, 12usize);
    for i in 0..sets {
        stored_set(&store, &format!("q{i}"), &["a", "b"], overlap as i64).await;
    }
    let mut tasks = Vec::new();
    for i in 0..people {
        let ada = labeler(&store, &format!("ada{i}")).await;
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut got = Vec::new();
            while let Some(held) = store.leases().next(lease(&ada, T0)).await.unwrap() {
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
    for set in store.sets().list(page(10), None).await.unwrap() {
        assert_eq!(all.iter().filter(|(id, _)| *id == set.id).count(), overlap);
    }
}

async fn gold_answers(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let tiers = vec![(set.completion_ids[1].clone(), 0), (set.completion_ids[0].clone(), 1)];
    store.sets().put_gold(&set.id, &tiers).await.unwrap();
    store.sets().put_gold(&set.id, &tiers).await.unwrap();
    assert_eq!(store.sets().gold(&set.id).await.unwrap(), tiers);
    is_conflict(store.sets().put_gold(&set.id, &[("nobody".into(), 0)]).await);
    assert_eq!(store.sets().gold(&set.id).await.unwrap(), tiers, "a refused change changes nothing");
}

async fn key_maps_are_a_persons_own(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let keys =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, k)| ((*a).to_owned(), (*k).to_owned())).collect::<KeyMap>();
    assert_eq!(store.people().key_map(&ada).await.unwrap(), None);
    store.people().put_key_map(&ada, keys(&[("tie", "t"), ("more", "=")]), T0).await.unwrap();
    store.people().put_key_map(&bob, keys(&[]), T0).await.unwrap();
    store.people().put_key_map(&ada, keys(&[("skip", "?")]), T0 + 1).await.unwrap();
    assert_eq!(store.people().key_map(&ada).await.unwrap(), Some(keys(&[("skip", "?")])));
    assert_eq!(store.people().key_map(&bob).await.unwrap(), Some(keys(&[])), "none changed, and stored");
    store.people().put_key_map(&"nobody".into(), keys(&[]), T0).await.unwrap_err();
}

async fn identities_are_one_person_each(store: Arc<Store>) {
    labeler(&store, "ada").await;
    let new = |id: &str, name: &str| Labeler::new(id.into(), name.into(), Role::Labeler, T0);
    assert_eq!(store.people().by_identity("proxy", "ada@example.org").await.unwrap(), None);
    // A name that somebody has gets a number, and gives nobody their place.
    let first = store.people().join("proxy", "ada@example.org", new("p1", "dr ADA")).await.unwrap();
    assert_eq!((first.id.as_str(), first.name.as_str()), ("p1", "dr ADA (2)"));
    assert_eq!(store.people().join("proxy", "eve", new("p2", "Dr ada")).await.unwrap().name, "Dr ada (3)");
    let again = store.people().join("proxy", "ada@example.org", new("p3", "Ada")).await.unwrap();
    assert_eq!(again, first, "known already");
    is_not_found(store.people().get(&"p3".into()).await);
    assert_eq!(store.people().by_identity("proxy", "ada@example.org").await.unwrap(), Some(first));
    assert_eq!(store.people().by_identity("proxy", "Ada@example.org").await.unwrap(), None, "compared exactly");
    assert_eq!(store.people().by_identity("another", "ada@example.org").await.unwrap(), None);
    // A known person may have several.
    let known = store.people().get(&"ada".into()).await.unwrap();
    assert_eq!(store.people().join("another", "x", known.clone()).await.unwrap(), known);
    // First requests at the same time make one person.
    let tasks: Vec<_> = (0..6)
        .map(|i| {
            let (store, new) = (store.clone(), new(&format!("bob {i}"), "Bob"));
            tokio::spawn(async move { store.people().join("proxy", "bob", new).await.unwrap().id })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(store.people().list().await.unwrap().iter().filter(|l| l.name.starts_with("Bob")).count(), 1);
}

async fn links_replace_each_other_and_end(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let link = |id: &str, owner: &LabelerId, expires| SignInLink {
        id: id.into(),
        labeler_id: owner.clone(),
        token_hash: format!("hash of {id}"),
        state: LinkState::Active,
        expires,
        used: None,
        created: T0,
    };
    let session = |hash: &str, credential: &str| Session {
        token_hash: hash.into(),
        labeler_id: ada.clone(),
        role: Role::Labeler,
        credential: credential.into(),
        used: T0,
        expires: T0 + 100,
        created: T0,
    };
    let first = link("first", &ada, None);
    store.links().put(first.clone()).await.unwrap();
    store.links().put(link("bobs", &bob, Some(T0 + 9))).await.unwrap();
    assert_eq!(store.links().find("hash of first").await.unwrap(), Some(first.clone()));
    assert_eq!(store.links().find("other").await.unwrap(), None);
    assert_eq!(store.links().live(&"first".into()).await.unwrap(), Some(first));
    store.links().touch(&"bobs".into(), T0 + 1).await.unwrap();
    let listed: Vec<_> = store.links().list().await.unwrap().into_iter().map(|l| (l.id.0, l.used)).collect();
    assert_eq!(listed, [("bobs".to_owned(), Some(T0 + 1)), ("first".to_owned(), None)]);

    store.sessions().put(session("by link", "link:first")).await.unwrap();
    store.sessions().put(session("by invite", "")).await.unwrap();
    store.links().put(link("second", &ada, None)).await.unwrap();
    assert_eq!(store.links().find("hash of first").await.unwrap().unwrap().state, LinkState::Replaced);
    assert_eq!(store.links().live(&"first".into()).await.unwrap(), None);
    assert_eq!(store.sessions().get("by link", T0).await.unwrap(), None, "ended with its link");
    assert!(store.sessions().get("by invite", T0).await.unwrap().is_some());
    store.links().revoke(&ada).await.unwrap();
    assert_eq!(store.links().find("hash of second").await.unwrap().unwrap().state, LinkState::Revoked);
    is_not_found(store.links().revoke(&ada).await);

    // Locking out ends link, keys and sessions; coming back revives none.
    store.links().put(link("third", &ada, None)).await.unwrap();
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
    assert_eq!(store.api_keys().live(&key.id).await.unwrap(), Some(key.clone()));
    store.people().change(&ada, None, None, Some(false)).await.unwrap();
    is_conflict(store.links().put(link("fourth", &ada, None)).await);
    store.people().change(&ada, None, None, Some(true)).await.unwrap();
    assert_eq!(store.links().find("hash of third").await.unwrap().unwrap().state, LinkState::Revoked);
    assert_eq!(store.api_keys().live(&key.id).await.unwrap(), None);
    assert_eq!(store.sessions().get("by invite", T0).await.unwrap(), None);

    // A lower role stays low in what was open; an admin's key keeps its other scopes.
    let admin = |id: &str, scopes: &[&str]| ApiKey {
        id: id.into(),
        key_hash: id.into(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        ..key.clone()
    };
    store.people().change(&ada, Some(Role::Admin), None, None).await.unwrap();
    store.api_keys().put(admin("a", &["admin"])).await.unwrap();
    store.api_keys().put(admin("b", &["admin", "feedback"])).await.unwrap();
    store.sessions().put(Session { role: Role::Admin, ..session("s", "") }).await.unwrap();
    store.people().change(&ada, Some(Role::Labeler), None, None).await.unwrap();
    store.people().change(&ada, Some(Role::Admin), None, None).await.unwrap();
    assert_eq!(store.sessions().get("s", T0).await.unwrap().unwrap().role, Role::Labeler);
    assert_eq!(store.api_keys().live(&"a".into()).await.unwrap(), None);
    assert_eq!(store.api_keys().live(&"b".into()).await.unwrap().unwrap().scopes, ["feedback"]);

    let erased = store.privacy().erase_labeler(&bob, Erase::Anonymise, "", T0).await.unwrap();
    assert_eq!(erased.links, 1);
    assert_eq!(store.links().find("hash of bobs").await.unwrap(), None);
    assert!(store.privacy().flush_erased().await.unwrap());
}

/// A clock ten years ahead leaves no set leased and no session in use for ten years.
async fn leases_of_a_clock_that_was_ahead_are_ended(store: Arc<Store>) {
    const YEARS: Micros = 10 * 365 * 24 * 3_600_000_000;
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let far = store.leases().next(lease(&ada, T0 + YEARS)).await.unwrap().unwrap();
    let now = store.leases().next(lease(&bob, T0)).await.unwrap().expect("the lease of the future is over");
    assert_eq!((&now.set_id, now.labeler_id == bob), (&set.id, true));
    assert_eq!(store.leases().get(&far.id).await.unwrap().state, AssignmentState::Expired);
    let session = Session {
        token_hash: "h".into(),
        labeler_id: ada.clone(),
        role: Role::Labeler,
        credential: String::new(),
        used: T0 + YEARS,
        expires: T0 + 100,
        created: T0,
    };
    store.sessions().put(session).await.unwrap();
    store.sessions().touch("h", T0 + 5).await.unwrap();
    assert_eq!(store.sessions().get("h", T0 + 5).await.unwrap().unwrap().used, T0 + 5, "a use in the future is no use");
}

async fn people_and_access(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let known: Vec<_> = store.people().list().await.unwrap().into_iter().map(|l| l.id.0).collect();
    assert_eq!(known, ["admin", "import", "ada"]);
    let session = Session {
        token_hash: "h".into(),
        labeler_id: ada.clone(),
        role: Role::Labeler,
        credential: String::new(),
        used: T0,
        expires: T0 + 10,
        created: T0,
    };
    store.sessions().put(session.clone()).await.unwrap();
    assert_eq!(store.sessions().get("h", T0).await.unwrap(), Some(session.clone()));
    assert_eq!(store.sessions().get("h", T0 + 10).await.unwrap(), None, "expired");
    store.people().set_active(&ada, false).await.unwrap();
    assert!(!store.people().get(&ada).await.unwrap().active);
    assert_eq!(store.sessions().get("h", T0).await.unwrap(), None, "an inactive labeler has no session");
    store.people().set_active(&ada, true).await.unwrap();
    assert_eq!(store.sessions().get("h", T0).await.unwrap(), None, "old sessions do not come back with their labeler");
    store.sessions().put(session.clone()).await.unwrap();
    store.sessions().touch("h", T0 + 5).await.unwrap();
    store.sessions().touch("h", T0 + 3).await.unwrap();
    assert_eq!(store.sessions().get("h", T0).await.unwrap().unwrap().used, T0 + 5, "never back in time");
    let later = Session { token_hash: "h2".into(), created: T0 + 20, expires: T0 + 30, ..session.clone() };
    store.sessions().put(later).await.unwrap();
    assert_eq!(store.sessions().get("h", T0).await.unwrap(), None, "what has expired is cleared away");
    store.sessions().put(session.clone()).await.unwrap();
    store.sessions().delete("h").await.unwrap();
    assert_eq!(store.sessions().get("h", T0).await.unwrap(), None);

    let invite = Invite {
        id: InviteId::new(),
        token_hash: "i".into(),
        role: Role::Reviewer,
        name: None,
        revoked: false,
        note: None,
        expires: T0 + 10,
        used_by: None,
        created: T0,
    };
    store.invites().put(invite.clone()).await.unwrap();
    let person = |id: &str| Labeler::new(id.into(), "N".into(), Role::Admin, T0);
    is_not_found(store.invites().redeem("other", person("eve"), T0).await);
    is_conflict(store.invites().redeem("i", person("late"), T0 + 10).await);
    is_not_found(store.people().get(&"late".into()).await);
    let new = store.invites().redeem("i", person("bob"), T0).await.unwrap();
    assert_eq!(new.role, Role::Reviewer, "the invite decides the role");
    is_conflict(store.invites().redeem("i", person("eve"), T0).await);
    assert_eq!(store.invites().list().await.unwrap()[0].used_by, Some("bob".into()));

    let key = ApiKey {
        id: ApiKeyId::new(),
        name: "ci".into(),
        key_hash: "kh".into(),
        scopes: vec!["feedback".into()],
        labeler_id: Some(ada),
        daily_tokens: Some(100),
        origin: KeyOrigin::Created,
        revoked: false,
        created: T0,
    };
    store.api_keys().put(key.clone()).await.unwrap();
    assert_eq!(store.api_keys().find("kh").await.unwrap(), Some(key.clone()));
    assert_eq!(store.api_keys().find("other").await.unwrap(), None);
    store.api_keys().revoke(&key.id).await.unwrap();
    assert_eq!(store.api_keys().find("kh").await.unwrap(), None);
    assert!(store.api_keys().list().await.unwrap()[0].revoked);
    is_not_found(store.api_keys().revoke(&"no".into()).await);
    store.audit_log().append(&"admin".into(), "key.revoke", key.id.as_str(), json!({"why": "test"}), T0).await.unwrap();
}

async fn one_model_of_a_kind_is_active(store: Arc<Store>) {
    let (a, b, r) = (model("a", ModelKind::Policy), model("b", ModelKind::Policy), model("r", ModelKind::Reward));
    for m in [&a, &b, &r] {
        store.models().put(m.clone()).await.unwrap();
    }
    is_conflict(store.models().put(model("a", ModelKind::Reward)).await);
    assert_eq!(store.models().find("b").await.unwrap(), Some(b.clone()));
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap(), None);
    store.models().activate(&a.id, T0).await.unwrap();
    store.models().activate(&r.id, T0).await.unwrap();
    let (x, y) = tokio::join!(store.models().activate(&a.id, T0), store.models().activate(&b.id, T0));
    assert_eq!((x.unwrap().state, y.unwrap().state), (ModelState::Active, ModelState::Active));
    let active: Vec<_> =
        store.models().list().await.unwrap().into_iter().filter(|m| m.state == ModelState::Active).collect();
    assert_eq!(active.len(), 2, "one policy and one reward model");
    store.models().activate(&b.id, T0).await.unwrap();
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().id, b.id);
    assert_eq!(store.models().get(&a.id).await.unwrap().state, ModelState::Candidate);
    is_conflict(store.models().retire(&b.id).await);
    store.models().retire(&a.id).await.unwrap();
    is_conflict(store.models().activate(&a.id, T0).await);
    assert_eq!(store.models().active(ModelKind::Policy).await.unwrap().unwrap().id, b.id, "and nothing changed");
    is_conflict(store.models().put(ModelVersion { state: ModelState::Active, ..model("c", ModelKind::Policy) }).await);
    is_not_found(store.models().activate(&"no".into(), T0).await);

    let data = DatasetVersion {
        name: None,
        id: DatasetId::new(),
        filter: json!({"split": null}),
        as_of: T0,
        sha256: "ab".into(),
        n_sets: 3,
        n_pairs: 7,
    };
    store.datasets().put(data.clone()).await.unwrap();
    assert_eq!(store.datasets().list().await.unwrap(), vec![data]);
}

async fn a_dropped_caller_does_not_cancel_its_write(store: Arc<Store>) {
    for i in 0..20 {
        let write = store.prompts().put(prompt(&format!("p{i}")));
        // Polled once, so the write has begun; then the caller goes away.
        futures::pin_mut!(write);
        let _ = futures::poll!(write.as_mut());
    }
    // Postgres may run them beside each other: wait until the last connection is back.
    while store.counts().await.unwrap().prompts < 20 {
        tokio::task::yield_now().await;
    }
    store.prompts().put(prompt("and the pool is sound")).await.unwrap();
}

async fn counts_count(store: Arc<Store>) {
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    stored_set(&store, "q", &["a", "b", "c"], 1).await;
    let ada = labeler(&store, "ada").await;
    let now = store.now().await.unwrap();
    assert!(now > 1_700_000_000_000_000, "µs since 1970: {now}");
    store.leases().next(lease(&ada, now)).await.unwrap().unwrap();
    store.jobs().enqueue(job("sft", None, 0)).await.unwrap();
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.prompts, counts.completions, counts.sets_open, counts.leases), (1, 3, 1, 1));
    assert_eq!((counts.labelers, counts.jobs_queued, counts.judgments), (1, 1, 0));
}
