//! Charging tokens to keys. The guard of a route sets the payer of the request's task; everything that the request
//! computes is charged to it, without a parameter in every function.

use super::people::Actor;
use super::{Result, Services};
use crate::domain::ApiKeyId;
use crate::domain::time::{DAY, SECOND};

tokio::task_local! {
    static PAYER: Option<ApiKeyId>;
}

/// Runs `work` on the account of `payer`. Tasks that `work` spawns have no payer: whoever spawns one that computes
/// takes [`payer`] along.
pub async fn paid_by<F: Future>(payer: Option<ApiKeyId>, work: F) -> F::Output {
    PAYER.scope(payer, work).await
}

/// The key that pays for the tokens of this request, where it has a number of them a day.
pub fn payer() -> Option<ApiKeyId> {
    PAYER.try_with(Clone::clone).unwrap_or_default()
}

/// Charges what this request has computed: tokens read and tokens drawn.
pub async fn charge(services: &Services, tokens: usize) -> Result<()> {
    match payer() {
        Some(key) => charge_to(services, &key, tokens).await,
        None => Ok(()),
    }
}

/// Charges tokens to the key's day. Requests under way together may pass the limit by what they draw.
pub async fn charge_to(services: &Services, key: &ApiKeyId, tokens: usize) -> Result<()> {
    let day = services.now().div_euclid(DAY);
    Ok(services.store.api_keys().add_tokens(key, day, tokens as i64).await?)
}

/// Seconds until the key's tokens of the next day, when those of today are used up.
pub async fn exhausted(services: &Services, actor: &Actor) -> Result<Option<u64>> {
    let Some((id, daily)) = &actor.quota else { return Ok(None) };
    let now = services.now();
    let used = services.store.api_keys().tokens(id, now.div_euclid(DAY)).await?;
    Ok((used >= *daily).then(|| ((DAY - now.rem_euclid(DAY)) / SECOND + 1) as u64))
}
