//! Both backends: kinds and quotas of the queue, settled sets, draws, datasets, the audit trail, erasure.

use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;
use proptest::prelude::*;
use serde_json::json;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    kinds_and_scores_order_the_queue,
    a_quota_ends_the_day,
    a_settled_set_gives_the_reviewers_judgment,
    disputed_sets_get_another_judgment,
    prompts_are_selected,
    draws_live_and_end,
    lists_hold_prompts_and_progress,
    totals_of_lists_leave_out_what_is_superseded,
    datasets_have_names,
    the_audit_trail_is_searched,
    people_change_and_invites_end,
    erasing_makes_anonymous_or_removes,
    judged_sets_carry_what_figures_need,
);

/// Every filter's total is the number of rows that it lists.
async fn totals_of_lists_leave_out_what_is_superseded(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let sets = [stored_set(&store, "first", &["a", "b"], 2).await, stored_set(&store, "other", &["a", "b"], 2).await];
    let submitted = async |given: Judgment| store.judgments().submit(submit(given, None, T0)).await.unwrap().judgment;
    let skip = Judgment { outcome: Outcome::Skip, items: vec![], ..judgment(&sets[0], &ada, None, "1") };
    let first = submitted(skip).await;
    for set in &sets {
        submitted(judgment(set, &bob, None, set.id.as_str())).await;
    }
    let revised = Judgment { supersedes_id: Some(first.id), ..judgment(&sets[0], &ada, None, "2") };
    submitted(Judgment { created: T0 + 1, ..revised }).await;
    let all = JudgmentFilter::default();
    for (filter, expected) in [
        (all.clone(), 3),
        (JudgmentFilter { labeler_id: Some(ada.clone()), ..all.clone() }, 1),
        (JudgmentFilter { set_id: Some(sets[0].id.clone()), ..all.clone() }, 2),
        (JudgmentFilter { kind: Some(SetKind::Normal), ..all.clone() }, 3),
        (JudgmentFilter { kind: Some(SetKind::Gold), ..all.clone() }, 0),
        (JudgmentFilter { outcome: Some(Outcome::Skip), ..all.clone() }, 0),
        (JudgmentFilter { outcome: Some(Outcome::Ranked), labeler_id: Some(bob), ..all.clone() }, 2),
        (JudgmentFilter { text: Some("other".into()), ..all }, 1),
    ] {
        let (rows, total) = store.judgments().browse(&filter, page(9)).await.unwrap();
        assert_eq!((rows.len() as i64, total), (expected, expected), "{filter:?}");
    }
    let all = SetFilter::default();
    for (filter, expected) in [
        (SetFilter { status: Some(SetStatus::Open), ..all.clone() }, 1),
        (SetFilter { status: Some(SetStatus::Done), kind: Some(SetKind::Normal), ..all.clone() }, 1),
        (SetFilter { policy: Some("random".into()), ..all.clone() }, 2),
        (SetFilter { policy: Some("none".into()), ..all.clone() }, 0),
        (SetFilter { project: Some(ProjectId::first()), text: Some("first".into()), ..all.clone() }, 1),
        (SetFilter { stuck: true, labeler_id: Some(ada), ..all }, 0),
    ] {
        let (rows, total) = store.sets().browse(&filter, page(9), T0).await.unwrap();
        assert_eq!((rows.len() as i64, total), (expected, expected), "{filter:?}");
    }
    let queue = store.leases().queue(T0, None).await.unwrap();
    assert_eq!(queue, Queue { sets_open: 1, sets_stuck: 0, leases: 0 });
}

async fn gold_set(store: &Store, text: &str, kind: SetKind) -> ComparisonSet {
    let set = stored_set(store, text, &["right", "wrong"], 1).await;
    let tiers: Vec<_> = set.completion_ids.iter().cloned().zip(0..).collect();
    store.sets().make_gold(&set.id, kind, &tiers, Some("because")).await.unwrap();
    set
}

fn pick(labeler: &LabelerId, pick: Pick) -> LeaseRequest {
    LeaseRequest { pick, ..lease(labeler, T0) }
}

async fn kinds_and_scores_order_the_queue(store: Arc<Store>) {
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    let gold = gold_set(&store, "gold", SetKind::Gold).await;
    let calibration = gold_set(&store, "calibration", SetKind::Calibration).await;
    assert_eq!(store.sets().explanation(&gold.id).await.unwrap().as_deref(), Some("because"));
    assert_eq!(store.counts().await.unwrap().sets_open, 0, "known answers are no open work");
    // Without ordinary work gold is not given out, or it would give itself away; onboarding is.
    assert_eq!(store.leases().next(pick(&ada, Pick::Normal)).await.unwrap(), None);
    assert_eq!(store.leases().next(pick(&ada, Pick::Instead(SetKind::Gold))).await.unwrap(), None);
    let first = store.leases().next(pick(&ada, Pick::First(SetKind::Calibration))).await.unwrap().unwrap();
    assert_eq!(first.set_id, calibration.id);
    let plain = stored_set(&store, "plain", &["a", "b"], 2).await;
    let mut ids = Vec::new();
    for (text, score) in [("low", Some(0.1)), ("high", Some(0.9)), ("none", None)] {
        let prompt = store.prompts().put(prompt(text)).await.unwrap();
        let texts = vec![completion(&prompt.id, "a"), completion(&prompt.id, "b")];
        store.completions().put(texts.clone()).await.unwrap();
        let mut set = ComparisonSet { selection_score: score, ..comparison_set(&prompt.id, &texts, 2) };
        if score.is_none() {
            // Younger than `plain`, which it could share its millisecond with.
            set.id = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ".into();
        }
        store.sets().put(set.clone()).await.unwrap();
        ids.push(set.id);
    }
    let instead = store.leases().next(pick(&ada, Pick::Instead(SetKind::Gold))).await.unwrap().unwrap();
    assert_eq!(instead.set_id, gold.id);
    // Gold once, then ordinary work: highest score first, without a score last, oldest first among those.
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(store.leases().next(pick(&ada, Pick::Instead(SetKind::Gold))).await.unwrap().unwrap().set_id);
    }
    assert_eq!(got, [ids[1].clone(), ids[0].clone(), plain.id, ids[2].clone()]);
    // Everybody gets the known answers.
    let bobs = store.leases().next(pick(&bob, Pick::Instead(SetKind::Gold))).await.unwrap().unwrap();
    assert_eq!(bobs.set_id, gold.id);
    assert_eq!(store.judgments().calibrations_done(&ada, &ProjectId::first()).await.unwrap(), 0);
    let word = judgment(&calibration, &ada, Some(&first), "c");
    store.judgments().submit(submit(word, Some(&first), T0)).await.unwrap();
    assert_eq!(store.judgments().calibrations_done(&ada, &ProjectId::first()).await.unwrap(), 1);
    assert_eq!(store.sets().get(&calibration.id).await.unwrap().status, SetStatus::Open, "open for the others");
}

async fn a_quota_ends_the_day(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let mut sets = Vec::new();
    for i in 0..4 {
        sets.push(stored_set(&store, &format!("q{i}"), &["a", "b"], 1).await);
    }
    let limited = |now: Micros| LeaseRequest { quota: Some((T0, 2)), ..lease(&ada, now) };
    let first = store.leases().next(limited(T0)).await.unwrap().unwrap();
    let mut done = judgment(&sets[0], &ada, Some(&first), "1");
    done.created = T0 + 1;
    store.judgments().submit(submit(done, Some(&first), T0 + 1)).await.unwrap();
    let second = store.leases().next(limited(T0 + 2)).await.unwrap().unwrap();
    assert_eq!(store.leases().next(limited(T0 + 3)).await.unwrap(), None, "one judged, one in hand");
    // A skip gives the turn back.
    let mut skip = judgment(&sets[1], &ada, Some(&second), "2");
    (skip.outcome, skip.items, skip.strength, skip.created) = (Outcome::Skip, vec![], None, T0 + 4);
    store.judgments().submit(submit(skip, Some(&second), T0 + 4)).await.unwrap();
    assert!(store.leases().next(limited(T0 + 5)).await.unwrap().is_some());
    let tomorrow = LeaseRequest { quota: Some((T0 + 10 * LEASE, 2)), ..lease(&ada, T0 + 10 * LEASE) };
    assert!(store.leases().next(tomorrow).await.unwrap().is_some());
}

async fn a_settled_set_gives_the_reviewers_judgment(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 3).await;
    for name in ["ada", "bob"] {
        let who = labeler(&store, name).await;
        store.judgments().submit(submit(judgment(&set, &who, None, name), None, T0)).await.unwrap();
    }
    let rui = labeler(&store, "rui").await;
    assert_eq!(store.sets().settled_by(&set.id).await.unwrap(), None);
    let mut word = judgment(&set, &rui, None, "rui");
    (word.items[0].tier, word.items[1].tier, word.created) = (1, 0, T0 + 10);
    store.judgments().submit(submit(word.clone(), None, T0 + 10)).await.unwrap();
    assert_eq!(store.judgments().of_set(&set.id).await.unwrap().len(), 3);
    let all = RankedFilter::default();
    assert_eq!(store.judgments().ranked(&all).await.unwrap().len(), 3);
    store.sets().settle(&set.id, &rui, T0 + 10).await.unwrap();
    assert_eq!(store.sets().settled_by(&set.id).await.unwrap(), Some(rui.clone()));
    let settled = store.judgments().ranked(&all).await.unwrap();
    assert_eq!(settled.iter().map(|s| &s.judgment_id).collect::<Vec<_>>(), [&word.id]);
    let unsettled = RankedFilter { unsettled: true, ..all.clone() };
    assert_eq!(store.judgments().ranked(&unsettled).await.unwrap().len(), 3);
    // As it was before the set was settled.
    let before = RankedFilter { as_of: Some(T0 + 9), ..all };
    assert_eq!(store.judgments().ranked(&before).await.unwrap().len(), 2);
}

async fn disputed_sets_get_another_judgment(store: Arc<Store>) {
    let set = stored_set(&store, "q", &["a", "b"], 1).await;
    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    store.judgments().submit(submit(judgment(&set, &ada, None, "a"), None, T0)).await.unwrap();
    assert_eq!(store.leases().next(lease(&bob, T0)).await.unwrap(), None);
    store.sets().extend(&set.id, "disagreement", Some(0.75)).await.unwrap();
    let open = store.sets().get(&set.id).await.unwrap();
    assert_eq!(
        (open.target_overlap, open.status, open.selection_policy.as_str(), open.selection_score),
        (2, SetStatus::Open, "disagreement", Some(0.75))
    );
    assert!(store.leases().next(lease(&bob, T0)).await.unwrap().is_some());
    is_not_found(store.sets().extend(&"no".into(), "disagreement", None).await);
}

async fn prompts_are_selected(store: Arc<Store>) {
    // Ids of one millisecond have no order of their own.
    let mut tagged = prompt("tagged");
    tagged.id = "00000000000000000000000001".into();
    (tagged.tags, tagged.lang, tagged.split) = (vec!["x".into()], Some("zh".into()), Split::Heldout);
    let tagged = store.prompts().put(tagged).await.unwrap();
    let plain = Prompt { id: "00000000000000000000000002".into(), ..prompt("plain") };
    let plain = store.prompts().put(plain).await.unwrap();
    store.completions().put(vec![completion(&plain.id, "a"), completion(&plain.id, "b")]).await.unwrap();
    let with_set = stored_set(&store, "has a set", &["a", "b"], 1).await;
    let select = |filter: PromptFilter| {
        let store = store.clone();
        async move {
            let found = store.prompts().select(&filter, None, 10).await.unwrap();
            found.into_iter().map(|p| p.id).collect::<Vec<_>>()
        }
    };
    let all = PromptFilter::default();
    assert_eq!(select(all.clone()).await, [tagged.id.clone(), plain.id.clone()]);
    let everything = select(PromptFilter { with_sets: true, ..all.clone() }).await;
    assert_eq!(everything, [tagged.id.clone(), plain.id.clone(), with_set.prompt_id]);
    assert_eq!(select(PromptFilter { tag: Some("x".into()), ..all.clone() }).await, vec![tagged.id.clone()]);
    assert_eq!(select(PromptFilter { lang: Some("zh".into()), ..all.clone() }).await, vec![tagged.id.clone()]);
    assert_eq!(select(PromptFilter { split: Some(Split::Heldout), ..all.clone() }).await, vec![tagged.id.clone()]);
    assert_eq!(select(PromptFilter { min_completions: 2, ..all.clone() }).await, vec![plain.id.clone()]);
    assert!(select(PromptFilter { source: Some("nowhere".into()), ..all.clone() }).await.is_empty());
    // A page of rows without the tag must not end the search.
    let found = store.prompts().select(&PromptFilter { tag: Some("a".into()), ..all }, None, 1).await.unwrap();
    assert_eq!(found.iter().map(|p| &p.id).collect::<Vec<_>>(), [&plain.id]);
}

async fn lists_hold_prompts_and_progress(store: Arc<Store>) {
    let (one, two) = (
        stored_set(&store, "50% \\ of _it_", &["a", "b"], 2).await,
        stored_set(&store, "Über x", &["a", "b"], 1).await,
    );
    let ada = labeler(&store, "ada").await;
    let mut request = lease(&ada, T0);
    request.set_id = Some(one.id.clone());
    let held = store.leases().next(request).await.unwrap().unwrap();
    let list = |filter: SetFilter, limit: i64, after: Option<SetId>| {
        let store = store.clone();
        async move {
            let page = Page { after: after.map(|id| id.to_string()), limit };
            let (rows, total) = store.sets().browse(&filter, page, T0 + 1).await.unwrap();
            (rows.into_iter().map(|r| (r.set.id, r.judged, r.held)).collect::<Vec<_>>(), total)
        }
    };
    let all = SetFilter::default();
    let newest = (two.id.clone(), 0, 0);
    assert_eq!(list(all.clone(), 1, None).await, (vec![newest.clone()], 2));
    assert_eq!(list(all.clone(), 9, Some(two.id.clone())).await, (vec![(one.id.clone(), 0, 1)], 2));
    store.judgments().submit(submit(judgment(&one, &ada, Some(&held), "1"), Some(&held), T0)).await.unwrap();
    for text in ["50%", "\\ of", "_it_"] {
        let found = list(SetFilter { text: Some(text.into()), ..all.clone() }, 9, None).await;
        assert_eq!(found, (vec![(one.id.clone(), 1, 0)], 1), "{text}");
    }
    assert_eq!(list(SetFilter { text: Some("_".repeat(3)), ..all.clone() }, 9, None).await.1, 0);
    assert_eq!(list(SetFilter { labeler_id: Some(ada.clone()), ..all.clone() }, 9, None).await.1, 1);
    assert_eq!(list(SetFilter { disputed: true, ..all }, 9, None).await.1, 0);
    let rows =
        store.judgments().browse(&JudgmentFilter { text: Some("of".into()), ..Default::default() }, page(9)).await;
    let (rows, total) = rows.unwrap();
    assert_eq!((total, rows[0].labeler.as_str(), rows[0].items.len(), &rows[0].set_id), (1, "Dr ada", 2, &one.id));
    let names = store.audit_log().names_of(&[ada.to_string(), one.id.to_string(), "nobody".into()]).await.unwrap();
    assert_eq!(
        (names.len(), names[ada.as_str()].name.as_str(), names[one.id.as_str()].kind.as_str()),
        (2, "Dr ada", "set")
    );
    let counted = store.prompts().count(&PromptFilter { tag: Some("a".into()), ..Default::default() }).await.unwrap();
    assert_eq!(counted, PromptCounts { found: 2, requests: 0, raw_text: 0, has_set: 2, few_completions: 0 });
    let none = store.prompts().count(&PromptFilter { tag: Some("z".into()), ..Default::default() }).await.unwrap();
    assert_eq!(none.found, 0);
    is_not_found(store.sets().retire_matching(&[one.id.clone(), "no".into()]).await);
    assert_ne!(store.sets().get(&one.id).await.unwrap().status, SetStatus::Retired, "all or none");
    store.sets().retire_matching(&[one.id.clone(), two.id]).await.unwrap();
    assert_eq!(store.sets().get(&one.id).await.unwrap().status, SetStatus::Retired);
}

async fn draws_live_and_end(store: Arc<Store>) {
    let mut draw = SetDraw {
        id: DrawId::new(),
        request: json!({"policy": "random", "count": 3}),
        state: DrawState::Running,
        wanted: 3,
        looked_at: 0,
        made: 0,
        report: DrawReport { found: 9, has_set: 4, ..DrawReport::default() },
        error: None,
        created: T0,
        updated: T0,
    };
    store.draws().put(draw.clone()).await.unwrap();
    (draw.looked_at, draw.made, draw.updated) = (2, 1, T0 + 1);
    draw.report.equal_answers = 1;
    assert!(store.draws().advance(draw.clone()).await.unwrap());
    assert_eq!(store.draws().get(&draw.id).await.unwrap(), draw);
    let cancelled = store.draws().cancel(&draw.id, T0 + 2).await.unwrap();
    assert_eq!((cancelled.state, cancelled.made), (DrawState::Cancelled, 1));
    (draw.state, draw.made) = (DrawState::Done, 3);
    assert!(!store.draws().advance(draw.clone()).await.unwrap(), "the worker hears of the cancel");
    assert_eq!(store.draws().list(page(5)).await.unwrap(), [cancelled]);
    is_conflict(store.draws().cancel(&draw.id, T0).await);
    is_not_found(store.draws().get(&"no".into()).await);
}

async fn datasets_have_names(store: Arc<Store>) {
    let version = |name: Option<&str>| DatasetVersion {
        id: DatasetId::new(),
        name: name.map(str::to_owned),
        filter: json!({"data": "comparisons"}),
        as_of: T0,
        sha256: "00".into(),
        n_sets: 1,
        n_pairs: 2,
    };
    let (named, one, two) = (version(Some("v1")), version(None), version(None));
    for v in [&named, &one, &two] {
        store.datasets().put(v.clone()).await.unwrap();
    }
    is_conflict(store.datasets().put(version(Some("v1"))).await);
    assert_eq!(store.datasets().get("v1").await.unwrap(), named);
    assert_eq!(store.datasets().get(one.id.as_str()).await.unwrap(), one);
    is_not_found(store.datasets().get("v2").await);
    assert_eq!(store.datasets().list().await.unwrap().len(), 3);
}

async fn the_audit_trail_is_searched(store: Arc<Store>) {
    for (i, (actor, action, target)) in
        [("ada", "invite", "i1"), ("ada", "erase", "bob"), ("rui", "invite", "i2")].iter().enumerate()
    {
        store
            .audit_log()
            .append(&Signature::from(*actor), action, target, json!({"n": i}), T0 + i as i64)
            .await
            .unwrap();
    }
    let list = |filter: AuditFilter| {
        let store = store.clone();
        async move {
            let found = store.audit_log().list(&filter, None, 10).await.unwrap();
            found.into_iter().map(|e| e.target).collect::<Vec<_>>()
        }
    };
    let all = AuditFilter::default();
    assert_eq!(list(all.clone()).await, ["i2", "bob", "i1"]);
    assert_eq!(list(AuditFilter { actor: Some("ada".into()), ..all.clone() }).await, ["bob", "i1"]);
    assert_eq!(list(AuditFilter { action: Some("invite".into()), ..all.clone() }).await, ["i2", "i1"]);
    assert_eq!(list(AuditFilter { target: Some("bob".into()), ..all.clone() }).await, ["bob"]);
    assert_eq!(list(AuditFilter { since: Some(T0 + 1), until: Some(T0 + 1), ..all.clone() }).await, ["bob"]);
    let first = store.audit_log().list(&all, None, 1).await.unwrap();
    assert_eq!(first[0].detail, json!({"n": 2}));
    let rest = store.audit_log().list(&all, Some(first[0].id), 10).await.unwrap();
    assert_eq!(rest.len(), 2);
}

async fn people_change_and_invites_end(store: Arc<Store>) {
    let ada = labeler(&store, "ada").await;
    let changed = store.people().change(&ada, Some(Role::Reviewer), Some(Some(7)), None).await.unwrap();
    assert_eq!((changed.role, changed.daily_quota, changed.active), (Role::Reviewer, Some(7), true));
    let changed = store.people().change(&ada, None, Some(None), Some(false)).await.unwrap();
    assert_eq!((changed.role, changed.daily_quota, changed.active), (Role::Reviewer, None, false));
    assert_eq!(store.people().get(&ada).await.unwrap(), changed);
    is_not_found(store.people().change(&"no".into(), None, None, None).await);
    let invite = Invite {
        id: InviteId::new(),
        token_hash: "h".into(),
        role: Role::Labeler,
        name: None,
        revoked: false,
        note: None,
        expires: T0 + 100,
        used_by: None,
        created: T0,
    };
    store.invites().put(invite.clone()).await.unwrap();
    store.invites().revoke(&invite.id, T0 + 1).await.unwrap();
    is_conflict(store.invites().redeem("h", Labeler::new("x".into(), "X".into(), Role::Labeler, T0), T0 + 2).await);
}

/// Ada judged, wrote an ideal answer, revised, and gave feedback.
async fn adas_records(store: &Store) -> (LabelerId, ComparisonSet, Judgment) {
    let set = stored_set(store, "q", &["a", "b"], 1).await;
    let ada = labeler(store, "ada").await;
    let held = store.leases().next(lease(&ada, T0)).await.unwrap().unwrap();
    let first = judgment(&set, &ada, Some(&held), "1");
    let mut word = submit(first.clone(), Some(&held), T0);
    word.ideal_answer = Some(completion(&set.prompt_id, "ada's own words"));
    store.judgments().submit(word).await.unwrap();
    let mut second = judgment(&set, &ada, None, "2");
    second.supersedes_id = Some(first.id);
    let second = store.judgments().submit(submit(second, None, T0 + 1)).await.unwrap().judgment;
    let event = FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: set.completion_ids[0].clone(),
        kind: "thumb".into(),
        value: json!("up"),
        actor_hash: Some("ada's hash".into()),
        idempotency_key: "f".into(),
        created: T0,
    };
    store.feedback().put(event).await.unwrap();
    (ada, set, second)
}

async fn erasing_makes_anonymous_or_removes(store: Arc<Store>) {
    let (ada, set, last) = adas_records(&store).await;
    let data = store.privacy().personal_data(&ada, "ada's hash").await.unwrap();
    assert_eq!(data.demonstrations[0].1, "ada's own words");
    assert_eq!((data.feedback_events.len(), data.assignments.len()), (1, 1));

    let erased = store.privacy().erase_labeler(&ada, Erase::Anonymise, "ada's hash", T0 + 5).await.unwrap();
    assert_eq!((erased.judgments, erased.demonstrations, erased.feedback_events), (2, 1, 1));
    let kept = store.judgments().get(&last.id).await.unwrap();
    assert_eq!((&kept.rationale, &kept.flags[0].note, kept.items.len()), (&None, &None, 2));
    assert_eq!(store.judgments().ranked(&RankedFilter::default()).await.unwrap().len(), 1, "the ranking stays");
    let row = store.people().get(&ada).await.unwrap();
    assert_eq!((row.name.as_str(), row.active, row.erased), ("erased", false, Some(T0 + 5)));
    assert_eq!(store.privacy().personal_data(&ada, "ada's hash").await.unwrap().demonstrations, []);
    is_conflict(store.people().change(&ada, Some(Role::Admin), None, None).await);

    let erased = store.privacy().erase_labeler(&ada, Erase::Remove, "ada's hash", T0 + 6).await.unwrap();
    assert_eq!(erased.judgments, 2);
    is_not_found(store.judgments().get(&last.id).await);
    assert_eq!(store.counts().await.unwrap().judgments, 0);
    assert_eq!(store.sets().get(&set.id).await.unwrap().status, SetStatus::Open, "somebody else judges it now");
    for built_in in ["admin", "import"] {
        is_conflict(store.privacy().erase_labeler(&built_in.into(), Erase::Remove, "", T0).await);
    }

    // Removal at once takes the person's own text with it.
    let bob = labeler(&store, "bob").await;
    let held = store.leases().next(lease(&bob, T0)).await.unwrap().unwrap();
    let mut word = submit(judgment(&set, &bob, Some(&held), "b"), Some(&held), T0);
    let own = completion(&set.prompt_id, "bob's own words");
    word.ideal_answer = Some(own.clone());
    store.judgments().submit(word).await.unwrap();
    let erased = store.privacy().erase_labeler(&bob, Erase::Remove, "bob's hash", T0).await.unwrap();
    assert_eq!((erased.judgments, erased.demonstrations), (1, 1));
    is_not_found(store.completions().get(&own.id).await);
    assert_eq!(
        store.completions().list(&set.prompt_id).await.unwrap().len(),
        3,
        "a, b, and ada's, who stayed anonymous"
    );
}

async fn judged_sets_carry_what_figures_need(store: Arc<Store>) {
    let (ada, set, last) = adas_records(&store).await;
    let gold = gold_set(&store, "gold", SetKind::Gold).await;
    store.judgments().submit(submit(judgment(&gold, &"admin".into(), None, "g"), None, T0)).await.unwrap();
    let all = judged(&store, None, None).await;
    assert_eq!(all.len(), 2);
    let first = all.iter().find(|j| j.set_id == set.id).unwrap();
    assert_eq!(
        (&first.judgment_id, first.leased, first.active_ms, first.kind),
        (&last.id, true, 1200, SetKind::Normal)
    );
    let mut items: Vec<_> = first.items.iter().map(|i| (i.tier, i.length)).collect();
    items.sort_unstable();
    assert_eq!(items, [(0, 1), (1, 1)]);
    assert_eq!(judged(&store, Some(SetKind::Gold), None).await.len(), 1);
    assert_eq!(judged(&store, None, Some(T0 + 1)).await, []);
    assert_eq!(store.sets().judged_with(&ada).await.unwrap(), vec![first.clone()]);
    assert_eq!(store.sets().all_gold().await.unwrap().len(), 2);
}

/// What may happen to one set, in any order.
#[derive(Clone, Debug)]
enum Step {
    Lease { who: usize },
    Renew { who: usize },
    Release { who: usize },
    Submit { who: usize },
    Skip { who: usize },
    Wait { leases: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0usize..4;
    prop_oneof![
        3 => who.clone().prop_map(|who| Step::Lease { who }),
        1 => who.clone().prop_map(|who| Step::Renew { who }),
        1 => who.clone().prop_map(|who| Step::Release { who }),
        2 => who.clone().prop_map(|who| Step::Submit { who }),
        1 => who.prop_map(|who| Step::Skip { who }),
        2 => (1i64..3).prop_map(|leases| Step::Wait { leases }),
    ]
}

/// Plays the steps on one set with two places; after each, the places taken are at most two and nobody
/// holds two. Time passes in half leases.
async fn play(store: Arc<Store>, steps: &[Step], round: usize) {
    const OVERLAP: i64 = 2;
    let set = stored_set(&store, &format!("model {round}"), &["a", "b"], OVERLAP).await;
    let mut people = Vec::new();
    for i in 0..4 {
        people.push(labeler(&store, &format!("p{i}")).await);
    }
    let mut held: Vec<Option<Assignment>> = vec![None; 4];
    let mut words = [false; 4];
    let mut now = T0;
    for (i, step) in steps.iter().enumerate() {
        match step {
            Step::Wait { leases } => now += leases * LEASE / 2 + 1,
            Step::Lease { who } => {
                let request = LeaseRequest { set_id: Some(set.id.clone()), ..lease(&people[*who], now) };
                if let Some(new) = store.leases().next(request).await.unwrap() {
                    assert!(!words[*who], "nobody judges a set twice");
                    held[*who] = Some(new);
                }
            }
            Step::Renew { who } => {
                if let Some(a) = &held[*who] {
                    let _ = store.leases().renew(&a.id, &a.lease_token, now, now + LEASE).await;
                }
            }
            Step::Release { who } => {
                if let Some(a) = &held[*who] {
                    let _ = store.leases().release(&a.id, &a.lease_token).await;
                }
            }
            Step::Submit { who } | Step::Skip { who } => {
                if let Some(a) = &held[*who] {
                    let mut word = judgment(&set, &people[*who], Some(a), &format!("{round} {i}"));
                    if matches!(step, Step::Skip { .. }) {
                        (word.outcome, word.items, word.strength) = (Outcome::Skip, vec![], None);
                    }
                    words[*who] |= store.judgments().submit(submit(word, Some(a), now)).await.is_ok();
                }
            }
        }
        let mut taken = 0;
        for a in held.iter().flatten() {
            let a = store.leases().get(&a.id).await.unwrap();
            let current = a.state == AssignmentState::Leased && a.expires_at > now;
            taken += i64::from(current || a.state == AssignmentState::Submitted);
        }
        assert!(taken <= OVERLAP, "{taken} places of {OVERLAP} after {:?}", &steps[..=i]);
    }
    let judged = store.judgments().of_set(&set.id).await.unwrap();
    assert_eq!(judged.len(), words.iter().filter(|w| **w).count(), "every accepted word is there once");
    assert!(judged.iter().filter(|j| j.outcome != Outcome::Skip).count() as i64 <= OVERLAP);
}

/// Random histories on one SQLite store; every history is a set of its own.
#[test]
fn no_history_exceeds_the_overlap() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fresh = runtime.block_on(super::backend::sqlite()).unwrap();
    let round = std::cell::Cell::new(0);
    let config = ProptestConfig { max_shrink_iters: 60, ..ProptestConfig::with_cases(24) };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..25))| {
        round.set(round.get() + 1);
        runtime.block_on(play(fresh.store.clone(), &steps, round.get()));
    });
    runtime.block_on(fresh.store.close());
}
