//! Conversions between text and token ids with bounded work: short texts on the async thread, long ones on a few blocking
//! threads.

use std::sync::Arc;

use super::model_text::ModelText;
use super::{BlockingPool, ChatPrompt, EngineError, TextForm};
use crate::domain::Message;
use crate::prompt::Conversation;

/// Texts of up to this many bytes are tokenized on the async thread, longer ones on a blocking thread.
const INLINE_BYTES: usize = 8 << 10;
/// Maximum number of tasks on blocking threads, and of tasks that wait.
const MAX_TOKENIZING: usize = 2;
const MAX_WAITING: usize = 64;
/// Each message counts as at least this many bytes, because many short messages take long to render.
const MESSAGE_BYTES: usize = 256;

/// Converts texts of any model. Errors are those of the tokenizer or template, and `Overloaded` if too many long texts
/// wait.
pub(super) struct Tokenizing(BlockingPool);

impl Tokenizing {
    pub fn new() -> Self {
        Self(BlockingPool::new(MAX_TOKENIZING, MAX_WAITING))
    }

    pub async fn tokenize(
        &self,
        model: &Arc<ModelText>,
        text: &str,
        form: TextForm<'_>,
    ) -> Result<Vec<u32>, EngineError> {
        if text.len() <= INLINE_BYTES {
            return model.encode(text, form);
        }
        let (model, text) = (model.clone(), text.to_owned());
        match form {
            TextForm::Whole { special, parse_special } => {
                self.0.run(move |_| model.encode(&text, TextForm::Whole { special, parse_special })).await
            }
            TextForm::Open { special, parse_special } => {
                self.0.run(move |_| model.encode(&text, TextForm::Open { special, parse_special })).await
            }
            TextForm::After(left) => {
                let left = left.to_owned();
                self.0.run(move |_| model.encode(&text, TextForm::After(&left))).await
            }
        }
    }

    pub async fn infill_prompt(
        &self,
        model: &Arc<ModelText>,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, EngineError> {
        if prefix.len() + suffix.len() <= INLINE_BYTES {
            return model.infill_prompt(prefix, suffix);
        }
        let (model, prefix, suffix) = (model.clone(), prefix.to_owned(), suffix.to_owned());
        self.0.run(move |_| model.infill_prompt(&prefix, &suffix)).await
    }

    pub async fn detokenize(&self, model: &Arc<ModelText>, ids: &[u32]) -> Result<String, EngineError> {
        if ids.len() <= INLINE_BYTES / 4 {
            return model.decode(ids);
        }
        let (model, ids) = (model.clone(), ids.to_owned());
        self.0.run(move |_| model.decode(&ids)).await
    }

    pub async fn chat(&self, model: &Arc<ModelText>, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        if messages.iter().map(|m| m.content.len() + MESSAGE_BYTES).sum::<usize>() <= INLINE_BYTES {
            return model.chat(messages);
        }
        let (model, messages) = (model.clone(), messages.to_owned());
        self.0.run(move |_| model.chat(&messages)).await
    }

    pub async fn conversation(
        &self,
        model: &Arc<ModelText>,
        conversation: &Conversation,
    ) -> Result<ChatPrompt, EngineError> {
        if conversation.bytes() + MESSAGE_BYTES * conversation.turns.len() <= INLINE_BYTES {
            return model.conversation(conversation);
        }
        let (model, conversation) = (model.clone(), conversation.clone());
        self.0.run(move |_| model.conversation(&conversation)).await
    }
}
