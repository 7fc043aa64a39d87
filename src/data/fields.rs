//! The fields of one line: each is read by name, and unread ones can be listed afterwards. Messages are accepted in
//! every form that the API accepts.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::records::Format;
use crate::domain::{Message, PromptInput};
use crate::prompt::{ToolCall, Turn};

/// A result with an error message about the line.
pub(super) type Outcome<T> = Result<T, String>;

/// Names of columns that contain parts of the prompt in other data sets. If such a column were ignored, a part of the
/// prompt would be lost.
const PROMPT_LIKE: &[&str] = &[
    "system",
    "system_prompt",
    "question",
    "instruction",
    "instructions",
    "query",
    "input",
    "inputs",
    "context",
    "user",
    "human",
    "history",
    "conversation",
    "conversations",
    "dialogue",
    "dialog",
    "messages",
    "post",
];

/// Whether a column of this name contains a part of the prompt in common data sets.
pub(super) fn is_prompt_like(name: &str) -> bool {
    PROMPT_LIKE.contains(&name.to_ascii_lowercase().as_str())
}

pub(super) fn unknown_column(name: &str) -> String {
    format!("the column `{name}` is not known, and there is no `prompt`; rename it to `prompt`")
}

/// The calls of tools in a message, in the form of OpenAI's API. The arguments may be an object or its text.
fn tool_calls(value: &Value, name: &str) -> Outcome<Vec<ToolCall>> {
    let list = value.as_array().ok_or_else(|| format!("`{name}` must be a list, not {}", kind(value)))?;
    let call = |(i, call): (usize, &Value)| {
        let function = &call["function"];
        let tool = function["name"].as_str().ok_or_else(|| format!("`{name}[{i}].function.name` must be a string"))?;
        let given = &function["arguments"];
        let arguments = ToolCall::read_arguments(given).ok_or_else(|| {
            format!("`{name}[{i}].function.arguments` must be an object or its text, not {}", kind(given))
        })?;
        let id = call["id"].as_str().unwrap_or_default().to_owned();
        Ok(ToolCall { id, name: tool.to_owned(), arguments })
    };
    list.iter().enumerate().map(call).collect()
}

/// The fields of a JSON object.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
    unread: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, read: RefCell::default(), unread: RefCell::default() }
    }

    /// The value of a field; null counts as absent.
    pub fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name);
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub fn require(&self, name: &'static str, format: Format) -> Outcome<&'a Value> {
        self.get(name).ok_or_else(|| self.missing(name, format))
    }

    pub fn string(&self, name: &'static str) -> Outcome<Option<&'a str>> {
        let text = |v: &'a Value| v.as_str().ok_or_else(|| format!("`{name}` must be a string, not {}", kind(v)));
        self.get(name).map(text).transpose()
    }

    pub fn owned(&self, name: &'static str) -> Outcome<Option<String>> {
        Ok(self.string(name)?.map(str::to_owned))
    }

    /// The error for a missing field, with the line's fields and the format that they resemble.
    pub fn missing(&self, name: &str, format: Format) -> String {
        let there: Vec<String> = self.map.keys().take(12).map(|k| format!("`{k}`")).collect();
        let has = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
        match looks_like(self.map).filter(|f| *f != format) {
            Some(other) => {
                format!("`{name}` is missing; the line has {has} and looks like the format `{}`", other.as_str())
            }
            None => format!("`{name}` is missing; the line has {has}"),
        }
    }

    /// An unread column whose name suggests a part of the prompt.
    pub fn prompt_like(&self) -> Option<&'a str> {
        let read = self.read.borrow();
        let unread = |(name, value): &(&String, &Value)| !value.is_null() && !read.contains(name.as_str());
        self.map.iter().filter(unread).map(|(name, _)| name.as_str()).find(|name| is_prompt_like(name))
    }

    /// Names of the unread fields.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let unread = |(name, value): &(&String, &Value)| !value.is_null() && !read.contains(name.as_str());
        let mut names: BTreeSet<String> = self.map.iter().filter(unread).map(|(name, _)| name.clone()).collect();
        names.append(&mut self.unread.borrow_mut());
        names.into_iter().collect()
    }

    /// A list of messages.
    pub fn messages(&self, value: &Value, name: &str) -> Outcome<Vec<Message>> {
        let items =
            value.as_array().ok_or_else(|| format!("`{name}` must be a list of messages, not {}", kind(value)))?;
        items.iter().enumerate().map(|(i, item)| self.message(item, &format!("{name}[{i}]"))).collect()
    }

    fn message(&self, item: &Value, name: &str) -> Outcome<Message> {
        let fields = item.as_object().ok_or_else(|| format!("`{name}` must be a message, not {}", kind(item)))?;
        let role = match fields.get("role") {
            Some(Value::String(role)) => role.as_str(),
            None | Some(Value::Null) if fields.contains_key("from") && fields.contains_key("value") => {
                return self.turn(fields, name);
            }
            _ => return Err(format!("`{name}.role` must be a string")),
        };
        let role = match role {
            "prompter" | "human" => "user",
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => {
                return Err(format!("`{name}.role` = {other:?} (known: system, developer, user, assistant, tool)"));
            }
        };
        let mut calls = Vec::new();
        for (key, value) in fields {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            match key.as_str() {
                "role" | "content" | "name" => {}
                _ if empty => {}
                "tool_calls" if role == "assistant" => calls = tool_calls(value, &format!("{name}.tool_calls"))?,
                "tool_call_id" if role == "tool" => {}
                "tool_calls" | "function_call" | "audio" | "refusal" => {
                    return Err(format!("`{name}.{key}` is not supported in training data; remove the line"));
                }
                other => drop(self.unread.borrow_mut().insert(format!("{}[].{other}", root(name)))),
            }
        }
        let content = match fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            // An answer without text.
            None | Some(Value::Null) if role == "assistant" => String::new(),
            Some(Value::Array(parts)) => {
                let mut text = String::new();
                for (i, part) in parts.iter().enumerate() {
                    let is_text = part.get("type").is_none_or(|t| t == "text");
                    let piece = is_text.then(|| part.get("text").and_then(Value::as_str)).flatten();
                    text.push_str(piece.ok_or_else(|| format!("`{name}.content[{i}]` must be a part of type text"))?);
                }
                text
            }
            _ => return Err(format!("`{name}.content` must be a string or a list of text parts")),
        };
        let turn = Turn { tool_calls: calls, ..Turn::from(Message { role: role.to_owned(), content }) };
        Ok(turn.stored())
    }

    /// A turn in ShareGPT's form: `{"from": "human", "value": "…"}`.
    fn turn(&self, fields: &Map<String, Value>, name: &str) -> Outcome<Message> {
        let from = fields.get("from").and_then(Value::as_str).ok_or(format!("`{name}.from` must be a string"))?;
        let role = match from {
            "human" | "user" | "prompter" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "system" => "system",
            other => return Err(format!("`{name}.from` = {other:?} (known: system, human, user, gpt, assistant)")),
        };
        let Some(Value::String(content)) = fields.get("value") else {
            return Err(format!("`{name}.value` must be a string"));
        };
        for (key, value) in fields {
            // A mark of turns to train on must not be ignored silently.
            if !matches!(key.as_str(), "from" | "value") && !value.is_null() {
                self.unread.borrow_mut().insert(format!("{}[].{key}", root(name)));
            }
        }
        Ok(Message { role: role.to_owned(), content: content.clone() })
    }

    pub fn prompt_input(&self, value: &Value, name: &str) -> Outcome<PromptInput> {
        match value {
            Value::String(text) if text.trim().is_empty() => Err(format!("`{name}` is empty")),
            Value::String(text) => Ok(PromptInput::Text(text.clone())),
            list => match self.messages(list, name)? {
                list if list.is_empty() => Err(format!("`{name}` is empty")),
                list => Ok(PromptInput::Chat(list)),
            },
        }
    }

    /// The column of a whole conversation: `messages`, or ShareGPT's `conversations` (or `conversation`).
    pub fn conversation(&self) -> Option<(&'static str, &'a Value)> {
        ["messages", "conversations", "conversation"].into_iter().find_map(|name| {
            // A column of another type is left unread, and reported.
            let is_list = self.map.get(name).is_some_and(Value::is_array);
            is_list.then(|| self.get(name).map(|value| (name, value))).flatten()
        })
    }

    /// The system message in a column of its own, `system` or `system_prompt`; blank counts as none.
    pub fn system(&self) -> Outcome<Option<&'a str>> {
        let (system, other) = (self.string("system")?, self.string("system_prompt")?);
        match (system, other) {
            (Some(a), Some(b)) if a != b => Err("`system` and `system_prompt` differ; keep one of them".to_owned()),
            (system, other) => Ok(system.or(other).filter(|text| !text.trim().is_empty())),
        }
    }

    /// The value of `prompt`, or of `question`, with its name.
    pub fn named_prompt(&self) -> Outcome<Option<(&'static str, &'a Value)>> {
        match (self.get("prompt"), self.get("question")) {
            (Some(prompt), Some(question)) if prompt != question => {
                Err("`prompt` and `question` differ; keep one of them".to_owned())
            }
            (Some(prompt), _) => Ok(Some(("prompt", prompt))),
            (None, question) => Ok(question.map(|question| ("question", question))),
        }
    }

    /// A column of the prompt that is present and null.
    pub fn null_prompt(&self) -> Option<&'static str> {
        ["prompt", "question"].into_iter().find(|name| self.map.get(*name).is_some_and(Value::is_null))
    }

    /// `prompt` or `question` (text or messages), or a conversation.
    pub fn prompt(&self, format: Format) -> Outcome<PromptInput> {
        match self.named_prompt()? {
            Some((name, value)) => self.prompt_input(value, name),
            None => match self.conversation() {
                Some((name, value)) => self.prompt_input(value, name),
                None => match self.get("messages") {
                    Some(value) => self.prompt_input(value, "messages"),
                    None => Err(self.missing("prompt", format)),
                },
            },
        }
    }

    /// A completion: a string, or a list with one message of the assistant.
    pub fn answer(&self, value: &Value, name: &str) -> Outcome<String> {
        if let Some(text) = value.as_str() {
            return Ok(text.to_owned());
        }
        match self.messages(value, name)?.as_slice() {
            [one] if one.role == "assistant" => Ok(one.content.clone()),
            _ => Err(format!("`{name}` must be a string or one message of the assistant")),
        }
    }
}

fn root(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

/// The type of a value, for error messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The format that the line's fields match.
pub(super) fn looks_like(fields: &Map<String, Value>) -> Option<Format> {
    let has = |name: &str| fields.get(name).is_some_and(|v| !v.is_null());
    let dialogue = |name: &str| {
        fields.get(name).and_then(Value::as_str).is_some_and(|text| text.trim_start().starts_with("Human:"))
    };
    if has("message_tree_id") || fields.get("prompt").is_some_and(Value::is_object) {
        Some(Format::Oasst)
    } else if has("completions") {
        Some(Format::Comparisons)
    } else if has("chosen") && has("rejected") {
        Some(if dialogue("chosen") { Format::Hh } else { Format::Trl })
    } else if has("completion") {
        Some(Format::Demonstrations)
    } else if has("prompt") || has("messages") || has("conversations") {
        Some(Format::Prompts)
    } else {
        None
    }
}

/// The error message for invalid JSON. Of a single line only the column is given, because the caller knows the line's
/// number.
pub(super) fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    match (error.line(), error.column()) {
        (0 | 1, column) => format!("not JSON: {what} at column {column}"),
        (line, column) => format!("not JSON: {what} at line {line} column {column}"),
    }
}

/// Parses a line. Duplicate keys are refused.
pub(super) fn parse_json(text: &str) -> Outcome<Value> {
    let mut json = serde_json::Deserializer::from_str(text);
    let Strict(value) = Strict::deserialize(&mut json).map_err(|e| not_json(&e))?;
    json.end().map_err(|_| {
        "more than one JSON value on the line; one line holds one (curl -d removes line ends: use --data-binary)"
            .to_owned()
    })?;
    Ok(value)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Strict(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key `{key}` occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
