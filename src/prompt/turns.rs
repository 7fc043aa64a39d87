//! Conversations whose assistant turns a policy writes: the user turns of a prompt, and the ids that a chat template
//! writes before the first answer and between two answers. Answers keep the ids that the policy sampled: their text is
//! never tokenized again.

use anyhow::{Context, Result, ensure};

use super::answer::Thinking;
use super::{ChatTemplate, Rendered, Texts};
use crate::domain::{Message, PromptInput, user_turns};
use crate::tokenizer::Specials;

/// An answer that the template renders in place of one that is not written yet.
const PLACEHOLDER: &str = "X";

/// The ids of a conversation without its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationIds {
    /// What the first answer answers.
    pub prompt: PromptInput,
    /// The ids before the first answer.
    pub ids: Vec<u32>,
    /// The user turns that follow the answers.
    pub next: Vec<NextTurn>,
}

/// A user turn that follows an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextTurn {
    pub messages: Vec<Message>,
    /// What the template writes between two answers: the end of the first, the messages, and the beginning of the
    /// second.
    pub ids: Vec<u32>,
    /// Number of ids before those of the messages.
    pub end: usize,
}

/// The ids that follow an answer, of `ids`, those of the next turn. `end_token` is the end token with which the answer
/// ended, if it did: the template's ids up to and including that token, among the first `end` ids, are left out, because
/// the answer has it.
pub fn ids_after(ids: &[u32], end: usize, end_token: Option<u32>) -> &[u32] {
    let written = end_token.and_then(|token| ids[..end].iter().position(|id| *id == token));
    &ids[written.map_or(0, |at| at + 1)..]
}

/// The prompt of the next answer: `prompt`, its answer, and the messages of the next turn.
pub fn continued(prompt: &PromptInput, answer: &str, next: &[Message]) -> PromptInput {
    let mut messages = prompt.messages();
    messages.push(message("assistant", answer));
    messages.extend(next.iter().cloned());
    messages.into()
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

impl Texts {
    /// Checks that the chat template renders an answer of an earlier turn as the policy has written it.
    ///
    /// # Errors
    /// If it removes the reasoning of earlier answers, or begins an answer in another way once it is an earlier one.
    pub fn check_earlier_answers(&self) -> Result<()> {
        let Some(Ok(template)) = &self.template else { return Ok(()) };
        // Without a tokenizer, no mark hides the tags from the template.
        let Ok(plain) = ChatTemplate::new(template.source(), None) else { return Ok(()) };
        let answer = match Thinking::tags_of(template.source()) {
            Some((open, close)) => format!("{open}\nR\n{close}\n\n{PLACEHOLDER}"),
            None => PLACEHOLDER.to_owned(),
        };
        let all = [message("user", "A"), message("assistant", &answer), message("user", "B")];
        // What a template refuses is reported with the prompt that it refuses.
        let (Ok(opened), Ok(later)) = (plain.render(&all[..1], true), plain.render(&all, true)) else { return Ok(()) };
        let kept = later.text.strip_prefix(&opened.text).is_some_and(|rest| rest.starts_with(&answer));
        ensure!(
            kept,
            "turns: this model's chat template writes earlier answers differently from the policy (it removes their \
             reasoning, or begins them in another way), so later turns would be learned after tokens that the policy \
             has not sampled; set `turns` to last, or take a model whose template keeps earlier answers"
        );
        Ok(())
    }

    /// The ids of a prompt's conversation without its answers. A raw text has one turn.
    ///
    /// # Errors
    /// If the template refuses the messages, or renders the beginning of a conversation differently once a turn is added.
    pub fn conversation_ids(&self, prompt: &PromptInput) -> Result<ConversationIds> {
        let turns = match prompt {
            PromptInput::Text(_) => Vec::new(),
            PromptInput::Chat(messages) => user_turns(messages),
        };
        let Some((first, rest)) = turns.split_first() else {
            return Ok(ConversationIds { prompt: prompt.clone(), ids: self.prompt(prompt)?, next: Vec::new() });
        };
        let prompt = PromptInput::Chat(first.clone());
        let mut conversation = ConversationIds { ids: self.prompt(&prompt)?, prompt, next: Vec::new() };
        let mut before = first.clone();
        for (i, messages) in rest.iter().enumerate() {
            let opened = self.rendered(&before)?;
            before.push(message("assistant", PLACEHOLDER));
            let next = self.next_turn(&opened.text, &before, messages);
            conversation.next.push(next.with_context(|| format!("user turn {}", i + 2))?);
            before.extend(messages.iter().cloned());
        }
        Ok(conversation)
    }

    /// The turn of `messages` after the messages `before`, which end with the placeholder. `opened` is the text that the
    /// template writes before that answer.
    fn next_turn(&self, opened: &str, before: &[Message], messages: &[Message]) -> Result<NextTurn> {
        let whole = self.rendered(&[before, messages].concat())?;
        let answer = opened.len();
        let kept = whole.text.strip_prefix(opened).is_some_and(|rest| rest.starts_with(PLACEHOLDER));
        ensure!(
            kept,
            "the chat template writes the beginning of the conversation differently once a turn is added, so its tokens \
             would not be those that the policy has read; set `turns` to last, or leave such prompts out (a system \
             message may be the cause)"
        );
        let answer_end = answer + PLACEHOLDER.len();
        // Up to where the text depends on the messages, it is the template's.
        let others = messages.iter().map(|m| message(&m.role, if m.content.starts_with('Y') { "Z" } else { "Y" }));
        let other = self.rendered(&[before, &others.collect::<Vec<_>>()].concat())?;
        let same = whole.text[answer_end..].chars().zip(other.text.get(answer_end..).unwrap_or_default().chars());
        let header: usize = same.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();

        let ids = self.encoded(&whole)?;
        let until_answer = self.encoded(&beginning(&whole, answer_end))?;
        let until_messages = self.encoded(&beginning(&whole, answer_end + header))?;
        ensure!(
            ids.starts_with(&until_answer),
            "the tokens after an answer depend on its text in this model's vocabulary; set `turns` to last"
        );
        let same = ids.iter().zip(&until_messages).take_while(|(a, b)| a == b).count();
        let end = same.saturating_sub(until_answer.len());
        Ok(NextTurn { messages: messages.to_vec(), ids: ids[until_answer.len()..].to_vec(), end })
    }

    /// The text of messages before an answer: by the template, or without one their texts. Then an answer follows what it
    /// answers as a completion does, and every other message is on a new line.
    fn rendered(&self, messages: &[Message]) -> Result<Rendered> {
        match &self.template {
            None => {
                let mut text = String::new();
                for (i, message) in messages.iter().enumerate() {
                    text.push_str(if i == 0 || message.role == "assistant" { "" } else { "\n" });
                    text.push_str(&message.content);
                }
                Ok(Rendered { text, breaks: Vec::new() })
            }
            Some(Ok(template)) => Ok(template.render(messages, true)?),
            Some(Err(error)) => Err(error.clone().into()),
        }
    }

    fn encoded(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        Ok(match &self.template {
            None => self.tokenizer.encode_open(&rendered.text, false)?,
            Some(_) => self.tokenizer.encode_with(&rendered.text, false, Specials::Between(&rendered.breaks))?,
        })
    }
}

/// The first `end` bytes.
fn beginning(rendered: &Rendered, end: usize) -> Rendered {
    let breaks = rendered.breaks.iter().copied().filter(|at| *at < end).collect();
    Rendered { text: rendered.text[..end].to_owned(), breaks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_token_that_an_answer_has_is_not_written_again() {
        // The end token, a line break, the messages (with the number of the end token), the opening.
        let ids = [2, 9, 5, 2, 6, 7];
        assert_eq!(ids_after(&ids, 2, Some(2)), [9, 5, 2, 6, 7]);
        assert_eq!(ids_after(&ids, 2, None), ids, "an answer that was cut gets the template's end");
        assert_eq!(ids_after(&ids, 2, Some(3)), ids, "another end token is followed by the template's");
        assert_eq!(ids_after(&ids, 2, Some(5)), ids, "messages are never left out");
    }
}
