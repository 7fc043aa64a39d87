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

/// The messages before each answer. An answer follows a user's message: the assistant's messages after one are left out,
/// those before it are context.
pub fn user_turns(messages: &[Message]) -> Vec<Vec<Message>> {
    let asks = |turn: &Vec<Message>| turn.iter().any(|m| m.role == "user");
    let mut turns: Vec<Vec<Message>> = Vec::new();
    let mut current: Vec<Message> = Vec::new();
    let mut is_answered = false;
    for message in messages {
        if message.role == "assistant" && asks(&current) {
            is_answered = true;
            continue;
        }
        if std::mem::take(&mut is_answered) {
            turns.push(std::mem::take(&mut current));
        }
        current.push(message.clone());
    }
    if turns.is_empty() || asks(&current) {
        turns.push(current);
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(roles: &[(&str, &str)]) -> Vec<String> {
        let message = |(role, content): &(&str, &str)| Message { role: (*role).into(), content: (*content).into() };
        let messages: Vec<Message> = roles.iter().map(message).collect();
        let joined = |turn: &Vec<Message>| turn.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join(" ");
        user_turns(&messages).iter().map(joined).collect()
    }

    #[test]
    fn an_answer_follows_every_run_of_messages_with_a_users() {
        assert_eq!(turns(&[("user", "a")]), ["a"]);
        assert_eq!(turns(&[("system", "s"), ("user", "a"), ("assistant", "x"), ("user", "b")]), ["s a", "b"]);
        assert_eq!(turns(&[("assistant", "hello"), ("user", "a"), ("user", "b")]), ["hello a b"]);
        assert_eq!(turns(&[("user", "a"), ("assistant", "x"), ("assistant", "y"), ("user", "b")]), ["a", "b"]);
        assert_eq!(turns(&[("user", "a"), ("assistant", "x")]), ["a"], "the policy writes the last answer itself");
        assert_eq!(turns(&[("user", "a"), ("assistant", "x"), ("system", "s"), ("user", "b")]), ["a", "s b"]);
        assert_eq!(turns(&[("user", "a"), ("assistant", "x"), ("system", "s")]), ["a"], "nobody asks again");
        assert_eq!(turns(&[("system", "s")]), ["s"]);
    }
}
