//! Comparison sets: given texts or samples of the active policy, to be ranked; and rankings by API.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::complete::{self, PromptInput, Running, Sample, Start, StoredAs};
use super::judge::{Judged, Submission, judge};
use super::marks::human_completion;
use super::prompts::{check_messages, prompt_record};
use super::{Result, ServiceError, Services, bad_input, not_found_as, uncancelled};
use crate::domain::*;
use crate::engine::{SamplingParams, ServedModel, TextForm};
use crate::service::people::Actor;
use crate::store::{Place, SetContent, StoreError};

/// A prompt by content or by id.
pub enum PromptRef {
    Messages(Vec<Message>),
    Known(PromptId),
}

/// Records that the caller asked for the set, and returns it with its texts.
///
/// # Errors
/// What the store says.
pub async fn asked_by(services: &Services, actor: &Actor, id: &SetId) -> Result<SetContent> {
    services.store.sets().note_maker(id, &actor.labeler_id).await?;
    Ok(services.store.sets().content(id).await?)
}

/// A completion by content or by id.
#[derive(Clone, Debug)]
pub enum CompletionRef {
    Text(String),
    Known(CompletionId),
}

/// Finds the prompt, or stores it in the project.
///
/// # Errors
/// `Forbidden` for labelers who name a prompt that is not of their own sets.
pub async fn prompt(
    services: &Arc<Services>,
    by: &Actor,
    project: &ProjectId,
    prompt: PromptRef,
    source: &str,
) -> Result<Prompt> {
    match prompt {
        PromptRef::Known(id) => {
            let prompt = services.store.prompts().get(&id).await.map_err(|e| not_found_as(e, "prompt_id"))?;
            if by.role < Role::Reviewer && !services.store.prompts().is_of(&prompt.id, &by.labeler_id).await? {
                let message = format!(
                    "labelers name prompts that they submitted or that belong to sets of theirs; prompt {} is neither: \
                     give its messages instead",
                    prompt.id
                );
                return Err(ServiceError::Forbidden(message));
            }
            check_submitted(services, &prompt).await?;
            Ok(prompt)
        }
        PromptRef::Messages(messages) => {
            super::prompts::add(services, &by.labeler_id, project, messages, source, None, Vec::new()).await
        }
    }
}

/// Refuses prompts that came in only as requests, unless requests may be used for training. Messages that are submitted
/// again are allowed.
async fn check_submitted(services: &Services, prompt: &Prompt) -> Result<()> {
    if services.learns_from_requests()
        || services.store.prompts().of_requests(std::slice::from_ref(&prompt.id)).await?.is_empty()
    {
        return Ok(());
    }
    let message = "came in as a request to the model; sets may be made of it only with the setting \
                   privacy.learn_from_requests, or when its messages are submitted again";
    Err(bad_input("prompt_id", message))
}

/// Makes an open set of given completions (stored as imported text when given as text).
pub async fn create(
    services: &Arc<Services>,
    prompt: &Prompt,
    completions: Vec<CompletionRef>,
    overlap: Option<i64>,
    policy: &str,
) -> Result<ComparisonSet> {
    create_selected(services, prompt, completions, overlap, Selection { policy, score: None }).await
}

/// Refuses completions that this labeler has yet to judge blind, because a set of their own would bypass the lease.
/// Reviewers and administrators may see everything.
///
/// # Errors
/// `Forbidden` naming the completion.
pub async fn check_own(services: &Services, actor: &Actor, completions: &[CompletionRef]) -> Result<()> {
    if actor.role >= Role::Reviewer {
        return Ok(());
    }
    for completion in completions {
        let CompletionRef::Known(id) = completion else { continue };
        if services.store.sets().unjudged_with(id, &actor.labeler_id).await?.is_some() {
            return Err(ServiceError::Forbidden(format!(
                "completion {id} belongs to a set that you have not judged; judge that set instead: GET /v1/label/next"
            )));
        }
    }
    Ok(())
}

/// The policy that selected a set, and its score by that policy.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    pub policy: &'a str,
    pub score: Option<f64>,
}

/// Makes an open set with a selection's score: sets of higher scores are handed out first.
pub async fn create_selected(
    services: &Arc<Services>,
    prompt: &Prompt,
    completions: Vec<CompletionRef>,
    overlap: Option<i64>,
    selection: Selection<'_>,
) -> Result<ComparisonSet> {
    make(services, prompt, completions, overlap, selection, None).await
}

async fn make(
    services: &Arc<Services>,
    prompt: &Prompt,
    completions: Vec<CompletionRef>,
    overlap: Option<i64>,
    selection: Selection<'_>,
    id: Option<SetId>,
) -> Result<ComparisonSet> {
    if !(2..=9).contains(&completions.len()) {
        return Err(bad_input("completions", "a set has 2 to 9 completions"));
    }
    let overlap = overlap.unwrap_or(services.live().config.labeling.overlap);
    if !(1..=100).contains(&overlap) {
        return Err(bad_input("overlap", "must be 1 to 100"));
    }
    let now = services.now();
    let (mut ids, mut new) = (Vec::new(), Vec::new());
    let mut texts: Vec<String> = Vec::new();
    for (i, completion) in completions.into_iter().enumerate() {
        match completion {
            CompletionRef::Known(id) => {
                let field = format!("completions[{i}].completion_id");
                let found = services.store.completions().get(&id).await.map_err(|e| not_found_as(e, &field))?;
                if found.prompt_id != prompt.id {
                    return Err(bad_input(field, "was written for another prompt"));
                }
                if ids.contains(&id) {
                    return Err(bad_input(field, "is listed twice"));
                }
                check_different(&mut texts, i, field, &found.text)?;
                ids.push(id);
            }
            CompletionRef::Text(text) => {
                check_different(&mut texts, i, format!("completions[{i}].text"), &text)?;
                if text.len() > services.config.limits.prompt_bytes {
                    return Err(bad_input(format!("completions[{i}].text"), "is too long"));
                }
                let origin = CompletionOrigin::Import;
                let written = Completion { origin, ..human_completion(prompt.id.clone(), text, now) };
                ids.push(written.id.clone());
                new.push(written);
            }
        }
    }
    let set = ComparisonSet {
        id: id.unwrap_or_else(SetId::new),
        prompt_id: prompt.id.clone(),
        kind: SetKind::Normal,
        target_overlap: overlap,
        selection_policy: selection.policy.to_owned(),
        selection_score: selection.score,
        status: SetStatus::Open,
        completion_ids: ids,
        created: now,
    };
    let (services, stored) = (services.clone(), set.clone());
    uncancelled(async move {
        if !new.is_empty() {
            services.store.completions().put(new).await?;
        }
        Ok(services.store.sets().put(stored).await?)
    })
    .await?;
    Ok(set)
}

/// The text by which two answers are compared, without outer white space.
pub fn compared(text: &str) -> &str {
    text.trim()
}

/// Refuses answers that look the same: a preference between them has no meaning.
fn check_different(texts: &mut Vec<String>, i: usize, field: String, text: &str) -> Result<()> {
    let text = compared(text);
    if let Some(same) = texts.iter().position(|t| t == text) {
        let message = format!("is the same text as completions[{same}]: a set compares different answers");
        return Err(bad_input(field, message));
    }
    debug_assert_eq!(texts.len(), i);
    texts.push(text.to_owned());
    Ok(())
}

/// Error message for several greedy samples of one version.
pub const SAME_AT_ZERO: &str =
    "is 0: every answer of one version would be the same text, and there would be nothing to compare; give more than 0";

/// Refuses parameters under which all samples of one version come out equal.
///
/// # Errors
/// `BadInput` at the sampling's `temperature` or `top_k`.
pub fn check_varied(params: &SamplingParams) -> Result<()> {
    if params.warpers.temperature == 0.0 {
        return Err(bad_input("sampling.temperature", SAME_AT_ZERO));
    }
    if params.warpers.top_k == 1 {
        let message = "is 1: every answer of one version would be the same text, and there would be nothing to compare";
        return Err(bad_input("sampling.top_k", message));
    }
    Ok(())
}

/// The ids of the samples that can be compared: those with text, and only the first of equal texts.
pub(super) fn comparable<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<CompletionId> {
    let mut seen = std::collections::HashSet::new();
    samples.filter(|s| !compared(&s.text).is_empty() && seen.insert(compared(&s.text))).map(|s| s.id.clone()).collect()
}

/// The error for samples without two different texts; a retry may succeed.
pub fn too_few_answers() -> ServiceError {
    ServiceError::Conflict(
        "the model wrote fewer than two different answers with text; try again, or with a higher temperature".into(),
    )
}

/// Samples `n` completions of the prompt from the active policy and makes them an open set.
///
/// # Errors
/// Errors of the engine; `Conflict` when fewer than two completions have text.
pub async fn sample(
    services: &Arc<Services>,
    prompt: &Prompt,
    n: usize,
    params: SamplingParams,
    overlap: Option<i64>,
    request_id: String,
) -> Result<ComparisonSet> {
    if !(2..=9).contains(&n) {
        return Err(bad_input("n", "must be 2 to 9"));
    }
    check_varied(&params)?;
    let model = complete::resolve_model(services, None, false).await?;
    let mut running = begin(services, model, prompt, n, params, request_id).await?;
    running.finish().await?;
    let texts = comparable(running.samples.iter());
    if texts.len() < 2 {
        return Err(too_few_answers());
    }
    running.store_always(|_| true).await?;
    let completions = texts.into_iter().map(CompletionRef::Known).collect();
    create(services, prompt, completions, overlap, "random").await
}

/// Starts `n` samples of the prompt by one version; `max_tokens` is cut to what the context holds.
pub(super) async fn begin(
    services: &Arc<Services>,
    model: Arc<ServedModel>,
    prompt: &Prompt,
    n: usize,
    params: SamplingParams,
    request_id: String,
) -> Result<Running> {
    let engine = services.engine()?;
    let input = match prompt.messages.as_slice() {
        // Raw text stays raw; a model without a template takes raw text only.
        [one] if prompt.source == "completions" || !model.has_chat_template => {
            PromptInput::raw(engine.as_ref(), &model, &one.content, TextForm::PROMPT).await?
        }
        messages => PromptInput::chat(engine.as_ref(), &model, messages, true).await?,
    };
    // An answer of the end token alone could not be ranked. Upstream servers do not have this parameter.
    let least = if model.version.stage == STAGE_UPSTREAM { params.min_tokens } else { params.min_tokens.max(1) };
    // A prompt that fills the context is refused: at least one token is asked for.
    let max_tokens = params.max_tokens.min(input.room(&model)).max(1);
    let params = SamplingParams { max_tokens, min_tokens: least, ..params };
    let start = Start {
        request_id,
        model,
        prompt: input,
        stored_as: StoredAs::Known(Box::new(prompt.clone())),
        n,
        params: SamplingParams { logprobs: Some(0), ..params },
        prompt_logprobs: None,
        adapter: None,
    };
    complete::start(services, start).await
}

/// A ranking given through the API, on a known set or on completions given with it.
pub struct Ranking {
    pub set_id: Option<SetId>,
    /// The project of a prompt that is given by its messages.
    pub project: ProjectId,
    pub prompt: Option<PromptRef>,
    pub completions: Vec<(CompletionRef, i64)>,
    pub outcome: Outcome,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    pub idempotency_key: String,
}

/// What a refused idempotency key was used for.
const OTHER_RANKING: StoreError = StoreError::KeyReused("another ranking");

/// Stores a K-wise ranking. Repeating it with the same idempotency key changes nothing.
///
/// # Errors
/// `KeyReused` of the store when the key is that of another ranking; `BadInput` naming the field; `Forbidden` for sets
/// of the queue that were not handed out to a labeler.
pub async fn rank(services: &Arc<Services>, actor: &Actor, ranking: Ranking) -> Result<(ComparisonSet, Judged)> {
    let Ranking { set_id, project, prompt: prompt_ref, completions, outcome, strength, rationale, idempotency_key } =
        ranking;
    let (refs, tiers): (Vec<_>, Vec<_>) = completions.into_iter().unzip();
    let mut repeated = false;
    let set = match (set_id, prompt_ref) {
        (Some(id), None) => services.store.sets().get(&id).await.map_err(|e| not_found_as(e, "set_id"))?,
        (None, Some(prompt_ref)) => {
            if let PromptRef::Messages(messages) = &prompt_ref {
                check_messages(messages, "messages", services.config.limits.prompt_bytes)?;
            }
            // The set's id is derived from the key, so that a repeated request finds the set that it made before.
            let id = derived_set_id(actor, &idempotency_key);
            match services.store.sets().get(&id).await {
                Ok(known) => {
                    let of_others = outcome == Outcome::Ranked && refs.len() != known.completion_ids.len();
                    if of_others || !is_of(services, &known, &project, prompt_ref).await? {
                        return Err(OTHER_RANKING.into());
                    }
                    repeated = true;
                    known
                }
                Err(StoreError::NotFound { .. }) => {
                    check_own(services, actor, &refs).await?;
                    let prompt = prompt(services, actor, &project, prompt_ref, "api").await?;
                    let import = Selection { policy: "import", score: None };
                    let made = make(services, &prompt, refs.clone(), Some(1), import, Some(id)).await?;
                    services.store.sets().note_maker(&made.id, &actor.labeler_id).await?;
                    made
                }
                Err(e) => return Err(e.into()),
            }
        }
        _ => return Err(bad_input("set_id", "give either set_id, or one of messages and prompt_id")),
    };
    // A repeated request names the completions that it made its set of.
    let foreign = |field: String, message: String| match repeated {
        true => OTHER_RANKING.into(),
        false => bad_input(field, message),
    };
    let mut items = Vec::new();
    for (i, (completion, tier)) in refs.into_iter().zip(tiers).enumerate() {
        let id = match completion {
            CompletionRef::Known(id) => id,
            CompletionRef::Text(text) => text_in_set(services, &set, &text, &items).await?.ok_or_else(|| {
                foreign(format!("completions[{i}].text"), "is not the text of a completion of this set".into())
            })?,
        };
        if !set.completion_ids.contains(&id) {
            return Err(foreign(format!("completions[{i}].completion_id"), format!("{id} is not in this set")));
        }
        if tier < 0 {
            return Err(bad_input(format!("completions[{i}].tier"), "must not be negative"));
        }
        items.push((id, tier, None));
    }
    let submission = Submission {
        lease_token: None,
        outcome,
        items,
        strength,
        rationale,
        flags: Vec::new(),
        ideal_answer: None,
        active_ms: 0,
        wall_ms: 0,
        idempotency_key,
        revises: None,
        guideline_version: None,
        rubric_version: None,
        ratings: Vec::new(),
        spans: Vec::new(),
        corrections: Vec::new(),
    };
    let assignment = ranking_lease(services, actor, &set, &submission.idempotency_key).await?;
    let submission = Submission { lease_token: assignment.as_ref().map(|a| a.lease_token.clone()), ..submission };
    let place = Place::Set(set.id.clone(), assignment.map(|a| a.id));
    let judged = judge(services, actor, place, submission).await?;
    let set = services.store.sets().get(&set.id).await?;
    Ok((set, judged))
}

/// Whether a set is one of the prompt.
async fn is_of(services: &Services, set: &ComparisonSet, project: &ProjectId, prompt: PromptRef) -> Result<bool> {
    Ok(match prompt {
        PromptRef::Known(id) => set.prompt_id == id,
        PromptRef::Messages(messages) => {
            let given = prompt_record(project, messages, "api", services.now());
            services.store.prompts().get(&set.prompt_id).await?.content_hash == given.content_hash
        }
    })
}

/// The lease by which a labeler may rank the set; `None` for sets that this request made, and for reviewers and
/// administrators, who need none.
///
/// # Errors
/// `Forbidden` for sets of the queue that were not handed out to the labeler.
async fn ranking_lease(
    services: &Services,
    actor: &Actor,
    set: &ComparisonSet,
    key: &str,
) -> Result<Option<Assignment>> {
    if actor.role >= Role::Reviewer || set.id == derived_set_id(actor, key) {
        return Ok(None);
    }
    match services.store.leases().assignment_of(&set.id, &actor.labeler_id).await? {
        Some(held) if held.state != AssignmentState::Released => Ok(Some(held)),
        _ => Err(ServiceError::Forbidden(format!(
            "set {} was not handed out to you; lease it first: GET /v1/label/next?set_id={}",
            set.id, set.id
        ))),
    }
}

/// The completion of the set that has this text and is not ranked yet.
async fn text_in_set(
    services: &Services,
    set: &ComparisonSet,
    text: &str,
    ranked: &[(CompletionId, i64, Option<i64>)],
) -> Result<Option<CompletionId>> {
    for id in &set.completion_ids {
        if ranked.iter().all(|(r, _, _)| r != id) && services.store.completions().get(id).await?.text == text {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

fn derived_set_id(actor: &Actor, key: &str) -> SetId {
    let digest = Sha256::digest(format!("{}\0{key}", actor.labeler_id).as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    SetId(ulid::Ulid::from(u128::from_be_bytes(bytes)).to_string())
}

/// Stores a demonstration: a prompt and the answer a person wrote for it.
pub async fn demonstrate(
    services: &Arc<Services>,
    actor: &Actor,
    project: &ProjectId,
    messages: Vec<Message>,
    completion: String,
) -> Result<Demonstration> {
    check_messages(&messages, "messages", services.config.limits.prompt_bytes)?;
    if completion.trim().is_empty() || completion.len() > services.config.limits.prompt_bytes {
        return Err(bad_input("completion", "must have text and be within the size limit"));
    }
    let now = services.now();
    let prompt = prompt_record(project, messages, "api", now);
    let completion = human_completion(prompt.id.clone(), completion, now);
    let (services, labeler) = (services.clone(), actor.labeler_id.clone());
    uncancelled(async move { Ok(services.store.demonstrations().put(prompt, completion, Some(labeler), now).await?) })
        .await
}
