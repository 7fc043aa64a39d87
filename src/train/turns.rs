//! Conversations that a policy samples: the texts and ids of their prompts, and what was sampled, of which the policy's own
//! tokens are learned.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::args::{RlCommon, Turns};
use super::fit::Fit;
use super::step::TurnSequence;
use super::token_file::{StoredText, TokenFile, TokenIds};
use crate::data::read_prompts;
use crate::domain::{Message, PromptInput};
use crate::generation::Sample;
use crate::prompt::{ConversationIds, NextTurn, Reasoning, Texts, continued, turns};

/// The texts of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTexts {
    /// Name in messages.
    pub name: String,
    /// What the first answer answers.
    pub prompt: PromptInput,
    /// The messages of the user turns after the first answer.
    pub next: Vec<Vec<Message>>,
    /// The right answer, if the record has one.
    pub answer: Option<String>,
}

/// The ids of a user turn after an answer.
#[derive(Clone, Debug)]
struct TurnIds {
    ids: TokenIds,
    /// Number of ids before those of the messages.
    end: usize,
}

/// The ids of a prompt.
#[derive(Clone, Debug)]
pub struct PromptIds {
    /// The ids before the first answer.
    pub first: TokenIds,
    /// Those of the user turns after the first answer.
    next: Vec<TurnIds>,
}

/// A prompt whose texts may be in a file.
pub struct StoredPrompt {
    pub ids: PromptIds,
    texts: StoredText,
    /// Whether the record has an answer to compare with.
    pub is_answered: bool,
}

impl PromptIds {
    pub fn new(first: &[u32], next: &[NextTurn]) -> Self {
        let turn = |turn: &NextTurn| TurnIds { ids: turn.ids.clone().into(), end: turn.end };
        Self { first: first.to_vec().into(), next: next.iter().map(turn).collect() }
    }

    /// Number of user turns.
    pub fn turns(&self) -> usize {
        1 + self.next.len()
    }

    /// The ids between the last of these answers and the next one; `None` after the last turn.
    pub fn after(&self, answers: &[Sample]) -> Option<&[u32]> {
        let (TurnIds { ids, end }, last) = (self.next.get(answers.len().checked_sub(1)?)?, answers.last()?);
        Some(turns::ids_after(ids, *end, last.ids.last().copied().filter(|_| last.finished)))
    }

    /// The ids before the answer with this number, of which the last ones open it.
    pub fn before(&self, answer: usize) -> &[u32] {
        answer.checked_sub(1).map_or(&self.first, |i| &self.next[i].ids)
    }

    /// Number of tokens of the conversation if every answer has `longest` tokens and no end token.
    pub fn most_tokens(&self, longest: usize) -> usize {
        self.first.len() + longest + self.next.iter().map(|turn| turn.ids.len() + longest).sum::<usize>()
    }
}

impl StoredPrompt {
    /// Keeps a prompt in `file`, with the last `room` ids before its first answer.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn keep(
        conversation: ConversationIds,
        name: String,
        answer: Option<String>,
        room: usize,
        file: &mut TokenFile,
    ) -> Result<Self> {
        let ConversationIds { prompt, ids, next } = conversation;
        let mut kept = PromptIds::new(&ids[ids.len().saturating_sub(room)..], &next);
        file.keep(&mut kept.first)?;
        kept.next.iter_mut().try_for_each(|turn| file.keep(&mut turn.ids))?;
        let is_answered = answer.as_deref().is_some_and(|answer| !answer.trim().is_empty());
        let next = next.into_iter().map(|turn| turn.messages).collect();
        let texts = PromptTexts { name, prompt, next, answer };
        Ok(Self { ids: kept, texts: file.keep_text(&serde_json::to_string(&texts)?)?, is_answered })
    }

    /// Its texts, once the file was finished.
    ///
    /// # Errors
    /// If the file was damaged.
    pub fn texts(&self) -> Result<PromptTexts> {
        serde_json::from_str(&self.texts.read()?).context("reading a prompt from the file of token ids")
    }
}

/// The ids of a prompt before the answers that the policy writes.
fn conversation(rl: &RlCommon, texts: &Texts, prompt: PromptInput) -> Result<ConversationIds> {
    match rl.turns {
        Turns::Last => Ok(ConversationIds { ids: texts.prompt(&prompt)?, prompt, next: Vec::new() }),
        Turns::All => texts.conversation_ids(&prompt),
    }
}

/// The name of a record in messages, its ids without truncation, and its answer, of every prompt.
fn conversations(
    rl: &RlCommon,
    texts: &Texts,
) -> Result<impl Iterator<Item = Result<(String, ConversationIds, Option<String>)>>> {
    if rl.turns == Turns::All {
        texts.check_earlier_answers()?;
    }
    let records = read_prompts(Path::new(&rl.prompts)).context("prompts")?;
    Ok(records.enumerate().map(move |(i, record)| {
        let record = record.context("prompts")?;
        let id = record.prompt_id.map(|id| format!(" ({id})")).unwrap_or_default();
        let name = format!("prompt {}{id}", i + 1);
        let ids = conversation(rl, texts, record.prompt).with_context(|| format!("prompts: {name}"))?;
        Ok((name, ids, record.answer))
    }))
}

/// Lengths in tokens of the prompts of a run, without truncation, each with responses of the maximum length.
///
/// # Errors
/// A file or a conversation that cannot be read.
pub fn lengths(rl: &RlCommon, texts: &Texts) -> Result<Vec<usize>> {
    let length = |found: Result<(String, ConversationIds, Option<String>)>| {
        let (_, ConversationIds { ids, next, .. }, _) = found?;
        Ok(PromptIds::new(&ids, &next).most_tokens(rl.response_length))
    };
    conversations(rl, texts)?.map(length).collect()
}

/// The prompts, whose beginnings are cut off so that a first response of the maximum length fits, and how many were cut.
/// Ids and texts beyond a limit are in `file`.
///
/// # Errors
/// A file or a conversation that cannot be read, and no room for a prompt.
pub fn read(rl: &RlCommon, texts: &Texts, max_length: usize, mut file: TokenFile) -> Result<(Vec<StoredPrompt>, Fit)> {
    let Some(room) = max_length.checked_sub(rl.response_length).filter(|room| *room > 0) else {
        bail!("response_length: {} tokens leave no room for a prompt in {max_length}", rl.response_length)
    };
    let (mut prompts, mut fit) = (Vec::new(), Fit::new(max_length));
    for found in conversations(rl, texts)? {
        let (name, conversation, answer) = found?;
        fit.note_prompt(conversation.ids.len() > room);
        prompts.push(StoredPrompt::keep(conversation, name, answer, room, &mut file)?);
    }
    file.finish()?;
    Ok((prompts, fit))
}

/// A sampled conversation.
pub struct SampledTurns {
    pub sequence: TurnSequence,
    /// The texts of the policy's answers.
    pub answers: Vec<String>,
    /// For every answer after the first, the conversation that it answers, with the policy's earlier answers.
    pub conversations: Vec<PromptInput>,
}

impl SampledTurns {
    /// The conversation of these answers to a prompt and to its later user turns, whose messages are `next`. `reasoning`:
    /// whether the conversations have the reasoning of earlier answers; the ids always do.
    ///
    /// # Errors
    /// If an answer cannot be decoded.
    pub fn new(
        texts: &Texts,
        (prompt, next): (&PromptInput, &[Vec<Message>]),
        ids: &PromptIds,
        samples: &[Sample],
        reasoning: Reasoning,
    ) -> Result<Self> {
        let (mut all, mut predicted) = (ids.first.to_vec(), Vec::<Range<usize>>::with_capacity(samples.len()));
        let (mut answers, mut conversations) = (Vec::<String>::new(), Vec::<PromptInput>::new());
        for (i, sample) in samples.iter().enumerate() {
            if let (Some(before), Some(written)) = (i.checked_sub(1), answers.last()) {
                all.extend(ids.after(&samples[..i]).unwrap_or_default());
                let judged = texts.answer_in(ids.before(before), written, reasoning);
                conversations.push(continued(conversations.last().unwrap_or(prompt), judged, &next[before]));
            }
            answers.push(texts.text(&all, &sample.ids)?);
            predicted.push(all.len()..all.len() + sample.ids.len());
            all.extend(&sample.ids);
        }
        Ok(Self { sequence: TurnSequence { ids: all.into(), predicted }, answers, conversations })
    }
}
