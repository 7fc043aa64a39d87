//! What a draw of sets reports.

use serde::{Deserialize, Serialize};

/// What a draw found, with counts: why fewer sets than wanted were made, and how their answers were written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DrawReport {
    /// Stored prompts that the request's filter fits. For `disagreement`: sets that were ranked.
    pub found: i64,
    /// Left out: the prompt has a set already, and the request does not ask for another.
    pub has_set: i64,
    /// Left out: the prompt came in as a request, and `privacy.learn_from_requests` is off.
    pub requests: i64,
    /// Left out: raw text given to `/v1/completions`, which is drawn for only when asked for by source.
    pub raw_text: i64,
    /// Left out: fewer than two answers with text.
    pub few_answers: i64,
    /// Left out: all answers are equal, also after they were drawn again.
    pub equal_answers: i64,
    /// Left out: the prompt is too long for the model's context.
    pub too_long: i64,
    /// `disagreement` left out: people agree on the set, too few have ranked it, it waits for a judgment
    /// anyway, or a reviewer has settled it.
    pub agreed: i64,
    pub single: i64,
    pub waiting: i64,
    pub settled: i64,
    /// Sets made with fewer answers than asked for, because there were no more different ones.
    pub smaller: i64,
    /// Answers written, those of them cut off at `max_tokens`, and those written in place of equal or empty
    /// ones.
    pub answers: i64,
    pub cut_off: i64,
    pub redrawn: i64,
    /// Pieces of text received so far, about one a token: shows that a slow draw moves.
    pub pieces: i64,
    /// How the answers are drawn; absent where none are.
    pub max_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
}
