//! The input of a generation request: messages or raw text.

use serde::{Deserialize, Serialize};

use super::Message;

/// A conversation for the chat template, or raw text that is tokenized without a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptInput {
    Chat(Vec<Message>),
    Text(String),
}

impl PromptInput {
    /// As messages, for the store: raw text becomes one message of the user.
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Chat(messages) => messages,
            Self::Text(content) => vec![Message { role: "user".into(), content }],
        }
    }

    /// As messages, without consuming the original.
    pub fn messages(&self) -> Vec<Message> {
        self.clone().into_messages()
    }
}

impl From<Vec<Message>> for PromptInput {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(messages)
    }
}
