//! Sets with known answers, and reviewers' decisions on sets that labelers disagree about.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::judge::{Submission, judge};
use super::{Result, Services, bad_input, not_found_as, uncancelled};
use crate::domain::*;
use crate::service::people::Actor;
use crate::store::{Place, SetContent, Submitted};

const MAX_EXPLANATION: usize = 16 << 10;

/// The expected order of a set, by which labelers are measured.
pub struct KnownAnswer {
    /// `Gold` stays hidden; `Calibration` is shown after the judgment.
    pub kind: SetKind,
    /// Every completion once; 0 is best, equal tiers are a tie.
    pub tiers: Vec<(CompletionId, i64)>,
    pub explanation: Option<String>,
}

/// Gives a set a known answer; it is then given to every labeler, in the configured shares.
///
/// # Errors
/// `BadInput` when the tiers do not order the set's completions.
pub async fn set_known_answer(services: &Arc<Services>, by: &Actor, id: &SetId, answer: KnownAnswer) -> Result<()> {
    if answer.kind == SetKind::Normal {
        return Err(bad_input("kind", "must be gold or calibration"));
    }
    let set = services.store.sets().get(id).await.map_err(|e| not_found_as(e, "set_id"))?;
    let named: HashSet<&CompletionId> = answer.tiers.iter().map(|t| &t.0).collect();
    if named.len() != answer.tiers.len() || set.completion_ids.len() != named.len() {
        return Err(bad_input("tiers", "must name every completion of the set once"));
    }
    if let Some(foreign) = named.iter().find(|id| !set.completion_ids.contains(id)) {
        return Err(bad_input("tiers", format!("{foreign} is not in this set")));
    }
    if answer.tiers.iter().any(|t| !(0..=99).contains(&t.1)) {
        return Err(bad_input("tiers", "must be 0 (best) to 99"));
    }
    if answer.tiers.iter().all(|t| t.1 == answer.tiers[0].1) {
        return Err(bad_input(
            "tiers",
            "must rank at least one answer above another; an order of ties only measures nothing",
        ));
    }
    if answer.explanation.as_ref().is_some_and(|e| e.len() > MAX_EXPLANATION) {
        return Err(bad_input("explanation", format!("at most {MAX_EXPLANATION} bytes")));
    }
    let (all, id, actor) = (services.clone(), id.clone(), by.signature());
    uncancelled(async move {
        all.store.sets().make_gold(&id, answer.kind, &answer.tiers, answer.explanation.as_deref()).await?;
        let detail = json!({"kind": answer.kind});
        Ok(all.store.audit_log().append(&actor, "known_answer", id.as_str(), detail, all.now()).await?)
    })
    .await
}

/// Takes a set out of the queue; its judgments are kept.
pub async fn retire_set(services: &Services, by: &Actor, id: &SetId) -> Result<()> {
    services.store.sets().retire(id).await?;
    Ok(services.store.audit_log().append(&by.signature(), "retire_set", id.as_str(), json!({}), services.now()).await?)
}

/// Takes all of these sets out of the queue, or none if one is unknown.
pub async fn retire_sets(services: &Arc<Services>, by: &Actor, ids: &[SetId]) -> Result<()> {
    let (all, ids, actor) = (services.clone(), ids.to_vec(), by.signature());
    uncancelled(async move {
        all.store.sets().retire_matching(&ids).await?;
        for id in &ids {
            all.store.audit_log().append(&actor, "retire_set", id.as_str(), json!({}), all.now()).await?;
        }
        Ok(())
    })
    .await
}

/// A set with the latest judgment of every labeler.
pub struct Disputed {
    pub set: ComparisonSet,
    pub prompt: Prompt,
    /// In storage order.
    pub completions: Vec<Completion>,
    /// Judgments with the names of their labelers.
    pub judgments: Vec<(Judgment, Labeler)>,
    /// Texts with which labelers corrected completions of the set, oldest first.
    pub corrections: Vec<(LabelerId, Completion)>,
    /// Names of language models with their rankings, in the order in which they were stored.
    pub judges: Vec<(String, ModelJudgment)>,
    pub settled_by: Option<LabelerId>,
    /// The expected order of sets with a known answer.
    pub known: Option<KnownOrder>,
}

/// The expected order of a set.
pub struct KnownOrder {
    /// Expected tiers, 0 best.
    pub tiers: Vec<(CompletionId, i64)>,
    pub explanation: Option<String>,
}

/// A set as reviewers see it, with the authors; their later judgments of it are not blind.
pub async fn disputed(services: &Services, by: &Actor, id: &SetId) -> Result<Disputed> {
    let sets = services.store.sets();
    let SetContent { set, prompt, completions } = sets.content(id).await?;
    services.store.judgments().put_reveal(id, &by.labeler_id, Knowledge::Authors, services.now()).await?;
    let mut judgments = Vec::new();
    for judgment in services.store.judgments().of_set(id).await? {
        let labeler = services.store.people().get(&judgment.labeler_id).await?;
        judgments.push((judgment, labeler));
    }
    let names = services.store.model_judgments().labelers().await?;
    let name = |id: &LabelerId| names.iter().find(|l| l.id == *id).map_or_else(String::new, |l| l.name.clone());
    let judges = services.store.model_judgments().of_set(id).await?;
    let judges = judges.into_iter().map(|judgment| (name(&judgment.labeler_id), judgment)).collect();
    let known = match set.kind {
        SetKind::Normal => None,
        SetKind::Gold | SetKind::Calibration => {
            Some(KnownOrder { tiers: sets.gold(id).await?, explanation: sets.explanation(id).await? })
        }
    };
    let settled_by = sets.settled_by(id).await?;
    let corrections = sets.corrections(id).await?;
    Ok(Disputed { set, prompt, completions, judgments, corrections, judges, settled_by, known })
}

/// Settles a set by the reviewer's own judgment: datasets then take it instead of the others'. A reviewer
/// who has judged the set already revises that judgment.
pub async fn settle(services: &Arc<Services>, by: &Actor, id: &SetId, mut submission: Submission) -> Result<Submitted> {
    services.store.sets().get(id).await?;
    if submission.outcome == Outcome::Skip {
        return Err(bad_input("outcome", "must not be a skip"));
    }
    let own = services.store.judgments().of_set(id).await?.into_iter().find(|j| j.labeler_id == by.labeler_id);
    // A repeated request must not revise its own judgment.
    submission.revises = own.filter(|j| j.idempotency_key != submission.idempotency_key).map(|j| j.id);
    let submitted = judge(services, by, Place::Set(id.clone(), None), submission).await?.submitted;
    let (all, id, by, judgment) = (services.clone(), id.clone(), by.clone(), submitted.judgment.clone());
    uncancelled(async move {
        all.store.sets().settle(&id, &by.labeler_id, judgment.created).await?;
        let detail = json!({"judgment": judgment.id});
        Ok(all.store.audit_log().append(&by.signature(), "settle_set", id.as_str(), detail, all.now()).await?)
    })
    .await?;
    Ok(submitted)
}
