//! Text ↔ ids for one model: prompts through its chat template, completions with the end token. Training,
//! scoring (in a run and in the server) and sampling all come through here, so that none of them sees another form of the same text.

use anyhow::{Context, Result, bail};

use super::{ChatError, ChatTemplate};
use crate::data::PromptInput;
use crate::model::Loaded;
use crate::tokenizer::Tokenizer;

/// The token that ends a turn: the end token that the chat template writes behind an assistant's message; else the
/// one that the tokenizer's configuration calls `eos_token`. `None`: the first of the model's list.
fn turn_end(tokenizer: &Tokenizer, template: Option<&ChatTemplate>, eos_ids: &[u32]) -> Option<u32> {
    let named = || tokenizer.token_to_id(tokenizer.named_token("eos_token")?);
    let written = template.and_then(|template| {
        let message = |role: &str, content: &str| crate::domain::Message { role: role.into(), content: content.into() };
        let turns = [message("user", "a"), message("assistant", "b")];
        // Not every template takes a conversation that ends with the assistant.
        let (before, all) =
            (template.encode(&turns[..1], true, tokenizer).ok()?, template.encode(&turns, false, tokenizer).ok()?);
        let same = before.iter().zip(&all).take_while(|(a, b)| a == b).count();
        let named = named();
        all[same..].iter().copied().find(|id| eos_ids.contains(id) || Some(*id) == named)
    });
    written.or_else(named)
}

pub struct Texts {
    tokenizer: Tokenizer,
    /// A template that cannot be used fails the prompts that need it.
    template: Option<Result<ChatTemplate, ChatError>>,
    /// Tokens that end a completion; the one that ends a turn first.
    eos_ids: Vec<u32>,
    bos_id: Option<u32>,
    /// [CLS] and [SEP] of an encoder that has them.
    pair: Option<(u32, u32)>,
}

impl Texts {
    /// # Errors
    /// When the model came without a tokenizer.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        let path = loaded.source.path.display();
        let tokenizer = loaded.tokenizer.clone().with_context(|| format!("{path} has no tokenizer.json"))?;
        let template = loaded.chat_template.as_deref().map(|source| ChatTemplate::new(source, Some(&tokenizer)));
        let bert = loaded.config.arch == crate::model::Arch::Bert;
        let pair = tokenizer.token_to_id("[CLS]").zip(tokenizer.token_to_id("[SEP]")).filter(|_| bert);
        let mut eos_ids = loaded.config.eos_ids.clone();
        let usable = template.as_ref().and_then(|template| template.as_ref().ok());
        if let Some(end) = turn_end(&tokenizer, usable, &eos_ids) {
            eos_ids.retain(|id| *id != end);
            eos_ids.insert(0, end);
        }
        Ok(Self { pair, tokenizer, template, eos_ids, bos_id: loaded.config.bos_id })
    }

    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The ids that a model completes: chat messages through the template with the assistant's turn opened
    /// (without a template: their texts, one per line), raw text as it is. Never empty.
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

    /// The ids of a written completion behind the ids of its prompt, end token included (if the model has one).
    /// Special tokens written in the text stay text.
    pub fn completion(&self, prompt_ids: &[u32], text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_after(prompt_ids, text)?;
        ids.extend(self.eos_ids.first());
        Ok(ids)
    }

    /// Prompt and completion as one sequence of at most `max_length` tokens: an over-long prompt loses its
    /// beginning, an over-long completion its end. Also the index of the completion's first token.
    /// For an encoder: `[CLS] prompt [SEP] completion [SEP]`.
    pub fn conversation(&self, prompt: &PromptInput, completion: &str, max_length: usize) -> Result<(Vec<u32>, usize)> {
        if let Some((cls, sep)) = self.pair {
            let mut response = self.tokenizer.encode(completion, false, false)?;
            response.truncate(max_length.saturating_sub(4).max(1));
            let texts: Vec<String> = prompt.messages().into_iter().map(|m| m.content).collect();
            let prompt = self.tokenizer.encode(&texts.join("\n"), false, false)?;
            let room = max_length.saturating_sub(response.len() + 3);
            let prompt = &prompt[prompt.len().saturating_sub(room)..];
            let ids = [&[cls], prompt, &[sep], &response, &[sep]].concat();
            return Ok((ids, prompt.len() + 2));
        }
        let prompt_ids = self.prompt(prompt)?;
        let mut response = self.completion(&prompt_ids, completion)?;
        if response.is_empty() {
            bail!("a completion has no tokens, and the model no end token");
        }
        response.truncate(max_length.saturating_sub(1).max(1));
        let room = max_length.saturating_sub(response.len()).max(1);
        let prompt = &prompt_ids[prompt_ids.len().saturating_sub(room)..];
        Ok(([prompt, &response].concat(), prompt.len()))
    }

    /// The text of ids drawn behind a prompt's: what comes before the first end token, special tokens left out.
    pub fn text(&self, prompt_ids: &[u32], ids: &[u32]) -> Result<String> {
        let end = ids.iter().position(|id| self.eos_ids.contains(id)).unwrap_or(ids.len());
        Ok(self.tokenizer.decode_after(prompt_ids, &ids[..end], true))
    }
}
