//! Conversations of labelers with the model, and spans of text that labelers mark as wrong.

use serde::{Deserialize, Serialize};

use super::{CompletionId, ConversationId, JudgmentId, LabelerId, Micros, SetId};

/// Comparison sets that follow each other: each turn's prompt is the prompt of the turn before, one of its completions
/// and the labeler's next message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Conversation {
    pub id: ConversationId,
    pub labeler_id: LabelerId,
    pub created: Micros,
    /// In their order, at least two.
    pub turns: Vec<ConversationTurn>,
}

/// One comparison set of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct ConversationTurn {
    /// Counts from 1.
    pub turn: i64,
    pub set_id: SetId,
    /// The completion of the turn before that this turn's prompt contains; null in the first turn.
    pub continued: Option<CompletionId>,
    /// The labeler's latest judgment of the set; null while there is none.
    pub judgment_id: Option<JudgmentId>,
    pub created: Micros,
}

/// A span of a completion that a labeler marked as wrong. Positions are in Unicode scalar values of the stored text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub completion_id: CompletionId,
    /// Position of the first character, from 0.
    pub start: i64,
    /// Position behind the last character.
    pub end: i64,
    /// What is wrong there.
    #[serde(default)]
    pub note: Option<String>,
}

/// A span of a completion in a data file. Positions are in Unicode scalar values of the completion's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSpan {
    pub start: i64,
    pub end: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
