//! "Ask anything, rank the answers": answers are streamed to the person who asked, in the order in which they will be
//! ranked, and become a set that is leased to them.

use std::sync::Arc;

use super::complete::{self, Running};
use super::conversations::Continued;
use super::label::{self, ASKED, Next, Turn, VERSIONS, Wanted};
use super::random::shown_order;
use super::sets::{self, CompletionRef};
use super::{Result, ServiceError, Services, bad_input, uncancelled};
use crate::domain::Prompt;
use crate::engine::{GenEvent, SamplingParams};
use crate::service::people::Actor;
use crate::store::{NewTurn, NoLease};

/// Answers that are being generated. Dropping it stops them, and no set is made.
pub struct AnswerStream {
    prompt: Prompt,
    /// The set that this one continues, in a conversation.
    continued: Option<Continued>,
    runs: Vec<Running>,
    order_seed: u64,
    /// Position of each sample (of all runs, concatenated) on the page.
    place: Vec<usize>,
    /// Whether the person chose the versions.
    named: bool,
}

/// One event of one answer.
pub enum AnswerEvent {
    Text { place: usize, text: String },
    Done { place: usize, reason: &'static str },
}

/// The versions that answer, and how.
pub struct Answering {
    /// Names of versions that answer once each; empty = `n` answers of the active version.
    pub models: Vec<String>,
    pub n: usize,
    pub params: SamplingParams,
    pub may_load: bool,
}

/// Starts the answers: `n` of the active version, or one of each of `models`. The order on the page is random and does
/// not reveal the versions.
///
/// # Errors
/// `BadInput` for fewer than 2 or more than 9 answers; errors of the engine.
pub async fn begin(
    services: &Arc<Services>,
    prompt: Prompt,
    continued: Option<Continued>,
    answering: Answering,
    request_id: &str,
) -> Result<AnswerStream> {
    let Answering { models, n, params, may_load } = answering;
    let answers = if models.is_empty() { n } else { models.len() };
    if !(2..=9).contains(&answers) {
        return Err(bad_input(if models.is_empty() { "n" } else { "models" }, "must give 2 to 9 answers"));
    }
    let mut runs = Vec::new();
    if models.is_empty() {
        sets::check_varied(&params)?;
        let model = complete::resolve_model(services, None, false).await?;
        runs.push(sets::begin(services, model, &prompt, n, params, request_id.to_owned()).await?);
    } else {
        for (i, name) in models.iter().enumerate() {
            if models[..i].contains(name) && sets::check_varied(&params).is_err() {
                return Err(bad_input(
                    format!("models[{i}]"),
                    "is named twice and its temperature is 0: both answers would be the same; name it once or raise the temperature",
                ));
            }
            let model = complete::resolve_model_at(services, Some(name), may_load, &format!("models[{i}]")).await?;
            // Two samples of the same version need different seeds.
            let params = SamplingParams { seed: params.seed.wrapping_add(i as u64), ..params.clone() };
            runs.push(sets::begin(services, model, &prompt, 1, params, format!("{request_id}-{i}")).await?);
        }
    }
    let order_seed = services.random.seed();
    let mut place = vec![0; answers];
    for (at, sample) in shown_order(order_seed, answers).into_iter().enumerate() {
        place[sample] = at;
    }
    Ok(AnswerStream { prompt, continued, runs, order_seed, place, named: !models.is_empty() })
}

impl AnswerStream {
    pub fn answers(&self) -> usize {
        self.place.len()
    }

    /// The next event of any answer; `None` when all are complete.
    ///
    /// # Errors
    /// Errors of the engine.
    pub async fn next(&mut self) -> Result<Option<AnswerEvent>> {
        let place = &self.place;
        loop {
            let mut first = 0;
            let pending = self.runs.iter_mut().filter_map(|run| {
                let from = first;
                first += run.samples.len();
                (!run.finished()).then(|| Box::pin(async move { (from, run.next().await) }))
            });
            let pending: Vec<_> = pending.collect();
            if pending.is_empty() {
                return Ok(None);
            }
            // `Running::next` only waits on a channel and is cancel-safe.
            let ((from, event), _, _) = futures::future::select_all(pending).await;
            match event? {
                Some(GenEvent::Delta { index, text, .. }) if !text.is_empty() => {
                    return Ok(Some(AnswerEvent::Text { place: place[from + index], text }));
                }
                Some(GenEvent::Finish { index, reason }) => {
                    return Ok(Some(AnswerEvent::Done { place: place[from + index], reason: reason.as_str() }));
                }
                _ => {}
            }
        }
    }

    /// Stores the finished answers as a set and leases it to the person, in the order in which they were shown.
    ///
    /// # Errors
    /// `Conflict` when fewer than two answers with text differ.
    pub async fn store(mut self, services: &Arc<Services>, actor: &Actor) -> Result<Turn> {
        for run in &mut self.runs {
            run.store_always(|_| true).await?;
        }
        let texts = sets::comparable(self.runs.iter().flat_map(|run| &run.samples));
        if texts.len() < 2 {
            return Err(sets::too_few_answers());
        }
        let policy = if self.named { VERSIONS } else { ASKED };
        let completions = texts.into_iter().map(CompletionRef::Known).collect();
        let set = sets::create(services, &self.prompt, completions, Some(1), policy).await?;
        services.store.sets().note_maker(&set.id, &actor.labeler_id).await?;
        if let Some(Continued { set_id, completion_id }) = self.continued {
            let labeler_id = actor.labeler_id.clone();
            let (now, new) = (services.now(), set.id.clone());
            let turn = NewTurn { labeler_id, before: set_id, continued: completion_id, set_id: new, now };
            let all = services.clone();
            uncancelled(async move { Ok(all.store.conversations().put_turn(turn).await?) }).await?;
        }
        let wanted = Wanted { set_id: Some(set.id), ..Wanted::default() };
        match label::next_in_order(services, actor, wanted, self.order_seed).await? {
            Next::Turn(turn) => Ok(*turn),
            Next::Nothing(NoLease::Quota) => {
                Err(ServiceError::Conflict("today's quota of judgments is used up; continue tomorrow".into()))
            }
            Next::Nothing(_) => Err(ServiceError::Conflict("another labeler has taken the new set; ask again".into())),
        }
    }
}
