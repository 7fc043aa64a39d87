//! Constrained decoding: texts that must be JSON, match a regular expression or a grammar, or be one of several
//! choices. A constraint is compiled once for each request, on a blocking thread. Every sample has its own [`Guide`],
//! which computes the mask of allowed tokens before each draw. Reported log-probs are those of the model without the
//! mask.

mod compile;
mod gbnf;
mod guide;

pub(super) use compile::Compiler;
pub(super) use guide::Guide;

use serde_json::Value;

/// A constraint on the text of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The field of the request that contains it, for error messages.
    pub field: &'static str,
    pub kind: ConstraintKind,
}

/// The kinds of constraints.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstraintKind {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that this schema (draft 2020-12) accepts.
    JsonSchema(Value),
    /// A text that matches as a whole, in the syntax of Rust's `regex` crate.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llama.cpp's GBNF (`root ::= …`) or in llguidance's dialect of Lark (`start: …`).
    Grammar(String),
}

impl ConstraintKind {
    /// The name in stored completions.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Choice(_) => "choice",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Size of the definition in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|c| c.len() + 1).sum(),
        }
    }
}

/// The beginning of an error of llguidance, without the parser state that it appends.
fn readable(error: &str) -> String {
    let text = error.split("<non-verbose/>").next().unwrap_or(error);
    let text = text.split("<state>").next().unwrap_or(text).trim();
    let start: String = text.chars().take(400).collect();
    format!("it cannot be followed: {start}")
}
