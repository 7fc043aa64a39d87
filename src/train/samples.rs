//! Completions of fixed prompts with a fixed seed, which show how a policy changes.

use anyhow::Result;
use serde_json::json;

use super::rng::{Stream, derive};
use super::run::Run;
use crate::data::PromptInput;
use crate::domain::Split;
use crate::generation::{GenParams, generate};
use crate::model::Decoder;
use crate::prompt::Texts;

/// Number of prompts.
const PROMPTS: usize = 3;
const TOKENS: usize = 48;

pub struct Samples<'t> {
    texts: &'t Texts,
    prompts: Vec<PromptInput>,
    seed: u64,
}

/// The first prompts of each side of the split.
#[derive(Default)]
pub struct SamplePrompts {
    train: Vec<PromptInput>,
    heldout: Vec<PromptInput>,
}

impl SamplePrompts {
    pub fn note(&mut self, prompt: &PromptInput, side: Split) {
        let prompts = if side == Split::Train { &mut self.train } else { &mut self.heldout };
        if prompts.len() < PROMPTS {
            prompts.push(prompt.clone());
        }
    }

    /// As [`SamplePrompts::note`], unless the prompt is the one before.
    pub fn note_other(&mut self, prompt: &PromptInput, side: Split) {
        let prompts = if side == Split::Train { &self.train } else { &self.heldout };
        if prompts.last() != Some(prompt) {
            self.note(prompt, side);
        }
    }

    /// The noted prompts, held-out ones first.
    pub fn all(mut self) -> Vec<PromptInput> {
        self.heldout.append(&mut self.train);
        self.heldout
    }
}

/// Scores one completion of a prompt.
pub type ScoreOne<'f> = &'f dyn Fn(&PromptInput, &str) -> Result<f64>;

impl<'t> Samples<'t> {
    pub fn new(texts: &'t Texts, mut prompts: Vec<PromptInput>, seed: u64) -> Self {
        prompts.truncate(PROMPTS);
        Self { texts, prompts, seed }
    }

    /// Emits one `sample` event per prompt: `{step, prompt, completion, score?}`.
    pub fn write(
        &self,
        run: &mut Run<'_>,
        decoder: &Decoder,
        max_length: usize,
        score: Option<ScoreOne<'_>>,
    ) -> Result<()> {
        let max_new_tokens = TOKENS.min(max_length / 2).max(1);
        let room = max_length.saturating_sub(max_new_tokens).max(1);
        let mut prompts = Vec::new();
        for prompt in &self.prompts {
            let ids = self.texts.prompt(prompt)?;
            prompts.push(ids[ids.len().saturating_sub(room)..].to_vec());
        }
        let params = GenParams {
            max_new_tokens,
            eos_ids: self.texts.eos_ids().to_vec(),
            // The same random numbers at every checkpoint, so that differences come from the policy.
            seed: derive(self.seed, Stream::Samples, 0),
            ..GenParams::default()
        };
        let samples = generate(decoder, &prompts, &params, &|| run.reporter.should_stop())?;
        for ((prompt, ids), sample) in self.prompts.iter().zip(&prompts).zip(samples) {
            let completion = self.texts.text(ids, &sample.ids)?;
            let score = score.map(|f| f(prompt, &completion)).transpose()?;
            run.sample(json!({"step": run.step, "prompt": prompt, "completion": completion, "score": score}));
        }
        Ok(())
    }
}
