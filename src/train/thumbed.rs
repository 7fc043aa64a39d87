//! Single completions with a thumb as token sequences, split by prompt, for KTO.

use std::path::Path;

use anyhow::{Context, Result};

use super::data_report::DataReport;
use super::fit::Fit;
use super::samples::SamplePrompts;
use super::step::Sequence;
use super::token_file::TokenFile;
use crate::data::{PromptInput, Thumbed, read_feedback};
use crate::domain::Split;
use crate::prompt::Texts;

/// A completion with its feedback.
pub struct FeedbackExample {
    pub sequence: Sequence,
    pub liked: bool,
    /// The prompt with the completion of another prompt, for the estimate of the reference point.
    pub mismatched: Sequence,
    /// The reference's summed log-prob of `sequence`, in nats.
    pub reference: f64,
    /// The reference's summed log-prob of `mismatched`, in nats.
    pub mismatched_reference: f64,
}

/// The completions of a file.
pub struct Feedback {
    pub train: Vec<FeedbackExample>,
    pub heldout: Vec<FeedbackExample>,
    /// Prompts for samples, held-out ones first.
    pub prompts: Vec<PromptInput>,
    /// Counts of what did not fit.
    pub fit: Fit,
    /// Counts of the file, for the run's log and the model card.
    pub report: DataReport,
}

impl Feedback {
    /// Reads a file of completions with thumbs.
    ///
    /// # Errors
    /// If a line is invalid or `tokens` cannot be written.
    pub fn read(
        path: &str,
        texts: &Texts,
        max_length: usize,
        heldout_fraction: f64,
        tokens: TokenFile,
    ) -> Result<Self> {
        let (mut fit, mut report) = (Fit::new(max_length), DataReport::default());
        let (mut train, mut heldout) = (Side::default(), Side::default());
        let mut prompts = SamplePrompts::default();
        let mut encoder = Encoder { texts, max_length, tokens };
        for one in read_feedback(Path::new(path)).context("feedback")? {
            let one = one.context("feedback")?;
            let mut answers = texts.answers(&one.prompt, &[&one.completion], max_length)?;
            fit.note_prompt(answers.prompt_cut);
            fit.note_answers(&answers.cut);
            let Some((ids, start)) = answers.sequences.pop() else { continue };
            let side = one.side(heldout_fraction);
            report.note_answer(&one.prompt, &one.completion, ids.len() - start, side);
            prompts.note_other(&one.prompt, side);
            let sequence = encoder.keep(ids, start)?;
            if side == Split::Train { &mut train } else { &mut heldout }.add(one, sequence, &mut encoder)?;
        }
        let (train, heldout) = (train.finish(&mut encoder)?, heldout.finish(&mut encoder)?);
        encoder.tokens.finish()?;
        Ok(Self { train, heldout, prompts: prompts.all(), fit, report })
    }

    /// Numbers of training completions that were liked, and of the others.
    pub fn counts(&self) -> (usize, usize) {
        let liked = self.train.iter().filter(|item| item.liked).count();
        (liked, self.train.len() - liked)
    }
}

/// Makes sequences, whose ids it keeps.
struct Encoder<'t> {
    texts: &'t Texts,
    max_length: usize,
    tokens: TokenFile,
}

impl Encoder<'_> {
    fn keep(&mut self, ids: Vec<u32>, start: usize) -> Result<Sequence> {
        let mut sequence = Sequence { ids: ids.into(), start };
        self.tokens.keep(&mut sequence.ids)?;
        Ok(sequence)
    }

    fn encode(&mut self, prompt: &PromptInput, completion: &str) -> Result<Sequence> {
        let (ids, start) = self.texts.conversation(prompt, completion, self.max_length)?;
        self.keep(ids, start)
    }
}

/// One side of the split while the file is read. Every prompt is paired with the completion of the next other prompt, after
/// the last one with the first; with the next completion if there is no other prompt. Few texts are in memory.
#[derive(Default)]
struct Side {
    /// `mismatched` of those from `waiting` on is not known yet.
    items: Vec<FeedbackExample>,
    /// The prompt of the last items, and the index of the first of them.
    waiting: Option<(PromptInput, usize)>,
    first: Option<(PromptInput, String)>,
    /// The first completion of another prompt than that of `first`.
    other: Option<String>,
}

impl Side {
    fn add(&mut self, one: Thumbed, sequence: Sequence, encoder: &mut Encoder<'_>) -> Result<()> {
        match self.waiting.take() {
            Some((prompt, from)) if prompt == one.prompt => self.waiting = Some((prompt, from)),
            before => {
                if let Some((prompt, from)) = before {
                    let mismatched = encoder.encode(&prompt, &one.completion)?;
                    self.items[from..].iter_mut().for_each(|item| item.mismatched = mismatched.clone());
                }
                self.waiting = Some((one.prompt.clone(), self.items.len()));
            }
        }
        self.items.push(FeedbackExample {
            mismatched: sequence.clone(),
            sequence,
            liked: one.label,
            reference: 0.0,
            mismatched_reference: 0.0,
        });
        match &self.first {
            None => self.first = Some((one.prompt, one.completion)),
            Some((first, _)) if self.other.is_none() && *first != one.prompt => self.other = Some(one.completion),
            Some(_) => {}
        }
        Ok(())
    }

    fn finish(mut self, encoder: &mut Encoder<'_>) -> Result<Vec<FeedbackExample>> {
        let (Some((prompt, from)), Some((first, completion))) = (self.waiting, self.first) else {
            return Ok(self.items);
        };
        let other = if prompt == first { self.other } else { Some(completion) };
        if let Some(other) = other {
            let mismatched = encoder.encode(&prompt, &other)?;
            self.items[from..].iter_mut().for_each(|item| item.mismatched = mismatched.clone());
        } else {
            // All have one prompt, so that the next completion with the prompt is the next sequence.
            for i in 0..self.items.len() {
                self.items[i].mismatched = self.items[(i + 1) % self.items.len()].sequence.clone();
            }
        }
        Ok(self.items)
    }
}
