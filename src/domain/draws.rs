//! The report of a draw of sets.

use serde::{Deserialize, Serialize};

/// Counts of a draw: why fewer sets than requested were made, and how their answers were generated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DrawReport {
    /// Stored prompts that match the request's filter. For `disagreement`: sets that were ranked.
    pub found: i64,
    /// Left out: the prompt already has a set, and the request does not allow another.
    pub has_set: i64,
    /// Left out: the prompt is from a request, and `privacy.learn_from_requests` is off.
    pub requests: i64,
    /// Left out: raw text given to `/v1/completions`, which is used only when requested by source.
    pub raw_text: i64,
    /// Left out: fewer than two answers with text.
    pub few_answers: i64,
    /// Left out: all answers are equal, even after resampling.
    pub equal_answers: i64,
    /// Left out: the prompt is too long for the model's context.
    pub too_long: i64,
    /// `disagreement` left out: people agree on the set, too few have ranked it, it is still open for judgments, or a
    /// reviewer has decided it.
    pub agreed: i64,
    pub single: i64,
    pub waiting: i64,
    pub settled: i64,
    /// Sets with fewer answers than requested, because there were no more different ones.
    pub smaller: i64,
    /// Numbers of generated answers, of answers truncated at `max_tokens`, and of answers that replaced equal or empty
    /// ones.
    pub answers: i64,
    pub cut_off: i64,
    pub redrawn: i64,
    /// Pieces of text received so far, about one per token: the progress of a slow draw.
    pub pieces: i64,
    /// How the answers are sampled; absent where none are.
    pub max_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// Of a tournament: the versions by strength, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<TournamentPlace>,
    /// Of a tournament: whether the order has the requested certainty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub certain: bool,
}

/// A version's place in a tournament.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TournamentPlace {
    pub name: String,
    /// Strength in Elo points, 0 in the middle.
    pub elo: f64,
    /// Comparisons with the others.
    pub comparisons: i64,
    /// Probability of being better than the next place; null for the last one.
    pub better_than_next: Option<f64>,
}
