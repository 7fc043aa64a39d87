//! Which model version serves: promote, roll back, retire. The engine swaps before the database is updated.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::{Result, ServiceError, Services, register, uncancelled};
use crate::domain::{ModelKind, ModelState, ModelVersion, RewardScore};
use crate::engine::EngineError;
use crate::service::people::Actor;

/// A version by its id or its name.
///
/// # Errors
/// `UnknownModel` with similar names.
pub async fn find(services: &Services, name_or_id: &str) -> Result<ModelVersion> {
    register::find(services, name_or_id, None, None).await
}

/// Makes the version the active one of its kind without dropping a request: requests in flight finish on the version
/// that they began with.
///
/// # Errors
/// `Conflict` for retired versions and for kinds without an active version; errors of the engine when the version
/// cannot be loaded.
pub async fn promote(services: &Arc<Services>, by: &Actor, name_or_id: &str) -> Result<ModelVersion> {
    let version = register::find_or_register(services, name_or_id, None, None).await?;
    if matches!(version.kind, ModelKind::Classifier | ModelKind::PromptAdapter) {
        let message =
            format!("{} is a {}: such a version is named in requests and cannot be active", version.name, version.kind);
        return Err(ServiceError::Conflict(message));
    }
    switch(services, by, version, "promote").await
}

/// Returns to the parent of the active policy.
///
/// # Errors
/// `Conflict` when nothing is active or the active version has no parent.
pub async fn roll_back(services: &Arc<Services>, by: &Actor, kind: ModelKind) -> Result<ModelVersion> {
    let Some(active) = services.store.models().active(kind).await? else {
        return Err(ServiceError::Conflict(format!("no {kind} is active")));
    };
    let Some(parent) = &active.parent_id else {
        let message = format!("{} has no parent to return to; promote the version that is to be served", active.name);
        return Err(ServiceError::Conflict(message));
    };
    let parent = services.store.models().get(parent).await?;
    if parent.kind != kind {
        return Err(ServiceError::Conflict(format!("the parent of {} is not a {kind}", active.name)));
    }
    switch(services, by, parent, "roll_back").await
}

async fn switch(
    services: &Arc<Services>,
    by: &Actor,
    version: ModelVersion,
    action: &'static str,
) -> Result<ModelVersion> {
    if version.state == ModelState::Retired {
        return Err(ServiceError::Conflict(format!("{} is retired", version.name)));
    }
    let (services, by) = (services.clone(), by.clone());
    uncancelled(async move {
        let actor = by.signature();
        let _one_at_a_time = services.publishing.lock().await;
        let now = services.now();
        let replaced = services.store.models().active(version.kind).await?.filter(|m| m.id != version.id).map(|m| m.id);
        let former = if version.kind == ModelKind::Policy {
            let engine = services.engine()?;
            let former = engine.active().map(|m| m.version.clone());
            // Damaged files are an error of the version, not of the server.
            let refused = |e: EngineError| match e {
                EngineError::Failed(why) => ServiceError::Conflict(format!("{} cannot be served: {why}", version.name)),
                other => other.into(),
            };
            engine.load(&version).await.map_err(refused)?;
            if let Err(error) = engine.activate(&version.id).await {
                // A candidate keeps what serves it; of others nothing stays loaded.
                if services.live().canary.as_ref().is_none_or(|canary| canary.model_version_id != version.id) {
                    engine.release(&version.id).await;
                }
                return Err(refused(error));
            }
            former
        } else {
            None
        };
        let detail = json!({"name": version.name, "kind": version.kind, "replaced": replaced});
        let active = match services.store.models().promote(&version.id, &actor, action, detail, now).await {
            Ok(active) => active,
            Err(e) => {
                if let Some(former) = former
                    && let Err(error) = serve_again(&services, &former, &version).await
                {
                    // `follow` tries again.
                    tracing::warn!(%error, model.name = %former.name, "the active version is not served again");
                }
                return Err(e.into());
            }
        };
        super::live::promoted(&services, &by, &active.id).await?;
        tracing::info!(model.name = %active.name, model.kind = %active.kind, "{action}");
        Ok(active)
    })
    .await
}

/// Serves `former` again in place of `refused`, whose promotion could not be stored: the served version must be the one
/// in the database.
async fn serve_again(services: &Services, former: &ModelVersion, refused: &ModelVersion) -> Result<()> {
    let engine = services.engine()?;
    engine.load(former).await?;
    engine.activate(&former.id).await?;
    if former.id != refused.id
        && services.live().canary.as_ref().is_none_or(|canary| canary.model_version_id != refused.id)
    {
        engine.release(&refused.id).await;
    }
    Ok(())
}

/// Serves the version that is active in the database, whichever server activated it. Checks whenever `activations`
/// changes; ends at shutdown.
pub async fn follow(services: Arc<Services>, mut activations: watch::Receiver<()>) {
    loop {
        tokio::select! {
            changed = activations.changed() => if changed.is_err() { return },
            () = services.shutdown.cancelled() => return,
        }
        while let Err(error) = catch_up(&services).await {
            tracing::warn!(%error, "the active model version cannot be served; retrying");
            tokio::select! {
                () = tokio::time::sleep(CATCH_UP_PAUSE) => {}
                () = services.shutdown.cancelled() => return,
            }
        }
    }
}

const CATCH_UP_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// Makes the engine's active policy the database's.
async fn catch_up(services: &Arc<Services>) -> Result<()> {
    let serves = || -> Result<_> { Ok(services.engine()?.active().map(|m| m.version.id.clone())) };
    let Some(seen) = services.store.models().active(ModelKind::Policy).await? else { return Ok(()) };
    if serves()?.as_ref() == Some(&seen.id) {
        return Ok(());
    }
    // Not during a promotion by this server, when the engine is ahead of the database.
    let _one_at_a_time = services.publishing.lock().await;
    let Some(wanted) = services.store.models().active(ModelKind::Policy).await? else { return Ok(()) };
    if serves()?.as_ref() != Some(&wanted.id) {
        let engine = services.engine()?;
        engine.load(&wanted).await?;
        engine.activate(&wanted.id).await?;
        tracing::info!(model.name = %wanted.name, "serving the version that another server activated");
    }
    Ok(())
}

/// Takes a version out of use; its files stay.
///
/// # Errors
/// `Conflict` for the active version and for the canary.
pub async fn retire(services: &Arc<Services>, by: &Actor, name_or_id: &str) -> Result<()> {
    let version = find(services, name_or_id).await?;
    if version.state == ModelState::Active {
        return Err(ServiceError::Conflict(format!("{} is active; promote another version first", version.name)));
    }
    if services.live().canary.as_ref().is_some_and(|c| c.model_version_id == version.id) {
        return Err(ServiceError::Conflict(format!("{} is the canary; end the canary first", version.name)));
    }
    services.store.models().retire(&version.id).await?;
    let detail = json!({"name": version.name});
    Ok(services
        .store
        .audit_log()
        .append(&by.signature(), "retire", version.id.as_str(), detail, services.now())
        .await?)
}

/// Scores answers to one prompt with the active or named reward model; `std` is the spread of an ensemble's
/// heads, 0 for a single head. `may_try` also allows a version that was never promoted.
///
/// # Errors
/// `Conflict` when no reward model is active; `BadInput` when the named version is not a reward model, is retired, or
/// is not allowed for this caller.
pub async fn rewards(
    services: &Services,
    model: Option<&str>,
    prompt: &Arc<[crate::domain::Message]>,
    answers: Vec<String>,
    may_try: bool,
) -> Result<(ModelVersion, Vec<RewardScore>)> {
    let version = match model {
        None | Some("" | "active" | "default") => services
            .store
            .models()
            .active(ModelKind::Reward)
            .await?
            .ok_or_else(|| ServiceError::Conflict("no reward model is active".into()))?,
        Some(name) if may_try => {
            register::find_or_register(services, name, Some(ModelKind::Reward), Some("model")).await?
        }
        Some(name) => register::find(services, name, Some(ModelKind::Reward), Some("model")).await?,
    };
    if version.kind != ModelKind::Reward {
        return Err(super::bad_input("model", format!("{} is not a reward model", version.name)));
    }
    if version.state == ModelState::Retired {
        return Err(super::bad_input("model", format!("{} is retired", version.name)));
    }
    if version.state == ModelState::Candidate && !may_try {
        let message = format!("{} was never promoted: only administrators can try it", version.name);
        return Err(super::bad_input("model", message));
    }
    let scores = services.engine()?.reward_scores(&version, prompt, answers).await?;
    super::meter::charge(services, scores.iter().map(|score| score.tokens).sum()).await?;
    Ok((version, scores))
}
