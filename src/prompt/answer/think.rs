//! Reasoning at the beginning of an answer, between its tags.

use serde::{Deserialize, Serialize};

use super::{Part, overlap};

/// The tags of a model's reasoning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    pub open: String,
    pub close: String,
    /// Whether the prompt ends with the opening tag.
    pub opened: bool,
}

/// Whether a recipe or a reward model reads the reasoning at the beginning of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reasoning {
    /// The answer is read with its reasoning.
    #[default]
    Keep,
    /// Only what follows the reasoning is read.
    Remove,
}

impl Reasoning {
    pub fn is_kept(&self) -> bool {
        *self == Self::Keep
    }

    /// The part of an answer that is read.
    pub fn part_of(self, answer: &str) -> &str {
        match self {
            Self::Keep => answer,
            Self::Remove => without_thoughts(answer),
        }
    }
}

impl Thinking {
    const TAGS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

    /// The opening and the closing tag that a chat template names.
    pub fn tags_of(template: &str) -> Option<(&'static str, &'static str)> {
        Self::TAGS.into_iter().find(|(_, close)| template.contains(close))
    }

    /// The tags of the reasoning at the beginning of a complete answer, if it has one. Text before the first closing tag
    /// is reasoning, whether or not the answer has the opening one.
    pub fn in_answer(text: &str) -> Option<Self> {
        let begun = text.trim_start();
        Self::TAGS.into_iter().find_map(|(open, close)| {
            let opened = !begun.starts_with(open);
            let is_reasoning = match text.split_once(close) {
                Some((thought, _)) => !opened || !thought.contains(open),
                None => !opened,
            };
            is_reasoning.then(|| Self { open: open.into(), close: close.into(), opened })
        })
    }

    /// The tags that a chat template names, and whether the prompt that it rendered has opened one.
    pub fn of(template: &str, prompt: &str) -> Option<Self> {
        let (open, close) = Self::tags_of(template)?;
        let opened = prompt.trim_end().ends_with(open);
        Some(Self { open: open.into(), close: close.into(), opened })
    }
}

/// A complete answer without the reasoning before it. Reasoning that was never closed is the whole text.
pub fn without_thoughts(text: &str) -> &str {
    match Thinking::in_answer(text) {
        Some(tags) => text.split_once(&tags.close).map_or("", |(_, answer)| answer.trim_start()),
        None => text,
    }
}

enum State {
    /// Only white space so far.
    Before,
    Inside,
    /// After the closing tag: white space is skipped.
    Behind,
    Text,
}

/// Splits an answer into reasoning and text.
pub struct ThinkReader {
    open: String,
    close: String,
    state: State,
    /// Whether the prompt contains the opening tag, which the model may repeat.
    opened: bool,
    held: String,
    /// Whether a part of the reasoning has been emitted.
    begun: bool,
}

impl ThinkReader {
    pub fn new(thinking: &Thinking) -> Self {
        let Thinking { open, close, opened } = thinking.clone();
        Self { open, close, state: State::Before, opened, held: String::new(), begun: false }
    }

    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Advances the state; `false` when more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Before => {
                let shown = self.held.trim_start();
                if shown.is_empty() || (self.open.starts_with(shown) && shown.len() < self.open.len()) {
                    return false;
                }
                if let Some(rest) = shown.strip_prefix(self.open.as_str()) {
                    self.held = rest.to_owned();
                    self.state = State::Inside;
                } else {
                    self.state = if self.opened { State::Inside } else { State::Text };
                }
                true
            }
            State::Inside => {
                if !self.begun {
                    let start = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..start);
                }
                if let Some(at) = self.held.find(&self.close) {
                    let thought = self.held[..at].trim_end().to_owned();
                    self.held.drain(..at + self.close.len());
                    parts.push(Part::Reasoning(thought));
                    self.state = State::Behind;
                    return true;
                }
                // White space at the end is emitted only when more reasoning follows.
                let keep = overlap(&self.held, &self.close);
                let sure = self.held[..self.held.len() - keep].trim_end().len();
                if sure > 0 {
                    self.begun = true;
                    parts.push(Part::Reasoning(self.held.drain(..sure).collect()));
                }
                false
            }
            State::Behind => {
                let start = self.held.len() - self.held.trim_start().len();
                self.held.drain(..start);
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Text;
                true
            }
            State::Text => {
                if !self.held.is_empty() {
                    parts.push(Part::Content(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }

    pub fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Behind => Vec::new(),
            State::Inside => vec![Part::Reasoning(rest)],
            State::Before if self.opened => vec![Part::Reasoning(rest)],
            State::Before | State::Text => vec![Part::Content(rest)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_without_their_thoughts() {
        for (text, left) in [
            ("<think>a</think>\n\nb", "b"),
            (" <think>\na b\n</think> c <think>", "c <think>"),
            ("a\n</think>\nb", "b"),
            ("[THINK]a[/THINK]b", "b"),
            ("<think>never closed", ""),
            ("no thoughts: <b>x</b>", "no thoughts: <b>x</b>"),
            ("an answer about <think> and </think>", "an answer about <think> and </think>"),
            ("", ""),
        ] {
            assert_eq!(without_thoughts(text), left, "{text:?}");
        }
    }
}
