//! The rules on plain values; the databases' side is in tests/it/store.

use super::*;

fn standing() -> Standing {
    Standing {
        status: SetStatus::Open,
        overlap: 2,
        completion_ids: vec!["a".into(), "b".into()],
        former: None,
        assignment: Some(held()),
        holds: true,
        taken: 0,
        today: 0,
        revision: None,
        revealed: Vec::new(),
        knows_authors: false,
        others: 0,
        own: None,
        settles: false,
    }
}

fn held() -> Assignment {
    Assignment {
        id: "held".into(),
        set_id: "set".into(),
        labeler_id: "ada".into(),
        state: AssignmentState::Leased,
        lease_token: "token".into(),
        expires_at: 100,
        order_seed: 0,
    }
}

fn word(outcome: Outcome) -> SubmitJudgment {
    let item = |id: &str, tier| JudgmentItem { completion_id: id.into(), tier, shown_position: tier, rating: None };
    SubmitJudgment {
        judgment: Judgment {
            id: "new".into(),
            assignment_id: Some("held".into()),
            set_id: "set".into(),
            labeler_id: "ada".into(),
            revision: 1,
            supersedes_id: None,
            outcome,
            strength: None,
            rationale: None,
            active_ms: 0,
            wall_ms: 0,
            guideline_version: None,
            rubric_version: None,
            idempotency_key: "key".into(),
            items: if outcome == Outcome::Ranked { vec![item("a", 0), item("b", 1)] } else { Vec::new() },
            flags: Vec::new(),
            ratings: Vec::new(),
            spans: Vec::new(),
            created: 50,
            knowledge: Knowledge::Blind,
        },
        lease_token: Some("token".into()),
        ideal_answer: None,
        corrections: Vec::new(),
        now: 50,
        reveals: Vec::new(),
        quota: None,
    }
}

fn state(found: &Standing, submit: &SubmitJudgment) -> AssignmentState {
    decide(found, submit).unwrap().place.unwrap().1
}

#[test]
fn a_lease_becomes_a_place_and_a_skip_gives_it_back() {
    let found = standing();
    assert_eq!(state(&found, &word(Outcome::Ranked)), AssignmentState::Submitted);
    assert_eq!(state(&found, &word(Outcome::Skip)), AssignmentState::Released);
    // Run out, with a place left, and without one.
    let late = SubmitJudgment { now: 100, ..word(Outcome::Ranked) };
    assert_eq!(state(&found, &late), AssignmentState::Submitted);
    let full = Standing { taken: 2, ..standing() };
    assert!(matches!(decide(&full, &late), Err(StoreError::LeaseLost(_))));
    // Who knows the authors takes no place that counts.
    let informed = Standing { knows_authors: true, ..standing() };
    let decision = decide(&informed, &word(Outcome::Ranked)).unwrap();
    assert_eq!((decision.judgment.knowledge, decision.status), (Knowledge::Authors, None));
    assert_eq!(decision.place.unwrap().1, AssignmentState::Released);
}

#[test]
fn the_last_word_that_is_wanted_ends_a_set() {
    let last = Standing { others: 1, ..standing() };
    assert_eq!(decide(&last, &word(Outcome::Ranked)).unwrap().status, Some(SetStatus::Done));
    assert_eq!(decide(&last, &word(Outcome::Skip)).unwrap().status, None);
    assert_eq!(decide(&standing(), &word(Outcome::Ranked)).unwrap().status, None);
    let retired = Standing { status: SetStatus::Retired, ..last.clone() };
    assert_eq!(decide(&retired, &word(Outcome::Ranked)).unwrap().status, None);
    // A blind revision into a skip opens it again; one that is not blind changes nothing.
    let former = RevisedJudgment { set_id: "set".into(), labeler_id: "ada".into(), assignment_id: None, revision: 1 };
    let done = Standing {
        status: SetStatus::Done,
        own: Some(Outcome::Ranked),
        revision: Some(1),
        former: Some(former),
        ..last
    };
    let mut revised = word(Outcome::Skip);
    revised.judgment.supersedes_id = Some("old".into());
    let decision = decide(&done, &revised).unwrap();
    assert_eq!((decision.judgment.revision, decision.status), (2, Some(SetStatus::Open)));
    let informed = Standing { knows_authors: true, ..done.clone() };
    assert_eq!(decide(&informed, &revised).unwrap().status, None);
    assert_eq!(decide(&Standing { settles: true, ..informed }, &revised).unwrap().status, Some(SetStatus::Open));
    // The revision that is there already is not made twice.
    assert!(matches!(decide(&Standing { revision: Some(2), ..done }, &revised), Err(StoreError::Conflict(_))));
}

#[test]
fn quotas_tokens_and_items_are_checked() {
    let limited = SubmitJudgment { quota: Some((0, 3)), ..word(Outcome::Ranked) };
    let used = Standing { today: 3, holds: false, ..standing() };
    assert!(matches!(decide(&used, &limited), Err(StoreError::Conflict(m)) if m.contains("quota of 3")));
    assert!(decide(&Standing { holds: true, ..used }, &limited).is_ok(), "the lease was counted");
    for token in [None, Some("forged".to_owned())] {
        let forged = SubmitJudgment { lease_token: token, ..word(Outcome::Ranked) };
        assert!(matches!(decide(&standing(), &forged), Err(StoreError::LeaseLost(_))));
    }
    let judged = Assignment { state: AssignmentState::Submitted, ..held() };
    let judged = Standing { assignment: Some(judged), revision: Some(1), ..standing() };
    assert!(matches!(decide(&judged, &word(Outcome::Ranked)), Err(StoreError::Conflict(_))));
    let mut partial = word(Outcome::Ranked);
    partial.judgment.items.pop();
    assert!(matches!(decide(&standing(), &partial), Err(StoreError::Conflict(m)) if m.contains("1 of 2")));
    let gone = Standing { assignment: None, ..standing() };
    assert!(matches!(decide(&gone, &word(Outcome::Ranked)), Err(StoreError::NotFound { what: "assignment", .. })));
}

#[test]
fn what_is_shown_is_noted_once_and_never_for_a_skip() {
    let shows = |outcome| SubmitJudgment { reveals: vec![Knowledge::Answer, Knowledge::Authors], ..word(outcome) };
    let known = Standing { revealed: vec![Knowledge::Authors], ..standing() };
    assert_eq!(decide(&known, &shows(Outcome::Ranked)).unwrap().reveals, [Knowledge::Answer]);
    assert_eq!(decide(&known, &shows(Outcome::Skip)).unwrap().reveals, []);
}
