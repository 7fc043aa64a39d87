//! A sampled response: the answer of the policy to a prompt, or its answers to all user turns of a conversation.

use std::sync::Arc;

use anyhow::Result;

use crate::data::PromptInput;
use crate::generation::Sample;
use crate::prompt::{Reasoning, Texts};
use crate::train::args::MissingEos;
use crate::train::step::TurnSequence;
use crate::train::turns::{PromptIds, PromptTexts, SampledTurns};

/// The texts of a response.
#[derive(Clone)]
pub struct ResponseTexts {
    /// Index of the prompt.
    pub prompt: usize,
    pub source: Arc<PromptTexts>,
    /// At least one.
    pub answers: Vec<String>,
    /// For every answer after the first, the conversation that it answers, with the policy's earlier answers.
    pub conversations: Vec<PromptInput>,
}

/// One answer of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Number of tokens, including the end token.
    pub length: usize,
    /// Whether it ended with an end token.
    pub finished: bool,
    /// Score of the reward after the penalty for a missing end token; without the reward for an answer that is not
    /// scored.
    pub score: f64,
}

/// A sampled response.
pub struct SampledResponse {
    pub texts: ResponseTexts,
    pub sequence: TurnSequence,
    /// One for each answer.
    pub samples: Vec<Sample>,
    pub answers: Vec<Answer>,
    /// Sum of the reward's scores.
    pub raw_score: f64,
    /// Sum of the scores after the penalty for missing end tokens.
    pub score: f64,
    /// Number of updates of the weights that wrote it.
    pub version: u64,
}

impl SampledResponse {
    /// A response of these samples to the prompt with index `number`, without scores. `reasoning`: whether later turns of
    /// the conversation, as rewards read it, have the reasoning of earlier answers.
    ///
    /// # Errors
    /// If an answer cannot be decoded.
    pub fn new(
        texts: &Texts,
        (number, source, ids): (usize, Arc<PromptTexts>, &PromptIds),
        samples: Vec<Sample>,
        reasoning: Reasoning,
        version: u64,
    ) -> Result<Self> {
        let SampledTurns { sequence, answers, conversations } =
            SampledTurns::new(texts, (&source.prompt, &source.next), ids, &samples, reasoning)?;
        let answer = |sample: &Sample| Answer { length: sample.ids.len(), finished: sample.finished, score: 0.0 };
        Ok(Self {
            texts: ResponseTexts { prompt: number, source, answers, conversations },
            sequence,
            answers: samples.iter().map(answer).collect(),
            samples,
            raw_score: 0.0,
            score: 0.0,
            version,
        })
    }

    /// Sets the scores. `raw` has the reward's score of every answer, 0 for those that are not scored.
    pub fn set_scores(&mut self, raw: &[f64], penalty: Option<f64>, mode: MissingEos) {
        for (answer, raw) in self.answers.iter_mut().zip(raw) {
            answer.score = penalised(*raw, answer.finished, penalty, mode);
        }
        self.raw_score = raw.iter().sum();
        self.score = self.answers.iter().map(|answer| answer.score).sum();
    }
}

/// The score of an answer after the penalty for a missing end token.
fn penalised(score: f64, finished: bool, penalty: Option<f64>, mode: MissingEos) -> f64 {
    match (penalty, finished, mode) {
        (None, _, _) | (_, true, _) => score,
        (Some(penalty), false, MissingEos::Subtract) => score - penalty,
        (Some(penalty), false, MissingEos::Replace) => -penalty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_end_token_is_penalised_as_the_mode_specifies() {
        assert_eq!(penalised(2.0, true, Some(1.0), MissingEos::Replace), 2.0);
        assert_eq!(penalised(2.0, false, None, MissingEos::Subtract), 2.0);
        assert_eq!(penalised(2.0, false, Some(0.5), MissingEos::Subtract), 1.5);
        assert_eq!(penalised(2.0, false, Some(1.0), MissingEos::Replace), -1.0);
    }

    #[test]
    fn every_answer_without_an_end_token_is_penalised() {
        let answer = |finished| Answer { length: 3, finished, score: 0.0 };
        let scores = |raw: &[f64], mode| {
            let mut response = SampledResponse {
                texts: ResponseTexts {
                    prompt: 0,
                    source: Arc::new(PromptTexts {
                        name: String::new(),
                        prompt: PromptInput::Text(String::new()),
                        next: Vec::new(),
                        answer: None,
                    }),
                    answers: Vec::new(),
                    conversations: Vec::new(),
                },
                sequence: TurnSequence { ids: vec![1].into(), predicted: Vec::new() },
                samples: Vec::new(),
                answers: [false, true, false].map(answer).into(),
                raw_score: 0.0,
                score: 0.0,
                version: 0,
            };
            response.set_scores(raw, Some(0.5), mode);
            let each: Vec<f64> = response.answers.iter().map(|answer| answer.score).collect();
            (each, response.raw_score, response.score)
        };
        assert_eq!(scores(&[0.0, 0.0, 2.0], MissingEos::Subtract), (vec![-0.5, 0.0, 1.5], 2.0, 1.0));
        assert_eq!(scores(&[0.0, 0.0, 2.0], MissingEos::Replace), (vec![-0.5, 0.0, -0.5], 2.0, -1.0));
        assert_eq!(scores(&[1.0, 2.0, 3.0], MissingEos::Replace), (vec![-0.5, 2.0, -0.5], 6.0, 1.0));
    }
}
