//! Answers of the Responses API that a later request may go on from. They are kept in the database, so that every server
//! has them and a restart forgets none, for a bounded time and in a bounded number of bytes, and go with their owner.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::{Result, Services};
use crate::domain::time::{DAY, before};
use crate::domain::{KeptResponse, Micros};

/// Days that a response is kept, unless requests are removed earlier.
const DAYS: u32 = 30;
/// Bytes of all that is kept, and of one conversation.
const MOST_BYTES: i64 = 1 << 30;
const MOST_ONE: i64 = 4 << 20;
/// Bytes after which a server looks whether there is too much.
const LOOK_EVERY: i64 = 16 << 20;

/// What this server has stored since it last looked.
#[derive(Debug, Default)]
pub struct Stored(AtomicI64);

/// The first time of responses that are still there.
fn since(services: &Services, now: Micros) -> Micros {
    let days = match services.live().config.retention.request_days {
        0 => DAYS,
        days => days.min(DAYS),
    };
    before(now, days, DAY)
}

/// Keeps a response. One that is too large is not kept.
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

/// The response with this id, if it is this owner's.
///
/// # Errors
/// What the store says.
pub async fn get(services: &Services, id: &str, owner: Option<&str>) -> Result<Option<KeptResponse>> {
    Ok(services.store.responses().get(id, owner, since(services, services.now())).await?)
}

/// Forgets a response; `false` when there is none of this owner.
///
/// # Errors
/// What the store says.
pub async fn forget(services: &Services, id: &str, owner: Option<&str>) -> Result<bool> {
    Ok(services.store.responses().delete(id, owner).await?)
}

/// Removes what is too old or too much.
///
/// # Errors
/// What the store says.
pub async fn expire(services: &Services) -> Result<u64> {
    Ok(services.store.responses().expire(since(services, services.now()), MOST_BYTES).await?)
}
