//! Visibility of prompts, sets and judgments: reviewers and administrators see everything, labelers their own.

use super::{Result, ServiceError, Services};
use crate::domain::{ComparisonSet, Judgment, LabelerId, Prompt, Role, SetId, SetStatus};
use crate::service::people::Actor;
use crate::store::{Page, SetContent};

/// The caller, when only their own sets are visible to them.
pub fn plain_labeler(actor: &Actor) -> Option<&LabelerId> {
    (actor.role < Role::Reviewer).then_some(&actor.labeler_id)
}

/// A page of prompts, newest first: for labelers those of sets that they were handed, without the right answers.
///
/// # Errors
/// What the store says.
pub async fn prompts(services: &Services, actor: &Actor, page: Page) -> Result<Vec<Prompt>> {
    let prompts = services.store.prompts();
    Ok(match plain_labeler(actor) {
        Some(labeler) => {
            let found = prompts.list_of(page, labeler).await?;
            // The reference answer of a prompt is hidden from labelers.
            found.into_iter().map(|prompt| Prompt { answer: None, ..prompt }).collect()
        }
        None => prompts.list(page, None).await?,
    })
}

/// A page of sets, newest first: for labelers those that they made or were handed.
///
/// # Errors
/// What the store says.
pub async fn sets(
    services: &Services,
    actor: &Actor,
    page: Page,
    status: Option<SetStatus>,
) -> Result<Vec<ComparisonSet>> {
    let sets = services.store.sets();
    Ok(match plain_labeler(actor) {
        Some(labeler) => sets.list_of(page, status, labeler).await?,
        None => sets.list(page, status).await?,
    })
}

/// A set with its prompt and its completions.
///
/// # Errors
/// `NotFound`, and `Forbidden` for labelers who neither made the set nor were handed it.
pub async fn set(services: &Services, actor: &Actor, id: &SetId) -> Result<SetContent> {
    let content = services.store.sets().content(id).await?;
    if let Some(labeler) = plain_labeler(actor)
        && !services.store.sets().is_of(id, labeler).await?
    {
        return Err(ServiceError::Forbidden("labelers see the sets that they made or were handed".into()));
    }
    Ok(content)
}

/// A page of judgments, newest first: for labelers their own.
///
/// # Errors
/// What the store says.
pub async fn judgments(services: &Services, actor: &Actor, page: Page) -> Result<Vec<Judgment>> {
    Ok(services.store.judgments().list(page, plain_labeler(actor)).await?)
}
