//! The steps that draws of every policy share: stored progress, the choice of prompts, counts, and the set itself.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::draw_request::{DrawPlan, SelectionPolicy};
use super::drawn::{Candidate, Outcome, Tally};
use super::sets::{self, CompletionRef};
use super::{Result, ServiceError, Services};
use crate::domain::*;

/// Most prompts from which the policy selects.
const POOL: usize = 20_000;
/// Interval at which a running draw stores its progress.
const SIGN_OF_LIFE: std::time::Duration = std::time::Duration::from_secs(1);

/// Stores the draw's progress; false once it was cancelled.
pub(super) async fn advance(services: &Services, draw: &mut SetDraw) -> Result<bool> {
    draw.updated = services.now();
    Ok(services.store.draws().advance(draw.clone()).await?)
}

/// Waits for a step of a draw, and stores the draw's progress meanwhile, so that it is known to go on. `pieces` is the
/// number of pieces of text received so far. `None` once the draw was cancelled.
///
/// # Errors
/// `Conflict` when the server stops.
pub(super) async fn while_alive<T>(
    services: &Services,
    draw: &mut SetDraw,
    pieces: impl Fn() -> i64,
    step: impl Future<Output = T>,
) -> Result<Option<T>> {
    let mut step = std::pin::pin!(step);
    let mut alive = tokio::time::interval(SIGN_OF_LIFE);
    alive.tick().await;
    loop {
        tokio::select! {
            () = services.shutdown.cancelled() => return Err(ServiceError::Conflict("the server stopped".into())),
            _ = alive.tick() => {
                draw.report.pieces = pieces();
                if !advance(services, draw).await? {
                    return Ok(None);
                }
            }
            done = &mut step => return Ok(Some(done)),
        }
    }
}

/// Prompts in a random order given by the seed; excluded ones are counted in the report.
pub(super) async fn prompts(services: &Services, plan: &DrawPlan, report: &mut DrawReport) -> Result<Vec<Prompt>> {
    let mut filter = plan.request.prompts.clone();
    filter.without_requests = !services.learns_from_requests();
    if plan.request.policy == SelectionPolicy::Stored {
        filter.min_completions = filter.min_completions.max(2);
    }
    let counts = services.store.prompts().count(&filter).await?;
    (report.found, report.has_set) = (counts.found, counts.has_set);
    (report.raw_text, report.few_answers) = (counts.raw_text, counts.few_completions);
    report.requests = counts.requests;
    let mut found = services.store.prompts().select(&filter, None, POOL as i64).await?;
    // Raw texts of /v1/completions are excluded unless their source is named.
    if filter.source.is_none() {
        found.retain(|p| p.source != "completions");
    }
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    for i in (1..found.len()).rev() {
        found.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    Ok(found)
}

/// Adds one prompt's outcome to the report.
pub(super) fn count(report: &mut DrawReport, outcome: &Outcome, tally: Tally) {
    report.answers += tally.answers;
    report.cut_off += tally.cut_off;
    report.redrawn += tally.redrawn;
    match outcome {
        Outcome::Found(_) => {}
        Outcome::FewAnswers => report.few_answers += 1,
        Outcome::EqualAnswers => report.equal_answers += 1,
        Outcome::TooLong => report.too_long += 1,
    }
}

/// Makes a set of a candidate. Returns its id.
pub(super) async fn make(
    services: &Arc<Services>,
    plan: &DrawPlan,
    candidate: Candidate,
    draw: &mut SetDraw,
) -> Result<SetId> {
    draw.report.smaller += i64::from(candidate.completions.len() < plan.n);
    let completions = candidate.completions.into_iter().map(CompletionRef::Known).collect();
    let selection = sets::Selection { policy: plan.request.policy.as_str(), score: candidate.score };
    let made = sets::create_selected(services, &candidate.prompt, completions, plan.request.overlap, selection).await?;
    draw.made += 1;
    Ok(made.id)
}
