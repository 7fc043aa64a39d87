//! Text ↔ ids for one model: prompts through its chat template, completions with the end token. Training, scoring (in a
//! run and in the server) and sampling all use it, so that they encode the same text equally.

use anyhow::{Context, Result, bail};

use super::answer::Reasoning;
use super::reasoning_ids::{AnswerPiece, ReasoningTags};
use super::{ChatError, ChatTemplate};
use crate::domain::{Message, PromptInput};
use crate::model::Loaded;
use crate::model::heads::Foreign;
use crate::tokenizer::{EncoderToken, Tokenizer};

/// Completions of one prompt as sequences.
pub struct Answers {
    /// Ids, and the index of the completion's first token.
    pub sequences: Vec<(Vec<u32>, usize)>,
    /// Whether the beginning of the prompt was truncated.
    pub prompt_cut: bool,
    /// Which completions were truncated at the end, including the end token.
    pub cut: Vec<bool>,
}

/// The token that ends a turn: the end token that the chat template writes after an assistant's message; else the
/// `eos_token` of the tokenizer's configuration. `None`: the first of the model's list.
fn turn_end(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, eos_ids: &[u32]) -> Option<u32> {
    let named = || tokenizer.token_to_id(tokenizer.named_token("eos_token")?);
    let written = template.and_then(|template| {
        let message = |role: &str, content: &str| crate::domain::Message { role: role.into(), content: content.into() };
        let turns = [message("user", "a"), message("assistant", "b")];
        // Not every template accepts a conversation that ends with the assistant.
        let (before, all) =
            (template.encode(&turns[..1], true, tokenizer).ok()?, template.encode(&turns, false, tokenizer).ok()?);
        let same = before.iter().zip(&all).take_while(|(a, b)| a == b).count();
        let named = named();
        all[same..].iter().copied().find(|id| eos_ids.contains(id) || Some(*id) == named)
    });
    written.or_else(named)
}

pub struct Texts {
    pub(super) tokenizer: Tokenizer,
    /// The template, or the error that prompts which need it fail with.
    pub(super) template: Option<Result<ChatTemplate, ChatError>>,
    /// Ids that end a completion, beginning with the one that ends a turn.
    eos_ids: Vec<u32>,
    bos_id: Option<u32>,
    /// [CLS] and [SEP] of an encoder that has them.
    pair: Option<(u32, u32)>,
    /// The tags that the template names.
    reasoning_tags: Option<ReasoningTags>,
    /// Whether completions are encoded with their reasoning.
    reasoning: Reasoning,
    /// `None` unless they are for scores by a foreign reward model.
    foreign: Option<Foreign>,
}

/// Whether a reward model reads the reasoning of answers, as its recipe has written it into instructd.json.
fn reasoning_of_reward(loaded: &Loaded) -> Reasoning {
    let written = loaded.instructd.as_ref().and_then(|about| about.pointer("/reward/reasoning"));
    written.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}

impl Texts {
    /// A reward model that was trained without the reasoning of answers encodes completions without it.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        let path = loaded.source.path.display();
        let tokenizer = loaded.tokenizer.clone().with_context(|| format!("{path} has no tokenizer.json"))?;
        let template = loaded.chat_template.as_deref().map(|source| ChatTemplate::new(source, Some(&tokenizer)));
        let both = tokenizer.role_id(EncoderToken::Cls).zip(tokenizer.role_id(EncoderToken::Sep));
        let pair = both.filter(|_| loaded.config.is_encoder());
        let mut eos_ids = loaded.config.eos_ids.clone();
        let usable = template.as_ref().and_then(|template| template.as_ref().ok());
        if let Some(end) = turn_end(&tokenizer, usable, &eos_ids) {
            eos_ids.retain(|id| *id != end);
            eos_ids.insert(0, end);
        }
        let reasoning_tags = loaded.chat_template.as_deref().and_then(|source| ReasoningTags::new(source, &tokenizer));
        let (bos_id, reasoning) = (loaded.config.bos_id, reasoning_of_reward(loaded));
        Ok(Self { pair, tokenizer, template, eos_ids, bos_id, reasoning_tags, reasoning, foreign: None })
    }

    /// For scores by a reward model. A foreign one, which has no section in instructd.json, reads the conversation as the chat template renders it with the answer; without a template, the text with the tokens that
    /// the tokenizer adds.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn for_scores(loaded: &Loaded) -> Result<Self> {
        let mut texts = Self::new(loaded)?;
        let here = loaded.instructd.as_ref().is_some_and(|about| about.get("reward").is_some());
        if !here && !loaded.config.is_encoder() {
            texts.foreign = Some(Foreign::of(loaded));
        }
        Ok(texts)
    }

    /// Encodes completions with or without their reasoning, whatever the model's files say.
    #[must_use]
    pub fn with_reasoning(mut self, reasoning: Reasoning) -> Self {
        self.reasoning = reasoning;
        self
    }

    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The ids that a model completes: chat messages through the template with the assistant's turn opened
    /// (without a template: their texts, one per line), raw text unchanged. Never empty.
    pub fn prompt(&self, prompt: &PromptInput) -> Result<Vec<u32>> {
        let ids = match (prompt, &self.template) {
            (PromptInput::Text(text), _) => self.tokenizer.encode_open(text, false)?,
            (PromptInput::Chat(messages), None) => {
                let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
                self.tokenizer.encode_open(&texts.join("\n"), false)?
            }
            (PromptInput::Chat(messages), Some(Ok(template))) => template.encode(messages, true, &self.tokenizer)?,
            (PromptInput::Chat(_), Some(Err(error))) => return Err(error.clone().into()),
        };
        match (ids.is_empty(), self.bos_id.or(self.eos_ids.first().copied())) {
            (false, _) => Ok(ids),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => bail!("a prompt has no tokens, and the model no begin or end token"),
        }
    }

    /// The ids of a completion that follows the ids of its prompt, including the end token (if the model has one).
    /// Special tokens written in the text stay text, except the tags around the reasoning at its beginning. Without
    /// reasoning, a completion of a prompt that ends with the opening tag begins with the closing one. A text without
    /// tags is an answer, also after such a prompt: people write answers without reasoning.
    pub fn completion(&self, prompt_ids: &[u32], text: &str) -> Result<Vec<u32>> {
        let answer = self.reasoning.part_of(text);
        let mut ids = match &self.reasoning_tags {
            None => self.continuation(prompt_ids, answer)?,
            Some(tags) => {
                let opened = tags.opened_by(prompt_ids, &self.tokenizer);
                match self.reasoning {
                    Reasoning::Remove if opened => {
                        self.with_tags(tags, prompt_ids, &(tags.empty_reasoning() + answer), true)?
                    }
                    _ => self.with_tags(tags, prompt_ids, answer, opened)?,
                }
            }
        };
        ids.extend(self.eos_ids.first());
        Ok(ids)
    }

    /// The ids that follow those of a prompt in a conversation with the completion as its last message, for a
    /// foreign reward model.
    fn foreign_answer(
        &self,
        prompt: &PromptInput,
        prompt_ids: &[u32],
        text: &str,
        foreign: &Foreign,
    ) -> Result<Vec<u32>> {
        let mut ids = match (prompt, &self.template) {
            (PromptInput::Chat(messages), Some(Ok(template))) => {
                let answer = Message { role: "assistant".into(), content: text.into() };
                let messages: Vec<Message> = messages.iter().cloned().chain([answer]).collect();
                let whole = template.encode(&messages, false, &self.tokenizer)?;
                match whole.strip_prefix(prompt_ids) {
                    Some(rest) => rest.to_vec(),
                    // Tokens that span the end of the prompt, such as two line ends, are those of a continuation.
                    None => self.completion(prompt_ids, text)?,
                }
            }
            _ => {
                let mut ids = self.continuation(prompt_ids, text)?;
                ids.extend(self.tokenizer.around_text().into_iter().flat_map(|(_, behind)| behind));
                ids
            }
        };
        foreign.cut_padding(&mut ids, 0);
        Ok(ids)
    }

    fn with_tags(&self, tags: &ReasoningTags, prompt_ids: &[u32], text: &str, opened: bool) -> Result<Vec<u32>> {
        let mut ids = prompt_ids.to_vec();
        for piece in tags.pieces(text, opened) {
            match piece {
                AnswerPiece::Special(id) => ids.push(id),
                AnswerPiece::Text(text) => {
                    let more = self.continuation(&ids, text)?;
                    ids.extend(more);
                }
            }
        }
        Ok(ids.split_off(prompt_ids.len()))
    }

    /// Whether nothing of an answer is encoded, because it consists of reasoning that is removed.
    pub fn is_only_reasoning(&self, text: &str) -> bool {
        self.reasoning.part_of(text).is_empty() && !text.is_empty()
    }

    /// The part that is judged of a response that the model has sampled for this prompt. If the prompt ends with the
    /// opening tag, a response without the closing one is unfinished reasoning.
    pub fn answer_in<'t>(&self, prompt_ids: &[u32], text: &'t str, reasoning: Reasoning) -> &'t str {
        match (reasoning, &self.reasoning_tags) {
            (Reasoning::Remove, Some(tags)) => tags.answer_in(text, tags.opened_by(prompt_ids, &self.tokenizer)),
            (reasoning, _) => reasoning.part_of(text),
        }
    }

    /// The ids of a text that follows the ids of its prompt, without an end token. Special tokens written in the text
    /// stay text.
    pub fn continuation(&self, prompt_ids: &[u32], text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_after(prompt_ids, text)?)
    }

    /// Prompt and completion as one sequence of at most `max_length` tokens: an over-long prompt is truncated at its
    /// beginning, an over-long completion at its end. Also the index of the completion's first token. For an encoder:
    /// `[CLS] prompt [SEP] completion [SEP]`.
    pub fn conversation(&self, prompt: &PromptInput, completion: &str, max_length: usize) -> Result<(Vec<u32>, usize)> {
        let mut set = self.answers(prompt, &[completion], max_length)?;
        set.sequences.pop().context("one completion gives one sequence")
    }

    /// The completions of one prompt as sequences of at most `max_length` tokens, as in `conversation`. All have the
    /// same prompt tokens: a prompt that does not fit before the longest completion is truncated at its beginning
    /// equally for all.
    pub fn answers<S: AsRef<str>>(
        &self,
        prompt: &PromptInput,
        completions: &[S],
        max_length: usize,
    ) -> Result<Answers> {
        let (before, between, after) = match self.pair {
            Some((cls, sep)) => (vec![cls], vec![sep], vec![sep]),
            None => (Vec::new(), Vec::new(), Vec::new()),
        };
        let around = before.len() + between.len() + after.len();
        let prompt_ids = match self.pair {
            Some(_) => {
                let texts: Vec<String> = prompt.messages().into_iter().map(|m| m.content).collect();
                self.tokenizer.encode(&texts.join("\n"), false, false)?
            }
            None => self.prompt(prompt)?,
        };
        // At least one token of the prompt is kept.
        let most = max_length.saturating_sub(around + 1).max(1);
        let mut cut = Vec::with_capacity(completions.len());
        let mut responses = Vec::with_capacity(completions.len());
        for completion in completions {
            let mut response = match self.pair {
                Some(_) => self.tokenizer.encode(self.reasoning.part_of(completion.as_ref()), false, false)?,
                None => match &self.foreign {
                    Some(foreign) => self.foreign_answer(prompt, &prompt_ids, completion.as_ref(), foreign)?,
                    None => self.completion(&prompt_ids, completion.as_ref())?,
                },
            };
            if response.is_empty() && self.pair.is_none() {
                bail!("a completion has no tokens, and the model no end token");
            }
            cut.push(response.len() > most);
            response.truncate(most);
            responses.push(response);
        }
        let longest = responses.iter().map(Vec::len).max().unwrap_or(0);
        let room = max_length.saturating_sub(longest + around);
        let room = if self.pair.is_some() { room } else { room.max(1) };
        let shown = &prompt_ids[prompt_ids.len().saturating_sub(room)..];
        let start = before.len() + shown.len() + between.len();
        let sequences = responses
            .iter()
            .map(|response| ([&before, shown, &between, response.as_slice(), &after].concat(), start))
            .collect();
        Ok(Answers { sequences, prompt_cut: shown.len() < prompt_ids.len(), cut })
    }

    /// Prompts with a completion each, in order. Completions of equal prompts have the same prompt tokens, as in
    /// `answers`.
    pub fn conversations(&self, pairs: &[(&PromptInput, &str)], max_length: usize) -> Result<Vec<Vec<u32>>> {
        let mut sets: Vec<(&PromptInput, Vec<usize>)> = Vec::new();
        for (i, (prompt, _)) in pairs.iter().enumerate() {
            // Completions of one prompt are adjacent.
            match sets.iter_mut().rev().take(64).find(|(known, _)| known == prompt) {
                Some((_, members)) => members.push(i),
                None => sets.push((prompt, vec![i])),
            }
        }
        let mut ids = vec![Vec::new(); pairs.len()];
        for (prompt, members) in sets {
            let completions: Vec<&str> = members.iter().map(|&i| pairs[i].1).collect();
            let answers = self.answers(prompt, &completions, max_length)?;
            members.into_iter().zip(answers.sequences).for_each(|(i, (sequence, _))| ids[i] = sequence);
        }
        Ok(ids)
    }

    /// The text of sampled ids after a prompt: up to the first end token, without special tokens other than the tags
    /// around reasoning.
    pub fn text(&self, prompt_ids: &[u32], ids: &[u32]) -> Result<String> {
        let end = ids.iter().position(|id| self.eos_ids.contains(id)).unwrap_or(ids.len());
        let tag = |id: u32| self.reasoning_tags.as_ref().and_then(|tags| tags.text_of(id));
        let (mut text, mut left) = (String::new(), prompt_ids.to_vec());
        for part in ids[..end].split_inclusive(|id| tag(*id).is_some()) {
            text.push_str(&self.tokenizer.decode_after(&left, part, true));
            text.push_str(part.last().and_then(|id| tag(*id)).unwrap_or_default());
            left.extend(part);
        }
        Ok(text)
    }
}
