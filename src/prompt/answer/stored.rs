//! Splits stored messages and answers into the parts that people read: text, reasoning, tool calls, results and offered
//! tools. The model that wrote an answer need not be known: its format is recognised by the tags in the text.

use serde_json::Value;

use super::{AnswerReader, Part, Thinking, ToolFormat, ToolTags};
use crate::domain::Message;

/// The text before the list of tools in a stored system message.
pub(in crate::prompt) const TOOLS_HEADING: &str = "# Tools\n\n";
/// The tags around a tool's result in a stored message of the user.
pub(in crate::prompt) const RESULT_TAGS: (&str, &str) = ("<tool_response>\n", "\n</tool_response>");

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedTool {
    pub name: String,
    pub description: String,
}

/// A part of a stored text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPart {
    Text(String),
    Reasoning(String),
    Call {
        name: String,
        /// JSON text of an object, or what the model wrote in its place.
        arguments: String,
    },
    Result(String),
    Tools(Vec<OfferedTool>),
}

/// Whether the conversation offers tools.
pub fn offers_tools(messages: &[Message]) -> bool {
    messages.iter().any(|m| m.role == "system" && tools_of(&m.content).is_some())
}

/// The parts of a message of a conversation. `offered` is [`offers_tools`] of that conversation.
pub fn split_message(message: &Message, offered: bool) -> Vec<StoredPart> {
    let text = message.content.as_str();
    match message.role.as_str() {
        "assistant" => split_answer(text, offered),
        "user" => {
            let result = text.strip_prefix(RESULT_TAGS.0).and_then(|rest| rest.strip_suffix(RESULT_TAGS.1));
            vec![result.map_or_else(|| StoredPart::Text(text.to_owned()), |text| StoredPart::Result(text.to_owned()))]
        }
        "system" => match tools_of(text) {
            Some((before, tools)) => {
                let before = before.trim_end();
                let text = (!before.is_empty()).then(|| StoredPart::Text(before.to_owned()));
                text.into_iter().chain([StoredPart::Tools(tools)]).collect()
            }
            None => vec![StoredPart::Text(text.to_owned())],
        },
        _ => vec![StoredPart::Text(text.to_owned())],
    }
}

/// The text of a system message and the tools at its end.
fn tools_of(text: &str) -> Option<(&str, Vec<OfferedTool>)> {
    let (before, list) = text.rsplit_once(TOOLS_HEADING)?;
    let Value::Array(list) = serde_json::from_str(list).ok()? else { return None };
    let tool = |tool: Value| {
        let function = &tool["function"];
        let name = function["name"].as_str()?.to_owned();
        Some(OfferedTool { name, description: function["description"].as_str().unwrap_or_default().to_owned() })
    };
    let tools: Vec<OfferedTool> = list.into_iter().map(tool).collect::<Option<_>>()?;
    (!tools.is_empty()).then_some((before, tools))
}

/// The parts of a complete answer. `offered`: its conversation offers tools.
pub fn split_answer(text: &str, offered: bool) -> Vec<StoredPart> {
    let thinking = Thinking::in_answer(text);
    let answer = super::without_thoughts(text);
    let tags = ToolFormat::in_answer(answer, offered).map(|format| ToolTags { format, special: Vec::new() });
    let mut reader = AnswerReader::new(thinking.as_ref(), tags.as_ref());
    let mut parts: Vec<StoredPart> = Vec::new();
    let read = reader.push(text).into_iter().chain(reader.finish()).collect::<Vec<_>>();
    for part in read {
        match (part, parts.last_mut()) {
            (Part::Content(more), Some(StoredPart::Text(text)))
            | (Part::Reasoning(more), Some(StoredPart::Reasoning(text))) => text.push_str(&more),
            (Part::Content(text), _) => parts.push(StoredPart::Text(text)),
            (Part::Reasoning(text), _) => parts.push(StoredPart::Reasoning(text)),
            (Part::Call { name, .. }, _) => parts.push(StoredPart::Call { name, arguments: String::new() }),
            (Part::Arguments { text, .. }, Some(StoredPart::Call { arguments, .. })) => arguments.push_str(&text),
            (Part::Arguments { .. }, _) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::prompt::{Conversation, ToolCall, Turn};

    fn text(text: &str) -> StoredPart {
        StoredPart::Text(text.into())
    }

    fn call(name: &str, arguments: &str) -> StoredPart {
        StoredPart::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn answers_of_every_format_are_split() {
        let arguments = r#"{"city": "Bonn"}"#;
        let object = format!(r#"{{"name": "weather", "arguments": {arguments}}}"#);
        for (answer, offered, want) in [
            ("Plain *text*.".to_owned(), true, vec![text("Plain *text*.")]),
            (
                format!("<think>hm</think>\n\nI look.\n<tool_call>\n{object}\n</tool_call>"),
                false,
                vec![StoredPart::Reasoning("hm".into()), text("I look."), call("weather", arguments)],
            ),
            ("so\n</think>\nYes".into(), false, vec![StoredPart::Reasoning("so".into()), text("Yes")]),
            (format!("[TOOL_CALLS][{object}]"), false, vec![call("weather", arguments)]),
            (format!("[TOOL_CALLS]weather[ARGS]{arguments}"), false, vec![call("weather", arguments)]),
            (format!("<|tool_call|>[{object}]<|/tool_call|>"), false, vec![call("weather", arguments)]),
            (object.clone(), true, vec![call("weather", arguments)]),
            (object.clone(), false, vec![text(&object)]),
            ("A <tool_call> is a tag.".into(), false, vec![text("A <tool_call> is a tag.")]),
        ] {
            assert_eq!(split_answer(&answer, offered), want, "{answer}");
        }
    }

    /// What a conversation with tools is stored as is split into its parts again.
    #[test]
    fn stored_conversations_are_split() {
        let turn = |role: &str, content: &str| Turn { role: role.into(), content: content.into(), ..Turn::default() };
        let arguments = json!({"city": "Bonn"});
        let called = ToolCall { id: "1".into(), name: "weather".into(), arguments: arguments.clone() };
        let conversation = Conversation {
            turns: vec![
                turn("system", "Be brief."),
                turn("user", "Rain?"),
                Turn { tool_calls: vec![called], ..turn("assistant", "I look.") },
                turn("tool", "{\"rain\": true}"),
            ],
            tools: Some(json!([{"type": "function", "function": {"name": "weather", "description": "Now."}}])),
            ..Conversation::default()
        };
        let stored = conversation.stored();
        assert!(offers_tools(&stored));
        let parts: Vec<StoredPart> = stored.iter().flat_map(|m| split_message(m, true)).collect();
        let tool = OfferedTool { name: "weather".into(), description: "Now.".into() };
        assert_eq!(
            parts,
            [
                text("Be brief."),
                StoredPart::Tools(vec![tool]),
                text("Rain?"),
                text("I look."),
                call("weather", &arguments.to_string()),
                StoredPart::Result("{\"rain\": true}".into()),
            ]
        );
        let plain = [Message { role: "system".into(), content: "# Tools\n\nare useful".into() }];
        assert!(!offers_tools(&plain));
        assert_eq!(split_message(&plain[0], false), [text("# Tools\n\nare useful")]);
    }
}
