//! Small stored worlds: a prompt with completions, a set, labelers, jobs.

use instructd::domain::*;
use instructd::store::*;
use serde_json::json;

/// The time of the tests, µs; leases last `LEASE`.
pub const T0: Micros = 1_800_000_000_000_000;
pub const LEASE: Micros = 600_000_000;

pub fn prompt(text: &str) -> Prompt {
    Prompt {
        id: PromptId::new(),
        project_id: ProjectId::first(),
        messages: vec![Message { role: "user".into(), content: text.into() }],
        lang: Some("en".into()),
        source: "api".into(),
        content_hash: format!("hash of {text}"),
        split: Split::Train,
        tags: vec!["a".into(), "b".into()],
        answer: Some("42".into()),
        created: T0,
    }
}

pub fn completion(prompt_id: &PromptId, text: &str) -> Completion {
    Completion {
        id: CompletionId::new(),
        prompt_id: prompt_id.clone(),
        model_version_id: None,
        origin: CompletionOrigin::Human,
        parent_completion_id: None,
        text: text.into(),
        token_ids: vec![1, 70_000, u32::MAX],
        logprobs: vec![-0.5, -1.25e-7, f32::NEG_INFINITY],
        sampling: json!({"temperature": 0.7, "stop": ["x"]}),
        seed: Some(u64::MAX),
        finish_reason: Some("stop".into()),
        request_id: None,
        reward: None,
        created: T0,
    }
}

pub fn comparison_set(prompt_id: &PromptId, completions: &[Completion], overlap: i64) -> ComparisonSet {
    ComparisonSet {
        id: SetId::new(),
        prompt_id: prompt_id.clone(),
        kind: SetKind::Normal,
        target_overlap: overlap,
        selection_policy: "random".into(),
        selection_score: None,
        status: SetStatus::Open,
        completion_ids: completions.iter().map(|c| c.id.clone()).collect(),
        created: T0,
    }
}

/// Stores a prompt, its completions and a set of them.
pub async fn stored_set(store: &Store, text: &str, texts: &[&str], overlap: i64) -> ComparisonSet {
    let prompt = store.prompts().put(prompt(text)).await.unwrap();
    let completions: Vec<_> = texts.iter().map(|t| completion(&prompt.id, t)).collect();
    store.completions().put(completions.clone()).await.unwrap();
    let set = comparison_set(&prompt.id, &completions, overlap);
    store.sets().put(set.clone()).await.unwrap();
    set
}

/// An imported ranking.
pub async fn import(
    store: &Store,
    prompt: Prompt,
    completions: Vec<Completion>,
    set: ComparisonSet,
    judgment: Judgment,
) -> Imported {
    let ranking = ImportedRanking {
        prompt,
        has_split: false,
        completions,
        set,
        judgment,
        labeler: None,
        known_answer: None,
        explanation: None,
    };
    let lines = vec![ImportLine::Ranking(Box::new(ranking))];
    store.judgments().import(lines.into()).await.unwrap().remove(0).done
}

pub async fn labeler(store: &Store, id: &str) -> LabelerId {
    let role = Role::Labeler;
    let labeler = Labeler::new(id.into(), format!("Dr {id}"), role, T0);
    store.people().put(labeler.clone()).await.unwrap();
    labeler.id
}

pub fn lease(labeler: &LabelerId, now: Micros) -> LeaseRequest {
    LeaseRequest {
        labeler_id: labeler.clone(),
        project_id: ProjectId::first(),
        assignment_id: AssignmentId::new(),
        lease_token: format!("token of {}", AssignmentId::new()),
        order_seed: u64::MAX - 7,
        now,
        expires_at: now + LEASE,
        set_id: None,
        pick: Pick::Normal,
        quota: None,
        resume: None,
    }
}

/// A judgment that ranks the set in storage order, first best.
pub fn judgment(set: &ComparisonSet, labeler: &LabelerId, assignment: Option<&Assignment>, key: &str) -> Judgment {
    Judgment {
        id: JudgmentId::new(),
        assignment_id: assignment.map(|a| a.id.clone()),
        set_id: set.id.clone(),
        labeler_id: labeler.clone(),
        revision: 1,
        supersedes_id: None,
        outcome: Outcome::Ranked,
        strength: Some(Strength::Clearly),
        rationale: Some("why \u{1F600}".into()),
        active_ms: 1200,
        wall_ms: 3400,
        guideline_version: Some("1".into()),
        rubric_version: None,
        idempotency_key: key.into(),
        items: (0i64..)
            .zip(&set.completion_ids)
            .map(|(i, id)| JudgmentItem { completion_id: id.clone(), tier: i, shown_position: i, rating: Some(5) })
            .collect(),
        flags: vec![JudgmentFlag { completion_id: None, code: "language".into(), note: Some("n".into()) }],
        ratings: vec![],
        spans: vec![],
        created: T0,
        knowledge: Knowledge::Blind,
    }
}

pub fn submit(judgment: Judgment, assignment: Option<&Assignment>, now: Micros) -> SubmitJudgment {
    SubmitJudgment {
        judgment,
        lease_token: assignment.map(|a| a.lease_token.clone()),
        ideal_answer: None,
        corrections: Vec::new(),
        now,
        reveals: vec![],
        quota: None,
    }
}

pub fn job(kind: &str, unique_key: Option<&str>, priority: i64) -> Job {
    Job {
        id: JobId::new(),
        kind: kind.into(),
        args: json!({"model": "base", "beta": 0.5}),
        state: JobState::Queued,
        unique_key: unique_key.map(Into::into),
        priority,
        attempt: 0,
        crash_count: 0,
        lease_owner: None,
        lease_expires: None,
        cancel_requested: false,
        checkpoint_uri: None,
        external_ref: None,
        progress: None,
        result: None,
        error: None,
        notes: JobNotes::default(),
        created: T0,
        started: None,
        finished: None,
    }
}

pub fn model(name: &str, kind: ModelKind) -> ModelVersion {
    ModelVersion {
        id: ModelVersionId::new(),
        kind,
        name: name.into(),
        stage: "base".into(),
        parent_id: None,
        job_id: None,
        artifact_uri: format!("models/{name}"),
        sha256: "00".into(),
        metrics: json!({"accuracy": 0.75}),
        state: ModelState::Candidate,
        created: T0,
    }
}

/// All judgments of sets of a kind.
pub fn of_kind(kind: SetKind) -> JudgedFilter {
    JudgedFilter { kind: Some(kind), ..JudgedFilter::default() }
}

/// The judgments that `each_judged` passes on.
pub async fn judged(store: &Store, kind: Option<SetKind>, since: Option<Micros>) -> Vec<JudgedSet> {
    let mut judged = Vec::new();
    store
        .sets()
        .each_judged(&JudgedFilter { kind, since, project: None }, |judgment| judged.push(judgment))
        .await
        .unwrap();
    judged
}

pub fn page(limit: i64) -> Page {
    Page { after: None, limit }
}
