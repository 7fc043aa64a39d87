//! Stored responses of the Responses API, which a later request may continue. They are in the database, so that every
//! server has them after a restart too, for a limited time and in a limited number of bytes, and are removed with their
//! owner.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::{Result, Services};
use crate::domain::time::{DAY, before};
use crate::domain::{KeptResponse, Micros};

/// Days that a response is kept, unless requests are removed earlier.
const DAYS: u32 = 30;
/// Most bytes of all stored responses, and of one conversation.
const MOST_BYTES: i64 = 1 << 30;
const MOST_ONE: i64 = 4 << 20;
/// Bytes stored by a server after which it checks the limit.
const LOOK_EVERY: i64 = 16 << 20;

/// Bytes that this server has stored since its last check.
#[derive(Debug, Default)]
pub struct Stored(AtomicI64);

/// Time (µs) before which responses have expired.
fn since(services: &Services, now: Micros) -> Micros {
    let days = match services.live().config.retention.request_days {
        0 => DAYS,
        days => days.min(DAYS),
    };
    before(now, days, DAY)
}

/// Stores a response unless it is too large.
///
/// # Errors
/// What the store says.
pub async fn keep(services: &Services, kept: KeptResponse) -> Result<()> {
    let bytes = kept.response.to_string().len() + kept.messages.iter().map(|m| m.to_string().len()).sum::<usize>();
    let bytes = bytes as i64;
    if bytes > MOST_ONE {
        return Ok(());
    }
    services.store.responses().put(kept, bytes).await?;
    if services.responses.0.fetch_add(bytes, Relaxed) + bytes >= LOOK_EVERY {
        services.responses.0.store(0, Relaxed);
        expire(services).await?;
    }
    Ok(())
}

/// The response with this id, if it belongs to `owner`.
///
/// # Errors
/// What the store says.
pub async fn get(services: &Services, id: &str, owner: Option<&str>) -> Result<Option<KeptResponse>> {
    Ok(services.store.responses().get(id, owner, since(services, services.now())).await?)
}

/// Removes a response; `false` when `owner` has none with this id.
///
/// # Errors
/// What the store says.
pub async fn forget(services: &Services, id: &str, owner: Option<&str>) -> Result<bool> {
    Ok(services.store.responses().delete(id, owner).await?)
}

/// Removes expired responses, and the oldest when there are too many bytes.
///
/// # Errors
/// What the store says.
pub async fn expire(services: &Services) -> Result<u64> {
    Ok(services.store.responses().expire(since(services, services.now()), MOST_BYTES).await?)
}
