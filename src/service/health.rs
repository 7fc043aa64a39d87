//! The store's part of `/ready` and `/metrics`.

use super::{Result, Services};
use crate::domain::{JobState, ModelKind};

/// Checks that the database answers and accepts writes; returns the name of the active encoder.
///
/// # Errors
/// `Unavailable` when the database cannot be reached, is damaged or is locked.
pub async fn active_encoder(services: &Services) -> Result<Option<String>> {
    services.store.ping().await?;
    Ok(services.store.models().active(ModelKind::Encoder).await?.map(|m| m.name))
}

/// Statements sent to the database since the start.
pub fn statements(services: &Services) -> u64 {
    services.store.statements()
}

/// How many jobs are in each state; states that could not be counted are left out.
pub async fn jobs_by_state(services: &Services) -> Vec<(JobState, i64)> {
    let mut counts = Vec::new();
    for state in JobState::ALL {
        if let Ok(jobs) = services.store.jobs().count(*state).await {
            counts.push((*state, jobs));
        }
    }
    counts
}
