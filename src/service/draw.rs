//! Sets in bulk: from stored prompts by a policy, in the background, with progress and cancel.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::StreamExt;
use serde_json::json;

use super::draw_request::DrawPlan;
pub use super::draw_request::{DrawRequest, SelectionPolicy};
use super::draw_steps::{advance, count, make, prompts, while_alive};
use super::drawn::{self, Candidate, Outcome};
use super::{Result, ServiceError, Services, bad_input, complete, doubted, meter, quality, sets, tournament};
use crate::domain::*;
use crate::service::people::Actor;
use crate::store::Page;

/// Prompts that are sampled at the same time; the engine batches them.
const AT_ONCE: usize = 4;
/// A draw that has stored no progress for this long (µs) has ended with its server.
const SILENCE: Micros = 120_000_000;

/// Starts a draw, which runs in the background.
///
/// # Errors
/// `BadInput` naming the field; `Conflict` while another draw runs, or without a reward model for
/// `uncertainty`.
pub async fn start(services: &Arc<Services>, by: &Actor, request: DrawRequest) -> Result<SetDraw> {
    let plan = plan(services, request).await?;
    // A tournament waits for people, so that other draws may run beside it.
    let is_tournament = plan.request.policy == SelectionPolicy::Tournament;
    let hinders =
        |draw: &SetDraw| draw.state == DrawState::Running && (draw.request["policy"] == "tournament") == is_tournament;
    if list(services, Page { after: None, limit: 20 }).await?.iter().any(hinders) {
        let what = if is_tournament { "another tournament" } else { "another draw" };
        return Err(ServiceError::Conflict(format!("{what} is running; wait for it or cancel it")));
    }
    let now = services.now();
    let draw = SetDraw {
        id: DrawId::new(),
        request: serde_json::to_value(&plan.request).unwrap_or_default(),
        state: DrawState::Running,
        wanted: plan.request.count as i64,
        looked_at: 0,
        made: 0,
        report: report(&plan),
        error: None,
        created: now,
        updated: now,
    };
    services.store.draws().put(draw.clone()).await?;
    let detail = json!({"policy": plan.request.policy, "count": plan.request.count});
    services.store.audit_log().append(&by.signature(), "draw_sets", draw.id.as_str(), detail, now).await?;
    let (services, running) = (services.clone(), draw.clone());
    let payer = meter::payer();
    tokio::spawn(meter::paid_by(payer, async move { run(services, plan, running).await }));
    Ok(draw)
}

/// Draws, newest first.
pub async fn list(services: &Services, page: Page) -> Result<Vec<SetDraw>> {
    let now = services.now();
    Ok(services.store.draws().list(page).await?.into_iter().map(|d| with_lost_server(d, now)).collect())
}

pub async fn get(services: &Services, id: &DrawId) -> Result<SetDraw> {
    Ok(with_lost_server(services.store.draws().get(id).await?, services.now()))
}

pub async fn cancel(services: &Services, by: &Actor, id: &DrawId) -> Result<SetDraw> {
    let now = services.now();
    let draw = services.store.draws().cancel(id, now).await?;
    services.store.audit_log().append(&by.signature(), "cancel_draw", id.as_str(), json!({}), now).await?;
    Ok(draw)
}

/// The draw, marked as failed if its server has stopped.
fn with_lost_server(mut draw: SetDraw, now: Micros) -> SetDraw {
    if draw.state == DrawState::Running && draw.updated + SILENCE < now {
        draw.state = DrawState::Failed;
        draw.error = Some("the server that ran the draw has stopped".to_owned());
    }
    draw
}

async fn plan(services: &Arc<Services>, mut request: DrawRequest) -> Result<DrawPlan> {
    if !matches!(request.policy, SelectionPolicy::Disagreement | SelectionPolicy::Judge) {
        request.prompts.project.get_or_insert_with(ProjectId::first);
    }
    if let Some(source) = request.prompts.source.as_deref().filter(|s| matches!(*s, "chat" | "completions"))
        && !services.learns_from_requests()
    {
        let message = format!(
            "prompts of the source {source} came in as requests; sets may be made of them only with \
             the setting privacy.learn_from_requests"
        );
        return Err(bad_input("prompts.source", message));
    }
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
    let named = request.versions.as_ref().map_or(0, Vec::len);
    let (allowed, message) = match request.policy {
        SelectionPolicy::Versus => (2..=2, "must name two versions for `versus`"),
        SelectionPolicy::Tournament => (2..=8, "must name 2 to 8 versions for `tournament`"),
        _ => (0..=0, "is for `versus` and `tournament` only"),
    };
    if !allowed.contains(&named) {
        return Err(bad_input("versions", message));
    }
    match request.certainty {
        Some(_) if request.policy != SelectionPolicy::Tournament => {
            return Err(bad_input("certainty", "is for `tournament` only"));
        }
        Some(level) if !(0.5..=0.999).contains(&level) => {
            return Err(bad_input("certainty", "must be 0.5 to 0.999"));
        }
        _ => {}
    }
    super::filters::check_prompts(services, &request.prompts, "prompts").await?;
    let mut models = Vec::new();
    match request.policy {
        SelectionPolicy::Random | SelectionPolicy::Uncertainty => {
            models.push(complete::resolve_model(services, None, false).await?);
        }
        SelectionPolicy::Versus | SelectionPolicy::Tournament => {
            if !n.is_multiple_of(2) {
                return Err(bad_input("n", "must be even: each version writes half"));
            }
            for (i, name) in request.versions.iter().flatten().enumerate() {
                let field = format!("versions[{i}]");
                models.push(complete::resolve_model_at(services, Some(name), true, &field).await?);
            }
            for (i, model) in models.iter().enumerate() {
                if models[..i].iter().any(|other| other.version.id == model.version.id) {
                    return Err(bad_input(format!("versions[{i}]"), "must be another version than those before it"));
                }
            }
        }
        SelectionPolicy::Stored | SelectionPolicy::Disagreement | SelectionPolicy::Judge => {}
    }
    if request.policy == SelectionPolicy::Uncertainty
        && services.store.models().active(ModelKind::Reward).await?.is_none()
    {
        return Err(ServiceError::Conflict(
            "uncertainty needs an active reward model; train and promote one first".into(),
        ));
    }
    let seed = request.seed.unwrap_or_else(|| services.random.seed());
    let labeling = &services.live().config.labeling;
    let max_tokens = request.max_tokens.unwrap_or(labeling.max_tokens);
    let temperature = request.temperature.unwrap_or(labeling.temperature as f32);
    let top_p = request.top_p.unwrap_or(labeling.top_p as f32);
    Ok(DrawPlan { request, n, seed, max_tokens, temperature, top_p, models, pieces: AtomicI64::new(0) })
}

async fn run(services: Arc<Services>, plan: DrawPlan, mut draw: SetDraw) {
    let outcome = match plan.request.policy {
        SelectionPolicy::Disagreement => disputed(&services, &plan, &mut draw).await,
        SelectionPolicy::Tournament => tournament::run(&services, &plan, &mut draw).await,
        SelectionPolicy::Judge => doubted::run(&services, &plan, &mut draw).await,
        _ => from_prompts(&services, &plan, &mut draw).await,
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

/// An empty report with the sampling parameters.
fn report(plan: &DrawPlan) -> DrawReport {
    if plan.models.is_empty() {
        return DrawReport::default();
    }
    // Rounded to two digits: 0.7 as f32 is 0.699999988.
    let digits = |x: f32| (f64::from(x) * 1e4).round() / 1e4;
    DrawReport {
        max_tokens: Some(plan.max_tokens as i64),
        temperature: Some(digits(plan.temperature)),
        top_p: Some(digits(plan.top_p)),
        ..DrawReport::default()
    }
}

async fn from_prompts(services: &Arc<Services>, plan: &DrawPlan, draw: &mut SetDraw) -> Result<()> {
    let policy = plan.request.policy;
    let choosing = policy == SelectionPolicy::Uncertainty;
    let per_set = if choosing { plan.request.candidates.unwrap_or(4) } else { 1 };
    let look_at = plan.request.count * per_set;
    let mut found = prompts(services, plan, &mut draw.report).await?;
    if !advance(services, draw).await? {
        return Ok(());
    }
    found.truncate(if choosing { look_at } else { found.len() });
    let one = |(i, prompt): (usize, Prompt)| drawn::candidate(services, plan, prompt, plan.seed.wrapping_add(i as u64));
    let mut candidates =
        std::pin::pin!(futures::stream::iter(found.into_iter().enumerate()).map(one).buffered(AT_ONCE));
    let mut kept: Vec<Candidate> = Vec::new();
    let pieces = || plan.pieces.load(Ordering::Relaxed);
    while draw.made < draw.wanted {
        let Some(next) = while_alive(services, draw, pieces, candidates.next()).await? else { return Ok(()) };
        let Some(candidate) = next else { break };
        draw.looked_at += 1;
        let (outcome, tally) = candidate?;
        count(&mut draw.report, &outcome, tally);
        draw.report.pieces = pieces();
        match outcome {
            Outcome::Found(candidate) if choosing => kept.push(candidate),
            Outcome::Found(candidate) => drop(make(services, plan, candidate, draw).await?),
            _ => {}
        }
        if !advance(services, draw).await? {
            return Ok(());
        }
    }
    kept.sort_by(|a, b| b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0)));
    for candidate in kept.into_iter().take(plan.request.count) {
        make(services, plan, candidate, draw).await?;
    }
    Ok(())
}

/// Requests one more judgment for the sets with the most disagreement.
async fn disputed(services: &Arc<Services>, plan: &DrawPlan, draw: &mut SetDraw) -> Result<()> {
    let project = plan.request.prompts.project.clone();
    let scope = quality::Scope { kind: Some(SetKind::Normal), project, ..quality::Scope::default() };
    let ranked = quality::consensus(services, scope).await?;
    draw.report.found = ranked.len() as i64;
    for found in ranked {
        if draw.made == draw.wanted {
            break;
        }
        let score = match found.disagreement {
            Some(score) if score > 0.0 => score,
            // Sorted: only sets without disagreement follow.
            Some(_) => {
                draw.report.agreed += 1;
                continue;
            }
            None => {
                draw.report.single += 1;
                continue;
            }
        };
        draw.looked_at += 1;
        // Sets that still wait for a judgment, or that a reviewer has settled, are skipped.
        if services.store.sets().settled_by(&found.set_id).await?.is_some() {
            draw.report.settled += 1;
            continue;
        }
        if services.store.sets().get(&found.set_id).await?.status != SetStatus::Done {
            draw.report.waiting += 1;
            continue;
        }
        services.store.sets().extend(&found.set_id, plan.request.policy.as_str(), Some(score)).await?;
        draw.made += 1;
        if !advance(services, draw).await? {
            break;
        }
    }
    Ok(())
}
