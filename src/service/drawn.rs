//! The answers of one set of a draw: sampled from the policy, with equal ones sampled again, or stored ones.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::complete::Running;
use super::draw_request::{DrawPlan, SelectionPolicy};
use super::{Result, ServiceError, Services, publish, sets};
use crate::domain::*;
use crate::engine::{EngineError, FinishReason, GenEvent, SamplingParams, ServedModel, Warpers};
use crate::eval::quality::selection::{Guess, uncertainty};

/// Number of retries while the engine is busy, before the draw fails.
const MAX_BUSY_RETRIES: u32 = 600;
/// Number of times that equal and empty answers are sampled again.
const REDRAWS: u64 = 3;

/// A prompt with the answers of its future set.
pub(super) struct Candidate {
    pub(super) prompt: Prompt,
    pub(super) completions: Vec<CompletionId>,
    pub(super) score: Option<f64>,
}

/// The outcome for one prompt.
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are found")]
pub(super) enum Outcome {
    Found(Candidate),
    /// Fewer than two answers with text.
    FewAnswers,
    /// All answers are equal.
    EqualAnswers,
    /// The prompt does not fit the model's context.
    TooLong,
}

/// Counts of the samples of one prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) answers: i64,
    pub(super) cut_off: i64,
    pub(super) redrawn: i64,
}

/// Different answers to one prompt, and whether there were equal ones among those left out.
#[derive(Default)]
struct Answers {
    kept: Vec<(CompletionId, String)>,
    equal: bool,
}

impl Answers {
    /// Adds the answer unless it is empty or equal to another, because equal texts cannot be ranked.
    fn add(&mut self, id: &CompletionId, text: &str) -> bool {
        if text.trim().is_empty() {
            return false;
        }
        if self.kept.iter().any(|k| sets::compared(&k.1) == sets::compared(text)) {
            self.equal = true;
            return false;
        }
        self.kept.push((id.clone(), text.to_owned()));
        true
    }
}

/// The answers to one prompt, or why it cannot become a set.
pub(super) async fn candidate(
    services: &Arc<Services>,
    plan: &DrawPlan,
    prompt: Prompt,
    seed: u64,
) -> Result<(Outcome, Tally)> {
    let mut tally = Tally::default();
    let answers = if plan.request.policy == SelectionPolicy::Stored {
        stored(services, plan, &prompt).await?
    } else {
        match written(services, plan, &prompt, seed, &mut tally).await? {
            Some(answers) => answers,
            None => return Ok((Outcome::TooLong, tally)),
        }
    };
    if answers.kept.len() < 2 {
        let outcome = if answers.equal { Outcome::EqualAnswers } else { Outcome::FewAnswers };
        return Ok((outcome, tally));
    }
    let score = match plan.request.policy {
        SelectionPolicy::Uncertainty => reward_uncertainty(services, &prompt, &answers.kept).await?,
        _ => None,
    };
    let completions = answers.kept.into_iter().map(|k| k.0).collect();
    Ok((Outcome::Found(Candidate { prompt, completions, score }), tally))
}

/// The newest stored answers, which are closest to the current policy.
async fn stored(services: &Services, plan: &DrawPlan, prompt: &Prompt) -> Result<Answers> {
    let mut answers = Answers::default();
    let left_out = match services.learns_from_requests() {
        true => HashSet::new(),
        false => services.store.completions().served(&prompt.id).await?,
    };
    for completion in services.store.completions().list(&prompt.id).await?.iter().rev() {
        if answers.kept.len() == plan.n {
            break;
        }
        if !left_out.contains(&completion.id) {
            answers.add(&completion.id, &completion.text);
        }
    }
    Ok(answers)
}

/// Answers of each of the plan's models, with equal and empty ones sampled again. `None` for prompts that do not fit
/// the model's context.
async fn written(
    services: &Arc<Services>,
    plan: &DrawPlan,
    prompt: &Prompt,
    seed: u64,
    tally: &mut Tally,
) -> Result<Option<Answers>> {
    let mut answers = Answers::default();
    let per_version = plan.n / plan.models.len().max(1);
    for (i, model) in (0u64..).zip(&plan.models) {
        let mut missing = per_version;
        for attempt in 0..=REDRAWS {
            // Greedy decoding gives the same text every time.
            if missing == 0 || (attempt > 0 && plan.temperature == 0.0) {
                break;
            }
            let seed = seed.wrapping_add((i + 2 * attempt) << 40);
            let Some(mut running) = start_when_free(services, plan, model, prompt, missing, seed).await? else {
                return Ok(None);
            };
            while let Some(event) = running.next().await? {
                if matches!(event, GenEvent::Delta { .. }) {
                    plan.pieces.fetch_add(1, Ordering::Relaxed);
                }
            }
            tally.answers += running.samples.len() as i64;
            tally.redrawn += if attempt > 0 { running.samples.len() as i64 } else { 0 };
            let mut kept = Vec::new();
            for sample in &running.samples {
                tally.cut_off += i64::from(sample.finish == Some(FinishReason::Length));
                if answers.add(&sample.id, &sample.text) {
                    kept.push(sample.id.clone());
                }
            }
            running.store_always(|s| kept.contains(&s.id)).await?;
            missing -= kept.len();
        }
        if missing == per_version {
            // Both versions need an answer to be compared.
            answers.kept.clear();
            break;
        }
    }
    Ok(Some(answers))
}

async fn reward_uncertainty(
    services: &Services,
    prompt: &Prompt,
    written: &[(CompletionId, String)],
) -> Result<Option<f64>> {
    let answers = written.iter().map(|w| w.1.clone()).collect();
    let (_, scores) = publish::rewards(services, None, &prompt.messages.clone().into(), answers, true).await?;
    let guesses: Vec<Guess> = scores.into_iter().map(|s| Guess { mean: s.mean, std: s.std }).collect();
    for ((id, _), guess) in written.iter().zip(&guesses) {
        services.store.completions().set_reward(id, guess.mean).await?;
    }
    Ok(uncertainty(&guesses))
}

/// Starts samples, with retries while the engine is busy. `None` for prompts that do
/// not fit the model's context.
async fn start_when_free(
    services: &Arc<Services>,
    plan: &DrawPlan,
    model: &Arc<ServedModel>,
    prompt: &Prompt,
    n: usize,
    seed: u64,
) -> Result<Option<Running>> {
    let mut waited = 0;
    loop {
        let params = SamplingParams {
            max_tokens: plan.max_tokens,
            warpers: Warpers { temperature: plan.temperature, top_p: plan.top_p, ..Warpers::default() },
            seed: seed % (1 << 53),
            ..SamplingParams::default()
        };
        let id = format!("draw-{}", prompt.id);
        match sets::begin(services, model.clone(), prompt, n, params, id).await {
            Ok(running) => return Ok(Some(running)),
            Err(ServiceError::Engine(EngineError::BadRequest { .. } | EngineError::TooLong { .. })) => return Ok(None),
            Err(ServiceError::Engine(EngineError::Overloaded { retry_after_s })) if waited < MAX_BUSY_RETRIES => {
                waited += 1;
                tokio::time::sleep(std::time::Duration::from_secs(retry_after_s.clamp(1, 10))).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Stores the draw's progress; false once it was cancelled.
pub(super) async fn advance(services: &Services, draw: &mut SetDraw) -> Result<bool> {
    draw.updated = services.now();
    Ok(services.store.draws().advance(draw.clone()).await?)
}
