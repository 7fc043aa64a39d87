//! Tournaments: versions meet in pairs, and people rank their answers, until the order is certain. A tournament learns
//! from every stored judgment between its versions, so one that was interrupted goes on when it is started again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::draw_request::DrawPlan;
use super::draw_steps::{advance, count, make, prompts, while_alive};
use super::drawn::{Outcome, candidate};
use super::{Result, Services, quality};
use crate::domain::*;
use crate::eval::quality::bradley_terry::Match;
use crate::eval::quality::facts::Author;
use crate::eval::quality::order::Order;

/// Sets that wait for people at a time. More would be drawn before their result is known.
const WAITING: usize = 8;
/// Interval at which sets are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The probability of the whole order at which a tournament ends.
const CERTAINTY: f64 = 0.95;

/// Runs a tournament until its order is certain, the requested number of sets is ranked, or no prompt is left.
pub(super) async fn run(services: &Arc<Services>, plan: &DrawPlan, draw: &mut SetDraw) -> Result<()> {
    let level = plan.request.certainty.unwrap_or(CERTAINTY);
    let mut left = prompts(services, plan, &mut draw.report).await?.into_iter().enumerate();
    let mut waiting: Vec<SetId> = Vec::new();
    let mut order = order(services, plan, draw).await?;
    loop {
        if order.is_certain(level) {
            draw.report.certain = true;
            return Ok(());
        }
        let mut ran_out = false;
        for pair in order.pairs().into_iter().cycle() {
            if waiting.len() >= WAITING || draw.made >= draw.wanted {
                break;
            }
            let Some((i, prompt)) = left.next() else {
                ran_out = true;
                break;
            };
            let Some(set) = meet(services, &plan.of_pair(pair), prompt, i, draw).await? else { return Ok(()) };
            waiting.extend(set);
            if !advance(services, draw).await? {
                return Ok(());
            }
        }
        if waiting.is_empty() && (ran_out || draw.made >= draw.wanted) {
            return Ok(());
        }
        let pieces = draw.report.pieces;
        let looked = while_alive(services, draw, || pieces, tokio::time::sleep(LOOK)).await?;
        if looked.is_none() || !advance(services, draw).await? {
            return Ok(());
        }
        let before = waiting.len();
        waiting = still_open(services, waiting).await?;
        if waiting.len() < before {
            order = self::order(services, plan, draw).await?;
        }
    }
}

/// Draws a set in which two versions answer the prompt; `Some(None)` if it cannot become one, `None` once the tournament
/// was cancelled.
async fn meet(
    services: &Arc<Services>,
    plan: &DrawPlan,
    prompt: Prompt,
    number: usize,
    draw: &mut SetDraw,
) -> Result<Option<Option<SetId>>> {
    draw.looked_at += 1;
    let before = draw.report.pieces;
    let pieces = || before + plan.pieces.load(Ordering::Relaxed);
    let answers = candidate(services, plan, prompt, plan.seed.wrapping_add(number as u64));
    let Some(found) = while_alive(services, draw, pieces, answers).await? else { return Ok(None) };
    let (outcome, tally) = found?;
    count(&mut draw.report, &outcome, tally);
    draw.report.pieces = pieces();
    match outcome {
        Outcome::Found(candidate) => Ok(Some(Some(make(services, plan, candidate, draw).await?))),
        _ => Ok(Some(None)),
    }
}

/// The sets that people have not ranked yet.
async fn still_open(services: &Services, sets: Vec<SetId>) -> Result<Vec<SetId>> {
    let mut open = Vec::new();
    for id in sets {
        if services.store.sets().get(&id).await?.status == SetStatus::Open {
            open.push(id);
        }
    }
    Ok(open)
}

/// The order of the plan's versions by all judgments of sets in which they meet, which is also written to the report.
async fn order(services: &Services, plan: &DrawPlan, draw: &mut SetDraw) -> Result<Order> {
    let facts = quality::facts(services, &quality::Scope::default()).await?;
    let versions: Vec<ModelVersionId> = plan.models.iter().map(|m| m.version.id.clone()).collect();
    let (order, met) = quality::blocking(move || {
        let place = |author: usize| match &facts.authors[author] {
            Author::Version(id) => versions.iter().position(|version| version == id),
            Author::Human => None,
        };
        let between = |m: Match| Some(Match { a: place(m.a)?, b: place(m.b)?, ..m });
        let matches: Vec<Match> = facts.matches().into_iter().filter_map(between).collect();
        let met = |i: usize| matches.iter().filter(|m| m.a == i || m.b == i).count() as i64;
        (Order::new(&matches, versions.len()), (0..versions.len()).map(met).collect::<Vec<_>>())
    })
    .await?;
    draw.report.order = order
        .places
        .iter()
        .enumerate()
        .map(|(k, &i)| TournamentPlace {
            name: plan.models[i].version.name.clone(),
            elo: order.strengths[i] * 400.0 / std::f64::consts::LN_10,
            comparisons: met[i],
            better_than_next: order.certainty.get(k).copied(),
        })
        .collect();
    Ok(order)
}
