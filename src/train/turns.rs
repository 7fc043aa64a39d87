//! Conversations that a policy has sampled: their ids, of which its own are learned, and their texts.

use std::ops::Range;

use anyhow::Result;

use super::step::TurnSequence;
use crate::domain::PromptInput;
use crate::generation::Sample;
use crate::prompt::{NextTurn, Reasoning, Texts};

/// A sampled conversation.
pub struct SampledTurns {
    pub sequence: TurnSequence,
    /// The texts of the policy's answers.
    pub answers: Vec<String>,
    /// For every answer after the first, the conversation that it answers, with the policy's earlier answers.
    pub conversations: Vec<PromptInput>,
}

/// The ids between the last of these answers and the next one, if `next`, the turns after the first answer, has another.
pub fn ids_after<'n>(next: &'n [NextTurn], answers: &[Sample]) -> Option<&'n [u32]> {
    let (next, last) = (next.get(answers.len().checked_sub(1)?)?, answers.last()?);
    Some(next.ids_after(last.ids.last().copied().filter(|_| last.finished)))
}

/// The ids before the answer with this number, of which the last ones open it. `ids` are those before the first.
pub fn ids_before<'n>(ids: &'n [u32], next: &'n [NextTurn], answer: usize) -> &'n [u32] {
    answer.checked_sub(1).map_or(ids, |i| next[i].ids())
}

impl SampledTurns {
    /// The conversation of these answers to `prompt`, whose ids are `ids`, and to the turns of `next`. `reasoning`: whether
    /// the conversations have the reasoning of earlier answers; the ids always do.
    ///
    /// # Errors
    /// If an answer cannot be decoded.
    pub fn new(
        texts: &Texts,
        (prompt, ids): (&PromptInput, &[u32]),
        next: &[NextTurn],
        samples: &[Sample],
        reasoning: Reasoning,
    ) -> Result<Self> {
        let (mut all, mut predicted) = (ids.to_vec(), Vec::<Range<usize>>::with_capacity(samples.len()));
        let (mut answers, mut conversations) = (Vec::<String>::new(), Vec::<PromptInput>::new());
        for (i, sample) in samples.iter().enumerate() {
            if let (Some(before), Some(written)) = (i.checked_sub(1), answers.last()) {
                all.extend(ids_after(next, &samples[..i]).unwrap_or_default());
                let judged = texts.answer_in(ids_before(ids, next, before), written, reasoning);
                conversations.push(next[before].after(conversations.last().unwrap_or(prompt), judged));
            }
            answers.push(texts.text(&all, &sample.ids)?);
            predicted.push(all.len()..all.len() + sample.ids.len());
            all.extend(&sample.ids);
        }
        Ok(Self { sequence: TurnSequence { ids: all.into(), predicted }, answers, conversations })
    }
}
