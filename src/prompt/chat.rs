//! A model's chat template (Jinja), rendered as in Hugging Face transformers, with bounded work.
//!
//! User text must never become a special token, but templates may trim, split and compare it, so it has to be part of
//! the rendering. A mark, a character that occurs nowhere else, is inserted at every position where user text could be
//! read as (part of) a special token. After rendering, the marks are removed, and the tokenizer recognises no special
//! token across their positions. Text without such positions has no marks: it renders and tokenizes exactly as in
//! Hugging Face transformers.

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};

use super::conversation::{Conversation, Turn};
use super::jinja;
use crate::domain::Message;
use crate::tokenizer::{Specials, Tokenizer, TokenizerError};

/// Limit of the work for one rendering, in minijinja's units (instructions, and 64 bytes of text each).
const FUEL: u64 = 2_000_000;
/// Most bytes of a template; published ones have a few kilobytes.
const MOST_SOURCE: usize = 1 << 20;

/// Why messages could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The model's template cannot be used at all.
    #[error("the model's chat template cannot be used: {0}; prompts without a template (/v1/completions) work")]
    Template(String),
    /// The template refuses these messages (`raise_exception`), or rendering them fails.
    #[error("messages: {0}")]
    Messages(String),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A validated template; rendering takes no lock.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// `bos_token`, `pad_token`, … as the tokenizer's files name them.
    named: Vec<(String, Value)>,
    /// Texts that users must not be able to write as tokens.
    specials: Vec<String>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Byte offsets in `text`, ascending, across which no special token may be recognised.
    pub breaks: Vec<usize>,
}

impl ChatTemplate {
    /// Checks the template's syntax. The names of the special tokens, which templates write and users must not,
    /// come from the tokenizer.
    ///
    /// # Errors
    /// `Template` when the template is not supported Jinja.
    pub fn new(source: &str, tokenizer: Option<&Tokenizer>) -> Result<Self, ChatError> {
        if source.len() > MOST_SOURCE {
            return Err(ChatError::Template(format!("it has {} bytes, at most {MOST_SOURCE} are read", source.len())));
        }
        environment(source, 0)?;
        let named = tokenizer.map(named_tokens).unwrap_or_default();
        let specials = tokenizer.map(|t| t.special_tokens().map(str::to_owned).collect()).unwrap_or_default();
        Ok(Self { source: source.to_owned(), named, specials })
    }

    /// Renders messages; `open_turn` adds the beginning of the assistant's answer.
    ///
    /// # Errors
    /// `Messages` for an unknown role, when the template raises an exception, and when it runs too long.
    pub fn render(&self, messages: &[Message], open_turn: bool) -> Result<Rendered, ChatError> {
        for (i, message) in messages.iter().enumerate() {
            if !matches!(message.role.as_str(), "system" | "user" | "assistant") {
                let problem = format!("messages[{i}].role must be system, user or assistant, found {:?}", message.role);
                return Err(ChatError::Messages(problem));
            }
        }
        let turns = messages.iter().cloned().map(Turn::from).collect();
        self.render_conversation(&Conversation { turns, ..Conversation::default() }, open_turn)
    }

    /// Renders a conversation with tools and the other variables of newer models' templates.
    ///
    /// # Errors
    /// `Messages` when the template raises an exception or runs too long. Roles are not checked.
    pub fn render_conversation(&self, conversation: &Conversation, open_turn: bool) -> Result<Rendered, ChatError> {
        let read = conversation.as_templates_read_it(&self.source);
        let written = read.to_string();
        let mark = self.mark(&written)?;
        let bytes = written.len();
        let read = marked_value(read, &self.specials, mark);
        let environment = environment(&self.source, bytes as u64)?;
        let template = environment.get_template("chat").map_err(|e| ChatError::Template(e.to_string()))?;
        // Variables that a request cannot set are none, not undefined, because templates test `tools is not none`.
        let rest = context! {
            messages => Value::from(Serde(&read["messages"])),
            add_generation_prompt => open_turn,
            tools => Value::from(Serde(&read["tools"])),
            documents => Value::from(()),
        };
        let named: std::collections::BTreeMap<String, Value> = self.named.iter().cloned().collect();
        let own = Value::from(Serde(&read["kwargs"]));
        let values = context! { ..rest, ..context! { ..Value::from(named), ..own } };
        let text = template
            .render(values)
            .map_err(|e| ChatError::Messages(format!("the chat template cannot render them: {}", explained(&e))))?;
        Ok(without_marks(&text, mark))
    }

    /// The token ids of the rendered messages. No begin token is added: templates write their own.
    pub fn encode(&self, messages: &[Message], open_turn: bool, tokenizer: &Tokenizer) -> Result<Vec<u32>, ChatError> {
        let rendered = self.render(messages, open_turn)?;
        Ok(tokenizer.encode_with(&rendered.text, false, Specials::Between(&rendered.breaks))?)
    }

    /// The token ids of a rendered conversation, and the rendered text.
    ///
    /// # Errors
    /// When rendering or tokenizing fails.
    pub fn encode_conversation(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<u32>, String), ChatError> {
        let rendered = self.render_conversation(conversation, true)?;
        let ids = tokenizer.encode_with(&rendered.text, false, Specials::Between(&rendered.breaks))?;
        Ok((ids, rendered.text))
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A character that occurs neither in the conversation nor in the template. Unicode reserves 32 code points here
    /// that are never text.
    fn mark(&self, conversation: &str) -> Result<char, ChatError> {
        let used = |c: char| self.source.contains(c) || conversation.contains(c);
        ('\u{FDD0}'..='\u{FDEF}')
            .find(|c| !used(*c))
            .ok_or_else(|| ChatError::Messages("they use every code point that Unicode reserves for marks".into()))
    }
}

/// Names of fields that templates read, and that are not user text.
const FORM: [&str; 17] = [
    "messages",
    "tools",
    "kwargs",
    "role",
    "content",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "name",
    "id",
    "function",
    "arguments",
    "parameters",
    "type",
    "description",
    "properties",
    "required",
];

/// A value with marks in all its texts, including names of fields, except roles and types, which were validated.
fn marked_value(value: serde_json::Value, specials: &[String], mark: char) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Json::String(text) => Json::String(marked(&text, specials, mark)),
        Json::Array(items) => items.into_iter().map(|item| marked_value(item, specials, mark)).collect(),
        Json::Object(fields) => {
            let one = |(name, value): (String, Json)| {
                let word = value.as_str().is_some_and(|v| v.bytes().all(|b| b.is_ascii_lowercase()));
                let value = match name.as_str() {
                    "role" | "type" if word => value,
                    _ => marked_value(value, specials, mark),
                };
                let name = if FORM.contains(&name.as_str()) { name } else { marked(&name, specials, mark) };
                (name, value)
            };
            Json::Object(fields.into_iter().map(one).collect())
        }
        other => other,
    }
}

/// `content` with the mark at every position where it could be read as a special token: inside each one that it
/// contains, and at its ends, where it could complete one together with the template's text.
fn marked(content: &str, specials: &[String], mark: char) -> String {
    let mut places = BTreeSet::new();
    // Templates trim: the ends that count are those of the text without white space around it.
    let start = content.len() - content.trim_start().len();
    let end = content.trim_end().len();
    for special in specials {
        let Some(first) = special.chars().next().map(char::len_utf8) else { continue };
        let mut from = 0;
        while let Some(at) = content.get(from..).and_then(|rest| rest.find(special.as_str())) {
            places.insert(from + at + first);
            from += at + first;
        }
        if start < end {
            let inner = &content[start..end];
            let cuts = || special.char_indices().map(|(at, _)| at).skip(1);
            if cuts().any(|at| inner.ends_with(&special[..at])) {
                places.insert(end);
            }
            if cuts().any(|at| inner.starts_with(&special[at..])) {
                places.insert(start);
            }
        }
    }
    let mut out = String::with_capacity(content.len() + places.len() * mark.len_utf8());
    let mut done = 0;
    for place in places {
        out.push_str(&content[done..place]);
        out.push(mark);
        done = place;
    }
    out.push_str(&content[done..]);
    out
}

/// Removes the marks and returns their positions.
fn without_marks(text: &str, mark: char) -> Rendered {
    let mut rendered = Rendered { text: String::with_capacity(text.len()), breaks: Vec::new() };
    for (i, part) in text.split(mark).enumerate() {
        if i > 0 {
            rendered.breaks.push(rendered.text.len());
        }
        rendered.text.push_str(part);
    }
    rendered
}

/// The special tokens' variables: every `…_token` in the tokenizer's files, and the additional ones.
fn named_tokens(tokenizer: &Tokenizer) -> Vec<(String, Value)> {
    let Some(config) = tokenizer.config().and_then(serde_json::Value::as_object) else { return Vec::new() };
    let mut named: Vec<(String, Value)> = config
        .keys()
        .filter(|key| key.ends_with("_token"))
        .filter_map(|key| Some((key.clone(), Value::from(tokenizer.named_token(key)?))))
        .collect();
    let text = |v: &serde_json::Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_owned);
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        match config.get(key) {
            Some(serde_json::Value::Array(items)) => {
                let items: Vec<Value> = items.iter().filter_map(text).map(Value::from).collect();
                named.push((key.to_owned(), Value::from(items)));
            }
            Some(serde_json::Value::Object(map)) => {
                named.extend(map.iter().filter_map(|(name, token)| Some((name.clone(), Value::from(text(token)?)))));
            }
            _ => {}
        }
    }
    named
}

/// The message of a template error, with the line of the template.
fn explained(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line} of the template)"))
}

/// The environment of templates in transformers; `extra` is additional fuel for long messages.
fn environment(source: &str, extra: u64) -> Result<Environment<'static>, ChatError> {
    let bad = |e: minijinja::Error| ChatError::Template(explained(&e));
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?);
    environment.set_fuel(Some(FUEL.saturating_add(extra)));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja::install(&mut environment, "chat", source).map_err(bad)?;
    Ok(environment)
}
