//! Completions of fixed prompts, or of fixed user turns, with a fixed seed, which show how a policy changes.

use anyhow::Result;
use serde_json::json;

use super::rng::{Stream, derive};
use super::run::Run;
use super::turns::{PromptIds, SampledTurns};
use crate::data::PromptInput;
use crate::domain::{Message, Split};
use crate::generation::{GenParams, LaterTurns, Sample, generate_conversations};
use crate::model::Decoder;
use crate::prompt::{Reasoning, Texts};

/// Number of prompts.
const PROMPTS: usize = 3;
const TOKENS: usize = 48;

pub struct Samples<'t> {
    texts: &'t Texts,
    prompts: Vec<SamplePrompt>,
    seed: u64,
}

/// A prompt, and the user turns that follow the policy's answers.
pub struct SamplePrompt {
    pub prompt: PromptInput,
    /// The messages of these turns.
    pub next: Vec<Vec<Message>>,
    /// The ids of these turns, and those before the first answer, which are made again.
    pub ids: PromptIds,
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

/// Scores a completion of the sample prompt with this index. The prompt that it completes has, after the first turn of a
/// conversation, the policy's earlier answers.
pub type ScoreOne<'f> = &'f dyn Fn(usize, &PromptInput, &str) -> Result<f64>;

impl<'t> Samples<'t> {
    pub fn new(texts: &'t Texts, prompts: Vec<PromptInput>, seed: u64) -> Self {
        let alone = |prompt| SamplePrompt { prompt, next: Vec::new(), ids: PromptIds::new(&[], &[]) };
        Self::of_conversations(texts, prompts.into_iter().map(alone).collect(), seed)
    }

    /// Samples of conversations, in which the policy answers every turn.
    pub fn of_conversations(texts: &'t Texts, mut prompts: Vec<SamplePrompt>, seed: u64) -> Self {
        prompts.truncate(PROMPTS);
        Self { texts, prompts, seed }
    }

    /// Emits one `sample` event per prompt: `{step, prompt, completion, score?}`. The completion of a conversation has
    /// all answers, with the user's messages between them quoted, and its event also has these as messages, `turns`, and
    /// the `number` of the conversation. Its score is that of the last answer.
    pub fn write(
        &self,
        run: &mut Run<'_>,
        decoder: &Decoder,
        max_length: usize,
        score: Option<ScoreOne<'_>>,
    ) -> Result<()> {
        let turns = self.prompts.iter().map(|prompt| prompt.ids.turns()).max().unwrap_or(1);
        let max_new_tokens = TOKENS.min(max_length / (2 * turns)).max(1);
        let room = max_length.saturating_sub(max_new_tokens).max(1);
        let mut prompts: Vec<PromptIds> = Vec::new();
        for SamplePrompt { prompt, ids, .. } in &self.prompts {
            let first = self.texts.prompt(prompt)?;
            let mut ids = ids.clone();
            ids.first = first[first.len().saturating_sub(room)..].to_vec().into();
            prompts.push(ids);
        }
        let params = GenParams {
            max_new_tokens,
            eos_ids: self.texts.eos_ids().to_vec(),
            // The same random numbers at every checkpoint, so that differences come from the policy.
            seed: derive(self.seed, Stream::Samples, 0),
            ..GenParams::default()
        };
        let next = |i: usize, answers: &[Sample]| prompts[i].after(answers);
        let most = prompts.iter().map(|ids| ids.most_tokens(max_new_tokens)).max().unwrap_or(0);
        let later = LaterTurns { max_tokens: most.min(max_length), next: &next };
        let stop = || run.reporter.should_stop();
        let first: Vec<Vec<u32>> = prompts.iter().map(|ids| ids.first.to_vec()).collect();
        let samples = generate_conversations(decoder, &first, &params, Some(&later), None, &stop)?;
        for (i, (ids, samples)) in prompts.iter().zip(samples).enumerate() {
            let SamplePrompt { prompt, next, .. } = &self.prompts[i];
            let sampled = SampledTurns::new(self.texts, (prompt, next), ids, &samples, Reasoning::Keep)?;
            let conversation = sampled.conversations.last().unwrap_or(prompt);
            let answer = sampled.answers.last().map_or("", String::as_str);
            let score = score.map(|f| f(i, conversation, answer)).transpose()?;
            let turns = messages(&sampled.answers, next);
            let mut event =
                json!({"step": run.step, "prompt": prompt, "completion": transcript(&turns), "score": score});
            if !next.is_empty() {
                event["number"] = (i + 1).into();
                event["turns"] = json!(turns);
            }
            run.sample(event);
        }
        Ok(())
    }
}

/// The messages after a prompt: the answers, and the user's turns between them.
fn messages(answers: &[String], next: &[Vec<Message>]) -> Vec<Message> {
    let mut messages = Vec::new();
    for (i, answer) in answers.iter().enumerate() {
        messages.extend(i.checked_sub(1).into_iter().flat_map(|before| next[before].iter().cloned()));
        messages.push(Message { role: "assistant".into(), content: answer.clone() });
    }
    messages
}

/// Messages as one text, in which those of the user are quoted.
fn transcript(turns: &[Message]) -> String {
    let quoted = |text: &str| text.lines().map(|line| format!("> {line}")).collect::<Vec<_>>().join("\n");
    let text = |turn: &Message| if turn.role == "assistant" { turn.content.clone() } else { quoted(&turn.content) };
    turns.iter().map(text).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_quotes_the_user() {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let turns = [message("assistant", "a\nb"), message("user", "c\nd"), message("assistant", "e")];
        assert_eq!(transcript(&turns), "a\nb\n\n> c\n> d\n\ne");
        assert_eq!(transcript(&turns[..1]), "a\nb", "an answer alone is unchanged");
    }
}
