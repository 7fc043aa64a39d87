//! Anthropic's HH dialogues, with turns marked inside the text.

use serde_json::{Value, json};

use super::fields::Outcome;
use super::records::Comparison;
use crate::domain::{Message, PromptInput};

/// The dialogues of a pair; `None` for conversations that would not be read back equally: with a system message, turns
/// that do not alternate, marks of turns in a text, or white space at its ends.
pub(super) fn line(prompt: &PromptInput, chosen: &str, rejected: &str) -> Option<Value> {
    let mut text = String::new();
    let messages = prompt.messages();
    for message in &messages {
        let name = match message.role.as_str() {
            "assistant" => "Assistant",
            "user" => "Human",
            _ => return None,
        };
        text.push_str(&format!("\n\n{name}: {}", message.content));
    }
    let dialogue = |answer: &str| format!("{text}\n\nAssistant: {answer}");
    let (chosen_text, rejected_text) = (dialogue(chosen), dialogue(rejected));
    for (text, answer) in [(&chosen_text, chosen), (&rejected_text, rejected)] {
        let (turns, last) = turns(text).ok()?;
        if turns != messages || last != answer {
            return None;
        }
    }
    Some(json!({"chosen": chosen_text, "rejected": rejected_text}))
}

pub(super) fn pair(chosen: &str, rejected: &str) -> Outcome<Comparison> {
    let (mut prompt, a) = turns(chosen).map_err(|e| format!("`chosen` {e}"))?;
    let (other, b) = turns(rejected).map_err(|e| format!("`rejected` {e}"))?;
    if prompt != other {
        // In a few dozen published lines the conversations differ earlier; they do not compare answers.
        return Err("`chosen` and `rejected` have different prompts".into());
    }
    prompt.shrink_to_fit();
    Ok(Comparison::preferred(PromptInput::Chat(prompt), a, b))
}

/// The turns of `\n\nHuman: …\n\nAssistant: …`: all but the last, and the last.
fn turns(text: &str) -> Outcome<(Vec<Message>, String)> {
    let mut turns: Vec<Message> = Vec::new();
    let text = format!("\n\n{}", text.trim_start());
    for part in text.split("\n\n") {
        let start = [("Human:", "user"), ("Assistant:", "assistant")]
            .into_iter()
            .find_map(|(name, role)| Some((role, part.strip_prefix(name)?)));
        match (start, turns.last_mut()) {
            (Some((role, content)), _) => {
                // One space is part of the mark.
                let content = content.strip_prefix(' ').unwrap_or(content);
                turns.push(Message { role: role.into(), content: content.to_owned() });
            }
            (None, Some(last)) => last.content.push_str(&format!("\n\n{part}")),
            (None, None) if part.is_empty() => {}
            (None, None) => return Err("must begin with \"Human:\"".into()),
        }
    }
    match turns.pop() {
        Some(last) if last.role == "assistant" && !turns.is_empty() => Ok((turns, last.content)),
        _ => Err("must end with a turn of the assistant".into()),
    }
}
