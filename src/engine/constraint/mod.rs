//! Texts that must have a form: JSON, a regular expression, one of several choices, or a grammar. The form is
//! compiled once for each request on a blocking thread; then every sample follows it with its own [`Guide`], which
//! says before each draw which tokens may come next. Nothing is drawn twice, and log-probs stay those of the model.

mod compile;
mod gbnf;
mod guide;

pub(super) use compile::Compiler;
pub(super) use guide::Guide;

use serde_json::Value;

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The request's field that asked for it, for errors.
    pub field: &'static str,
    pub form: Form,
}

/// The forms that can be asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that this schema (draft 2020-12) accepts.
    JsonSchema(Value),
    /// A text that matches as a whole, in the syntax of Rust's `regex` crate.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// GBNF as llama.cpp writes it (`root ::= …`), or llguidance's kind of Lark (`start: …`).
    Grammar(String),
}

impl Form {
    /// How stored completions name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Choice(_) => "choice",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Bytes that have to be read to compile it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|c| c.len() + 1).sum(),
        }
    }
}
