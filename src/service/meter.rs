//! Charging tokens to keys. The guard of a route sets the payer of the request's task, a task-local value, to which all
//! tokens of the request are charged.

use super::people::Actor;
use super::{Result, Services};
use crate::domain::ApiKeyId;
use crate::domain::time::{DAY, SECOND};

tokio::task_local! {
    static PAYER: Option<ApiKeyId>;
}

/// Runs `work` with `payer` as its payer. Tasks that `work` spawns have none; pass [`payer`] on to those that compute.
pub async fn paid_by<F: Future>(payer: Option<ApiKeyId>, work: F) -> F::Output {
    PAYER.scope(payer, work).await
}

/// The key that this request's tokens are charged to, if it has a daily limit.
pub fn payer() -> Option<ApiKeyId> {
    PAYER.try_with(Clone::clone).unwrap_or_default()
}

/// Charges tokens to this request's payer: those of prompts and those that were sampled.
pub async fn charge(services: &Services, tokens: usize) -> Result<()> {
    match payer() {
        Some(key) => charge_to(services, &key, tokens).await,
        None => Ok(()),
    }
}

/// Charges tokens to the key's day. Concurrent requests may exceed the limit by the tokens that they sample.
pub async fn charge_to(services: &Services, key: &ApiKeyId, tokens: usize) -> Result<()> {
    let day = services.now().div_euclid(DAY);
    Ok(services.store.api_keys().add_tokens(key, day, tokens as i64).await?)
}

/// Seconds until the next day if the key's daily token limit is used up.
pub async fn exhausted(services: &Services, actor: &Actor) -> Result<Option<u64>> {
    let Some((id, daily)) = &actor.quota else { return Ok(None) };
    let now = services.now();
    let used = services.store.api_keys().tokens(id, now.div_euclid(DAY)).await?;
    Ok((used >= *daily).then(|| ((DAY - now.rem_euclid(DAY)) / SECOND + 1) as u64))
}
