//! Sets in bulk: from stored prompts by a policy, in the background, with progress and cancel.

use std::sync::Arc;

use futures::StreamExt;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::complete::{self, Running};
use super::sets::{self, CompletionRef};
use super::{Result, ServiceError, Services, bad_input, publish, quality};
use crate::domain::*;
use crate::engine::{EngineError, SamplingParams, ServedModel};
use crate::eval::quality::selection::{Guess, uncertainty};
use crate::service::people::Actor;
use crate::store::{Page, PromptFilter};

/// Prompts answered at the same time; the engine batches them.
const AT_ONCE: usize = 4;
/// Prompts that are chosen from.
const POOL: usize = 20_000;
/// A running draw says at least this often that it lives …
const SIGN_OF_LIFE: std::time::Duration = std::time::Duration::from_secs(15);
/// … and one silent for longer died with its server.
const SILENCE: Micros = 120_000_000;
/// A full engine is asked again this often before the draw fails.
const PATIENCE: u32 = 600;

/// What to draw.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrawRequest {
    pub policy: SelectionPolicy,
    /// Sets to make, 1 to 10000.
    pub count: usize,
    /// Completions a set, 2 to 9; as configured when absent. Even for `versus`.
    pub n: Option<usize>,
    /// How many people should rank each set.
    pub overlap: Option<i64>,
    /// Which stored prompts to draw for.
    #[serde(default)]
    pub prompts: PromptFilter,
    /// The two policies (names or ids) of `versus`.
    pub versions: Option<[String; 2]>,
    /// For `uncertainty`: prompts answered and scored for each set made, 1 to 64; 4 when absent.
    pub candidates: Option<usize>,
    pub max_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    /// Which prompts, and the samples' seeds; drawn when absent.
    pub seed: Option<u64>,
}

/// How a set's prompt and completions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SelectionPolicy {
    /// Any prompt, samples of the active policy.
    Random,
    /// Of several prompts, those whose samples the active reward model is least sure about.
    Uncertainty,
    /// Two versions answer the same prompt.
    Versus,
    /// Completions that are stored already: imported, or given to users.
    Stored,
    /// Sets that labelers disagreed about get one more judgment.
    Disagreement,
}

impl SelectionPolicy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Uncertainty => "uncertainty",
            Self::Versus => "versus",
            Self::Stored => "stored",
            Self::Disagreement => "disagreement",
        }
    }
}

/// A checked request.
struct Plan {
    request: DrawRequest,
    n: usize,
    seed: u64,
    /// One entry for one version, two for `versus`; none where nothing is generated.
    models: Vec<Arc<ServedModel>>,
}

/// Starts a draw; it goes on in the background.
///
/// # Errors
/// `BadInput` naming the field; `Conflict` while another draw runs, or without a reward model for
/// `uncertainty`.
pub async fn start(services: &Arc<Services>, by: &Actor, request: DrawRequest) -> Result<SetDraw> {
    let plan = plan(services, request).await?;
    if list(services, Page { after: None, limit: 20 }).await?.iter().any(|d| d.state == DrawState::Running) {
        return Err(ServiceError::Conflict("another draw is running; wait for it or cancel it".into()));
    }
    let now = services.now();
    let draw = SetDraw {
        id: DrawId::new(),
        request: serde_json::to_value(&plan.request).unwrap_or_default(),
        state: DrawState::Running,
        wanted: plan.request.count as i64,
        looked_at: 0,
        made: 0,
        error: None,
        created: now,
        updated: now,
    };
    services.store.put_draw(draw.clone()).await?;
    let detail = json!({"policy": plan.request.policy, "count": plan.request.count});
    services.store.audit(by.labeler_id.as_str(), "draw_sets", draw.id.as_str(), detail, now).await?;
    let (services, running) = (services.clone(), draw.clone());
    tokio::spawn(async move { run(services, plan, running).await });
    Ok(draw)
}

/// Draws, newest first.
pub async fn list(services: &Services, page: Page) -> Result<Vec<SetDraw>> {
    let now = services.now();
    Ok(services.store.list_draws(page).await?.into_iter().map(|d| buried(d, now)).collect())
}

pub async fn get(services: &Services, id: &DrawId) -> Result<SetDraw> {
    Ok(buried(services.store.get_draw(id).await?, services.now()))
}

pub async fn cancel(services: &Services, by: &Actor, id: &DrawId) -> Result<SetDraw> {
    let now = services.now();
    let draw = services.store.cancel_draw(id, now).await?;
    services.store.audit(by.labeler_id.as_str(), "cancel_draw", id.as_str(), json!({}), now).await?;
    Ok(draw)
}

/// A draw that has long been silent is told as what it is.
fn buried(mut draw: SetDraw, now: Micros) -> SetDraw {
    if draw.state == DrawState::Running && draw.updated + SILENCE < now {
        draw.state = DrawState::Failed;
        draw.error = Some("its server stopped".to_owned());
    }
    draw
}

async fn plan(services: &Arc<Services>, request: DrawRequest) -> Result<Plan> {
    if !(1..=10_000).contains(&request.count) {
        return Err(bad_input("count", "must be 1 to 10000"));
    }
    let n = request.n.unwrap_or(services.live().config.labeling.completions_per_set);
    if !(2..=9).contains(&n) {
        return Err(bad_input("n", "must be 2 to 9"));
    }
    if request.overlap.is_some_and(|o| !(1..=100).contains(&o)) {
        return Err(bad_input("overlap", "must be 1 to 100"));
    }
    if request.candidates.is_some_and(|c| !(1..=64).contains(&c)) {
        return Err(bad_input("candidates", "must be 1 to 64"));
    }
    if request.max_tokens == Some(0) {
        return Err(bad_input("max_tokens", "must be at least 1"));
    }
    if request.temperature == Some(0.0)
        && matches!(request.policy, SelectionPolicy::Random | SelectionPolicy::Uncertainty)
    {
        return Err(bad_input("temperature", sets::SAME_AT_ZERO));
    }
    if request.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(bad_input("temperature", "must be 0 to 2"));
    }
    if request.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(bad_input("top_p", "must be above 0 and at most 1"));
    }
    if request.versions.is_some() != (request.policy == SelectionPolicy::Versus) {
        return Err(bad_input("versions", "two versions are named for `versus`, and only for it"));
    }
    let mut models = Vec::new();
    match request.policy {
        SelectionPolicy::Random | SelectionPolicy::Uncertainty => {
            models.push(complete::resolve_model(services, None, false).await?);
        }
        SelectionPolicy::Versus => {
            if !n.is_multiple_of(2) {
                return Err(bad_input("n", "must be even: each version writes half"));
            }
            for (i, name) in request.versions.iter().flatten().enumerate() {
                let found = complete::resolve_model(services, Some(name), true).await;
                models.push(found.map_err(|e| match e {
                    ServiceError::Engine(EngineError::UnknownModel(id)) => {
                        ServiceError::NotFound { what: "policy", id, param: Some(format!("versions[{i}]")) }
                    }
                    other => other,
                })?);
            }
            if models[0].version.id == models[1].version.id {
                return Err(bad_input("versions[1]", "must be another version than the first"));
            }
        }
        SelectionPolicy::Stored | SelectionPolicy::Disagreement => {}
    }
    if request.policy == SelectionPolicy::Uncertainty && services.store.active_model(ModelKind::Reward).await?.is_none()
    {
        return Err(ServiceError::Conflict("uncertainty needs an active reward model".into()));
    }
    let seed = request.seed.unwrap_or_else(|| services.random.seed());
    Ok(Plan { request, n, seed, models })
}

async fn run(services: Arc<Services>, plan: Plan, mut draw: SetDraw) {
    let outcome = match plan.request.policy {
        SelectionPolicy::Disagreement => disputed(&services, &plan, &mut draw).await,
        _ => drawn(&services, &plan, &mut draw).await,
    };
    match outcome {
        Ok(()) => draw.state = DrawState::Done,
        Err(error) => {
            tracing::warn!(draw.id = %draw.id, %error, "a draw of sets failed");
            (draw.state, draw.error) = (DrawState::Failed, Some(error.to_string()));
        }
    }
    if let Err(error) = advance(&services, &mut draw).await {
        tracing::warn!(draw.id = %draw.id, %error, "the end of a draw was not stored");
    }
}

/// Stores where the draw stands; false once it was cancelled.
async fn advance(services: &Services, draw: &mut SetDraw) -> Result<bool> {
    draw.updated = services.now();
    Ok(services.store.advance_draw(draw.clone()).await?)
}

/// Prompts in an order that the seed decides.
async fn prompts(services: &Services, plan: &Plan) -> Result<Vec<Prompt>> {
    let mut filter = plan.request.prompts.clone();
    if plan.request.policy == SelectionPolicy::Stored {
        filter.min_completions = filter.min_completions.max(2);
    }
    let mut found = services.store.select_prompts(&filter, None, POOL as i64).await?;
    // Raw texts given to /v1/completions are no questions to people, unless asked for by source.
    if filter.source.is_none() {
        found.retain(|p| p.source != "completions");
    }
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    for i in (1..found.len()).rev() {
        found.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    Ok(found)
}

/// A prompt with what may become its set.
struct Candidate {
    prompt: Prompt,
    completions: Vec<CompletionId>,
    score: Option<f64>,
}

async fn drawn(services: &Arc<Services>, plan: &Plan, draw: &mut SetDraw) -> Result<()> {
    let policy = plan.request.policy;
    let choosing = policy == SelectionPolicy::Uncertainty;
    let per_set = if choosing { plan.request.candidates.unwrap_or(4) } else { 1 };
    let look_at = plan.request.count * per_set;
    let mut found = prompts(services, plan).await?;
    found.truncate(if choosing { look_at } else { found.len() });
    let one = |(i, prompt): (usize, Prompt)| candidate(services, plan, prompt, plan.seed.wrapping_add(i as u64));
    let mut candidates =
        std::pin::pin!(futures::stream::iter(found.into_iter().enumerate()).map(one).buffered(AT_ONCE));
    let mut kept: Vec<Candidate> = Vec::new();
    let mut alive = tokio::time::interval(SIGN_OF_LIFE);
    alive.tick().await;
    while draw.made < draw.wanted {
        let next = tokio::select! {
            () = services.shutdown.cancelled() => return Err(ServiceError::Conflict("the server stopped".into())),
            _ = alive.tick() => {
                if !advance(services, draw).await? {
                    return Ok(());
                }
                continue;
            }
            next = candidates.next() => next,
        };
        let Some(candidate) = next else { break };
        draw.looked_at += 1;
        let Some(candidate) = candidate? else { continue };
        if choosing {
            kept.push(candidate);
        } else {
            make(services, plan, candidate).await?;
            draw.made += 1;
        }
        if !advance(services, draw).await? {
            return Ok(());
        }
    }
    kept.sort_by(|a, b| b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0)));
    for candidate in kept.into_iter().take(plan.request.count) {
        make(services, plan, candidate).await?;
        draw.made += 1;
    }
    Ok(())
}

async fn make(services: &Arc<Services>, plan: &Plan, candidate: Candidate) -> Result<()> {
    let completions = candidate.completions.into_iter().map(CompletionRef::Known).collect();
    let selection = sets::Selection { policy: plan.request.policy.as_str(), score: candidate.score };
    sets::create_selected(services, &candidate.prompt, completions, plan.request.overlap, selection).await?;
    Ok(())
}

/// Completions of one prompt; `None` when there are not two different ones to compare.
async fn candidate(services: &Arc<Services>, plan: &Plan, prompt: Prompt, seed: u64) -> Result<Option<Candidate>> {
    let mut written: Vec<(CompletionId, String)> = Vec::new();
    if plan.request.policy == SelectionPolicy::Stored {
        let mut stored = services.store.list_completions(&prompt.id).await?;
        // The newest say most about the policy of today.
        stored.reverse();
        for completion in stored {
            if !completion.text.trim().is_empty() {
                written.push((completion.id, completion.text));
            }
        }
        keep_different(&mut written);
        written.truncate(plan.n);
    } else {
        let per_version = plan.n / plan.models.len().max(1);
        for (i, model) in plan.models.iter().enumerate() {
            let Some(mut running) =
                patient(services, plan, model, &prompt, per_version, seed.wrapping_add((i as u64) << 40)).await?
            else {
                return Ok(None);
            };
            running.finish().await?;
            running.store_always(|_| true).await?;
            let texts = running.samples.iter().filter(|s| !s.text.trim().is_empty());
            written.extend(texts.map(|s| (s.id.clone(), s.text.clone())));
        }
    }
    keep_different(&mut written);
    if written.len() < 2 {
        return Ok(None);
    }
    let score = match plan.request.policy {
        SelectionPolicy::Uncertainty => doubt(services, &prompt, &written).await?,
        _ => None,
    };
    let completions = written.into_iter().map(|w| w.0).collect();
    Ok(Some(Candidate { prompt, completions, score }))
}

/// Of equal texts the first stays: comparing them teaches nothing, and nobody could tell them apart.
fn keep_different(written: &mut Vec<(CompletionId, String)>) {
    let mut seen = std::collections::HashSet::new();
    written.retain(|w| seen.insert(sets::compared(&w.1).to_owned()));
}

async fn doubt(services: &Services, prompt: &Prompt, written: &[(CompletionId, String)]) -> Result<Option<f64>> {
    let answers = written.iter().map(|w| w.1.clone()).collect();
    let (_, scores) = publish::rewards(services, None, &prompt.messages.clone().into(), answers, true).await?;
    let guesses: Vec<Guess> = scores.into_iter().map(|s| Guess { mean: s.mean, std: s.std }).collect();
    for ((id, _), guess) in written.iter().zip(&guesses) {
        services.store.set_completion_reward(id, guess.mean).await?;
    }
    Ok(uncertainty(&guesses))
}

/// Starts samples, waiting while the engine is full of other people's requests. `None` for prompts that do
/// not fit the model's context.
async fn patient(
    services: &Arc<Services>,
    plan: &Plan,
    model: &Arc<ServedModel>,
    prompt: &Prompt,
    n: usize,
    seed: u64,
) -> Result<Option<Running>> {
    let request = &plan.request;
    let mut waited = 0;
    loop {
        let params = SamplingParams {
            max_tokens: request.max_tokens.unwrap_or(services.live().config.labeling.max_tokens),
            temperature: request.temperature.unwrap_or(1.0),
            top_p: request.top_p.unwrap_or(1.0),
            seed: seed % (1 << 53),
            ..SamplingParams::default()
        };
        let id = format!("draw-{}", prompt.id);
        match sets::begin(services, model.clone(), prompt, n, params, id).await {
            Ok(running) => return Ok(Some(running)),
            Err(ServiceError::Engine(EngineError::BadRequest { .. })) => return Ok(None),
            Err(ServiceError::Engine(EngineError::Overloaded { retry_after_s })) if waited < PATIENCE => {
                waited += 1;
                tokio::time::sleep(std::time::Duration::from_secs(retry_after_s.clamp(1, 10))).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// One more judgment for the sets that people are most split on.
async fn disputed(services: &Arc<Services>, plan: &Plan, draw: &mut SetDraw) -> Result<()> {
    let scope = quality::Scope { kind: Some(SetKind::Normal), ..quality::Scope::default() };
    for found in quality::consensus(services, scope).await? {
        let Some(score) = found.disagreement.filter(|d| *d > 0.0) else { break };
        if draw.made == draw.wanted {
            break;
        }
        draw.looked_at += 1;
        // A set that waits for a judgment anyway, or that a reviewer has settled, needs no more.
        let set = services.store.get_set(&found.set_id).await?;
        if set.status != SetStatus::Done || services.store.settled_by(&set.id).await?.is_some() {
            continue;
        }
        services.store.extend_set(&set.id, plan.request.policy.as_str(), Some(score)).await?;
        draw.made += 1;
        if !advance(services, draw).await? {
            break;
        }
    }
    Ok(())
}
