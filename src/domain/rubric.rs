//! Rubrics: the dimensions on which labelers rate each completion of a set, and the ratings that they give.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::CompletionId;

/// A short text by language tag, such as `en` or `zh`.
pub type Texts = BTreeMap<String, String>;

name_enum!(
    /// How a dimension is rated.
    DimensionKind {
        /// A number from 1 to the dimension's `points`.
        Likert = "likert",
        /// Yes or no.
        Flag = "flag",
        /// Any number of short texts.
        Tags = "tags",
    }
);

name_enum!(
    /// Whether labelers write the reasons for their ranking.
    RationaleUse {
        /// The page does not ask for them.
        Off = "off",
        Optional = "optional",
        /// A ranking without them is refused.
        Required = "required",
    }
);

/// One thing that is rated of every completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dimension {
    /// Names the dimension in ratings, exports and figures: 1 to 64 of a-z, 0-9 and _.
    pub key: String,
    /// What labelers read, by language.
    pub label: Texts,
    pub kind: DimensionKind,
    /// A ranking must rate every completion on it. A flag that is not required and not set counts as no.
    #[serde(default)]
    pub required: bool,
    /// Of `likert`: 2 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<i64>,
    /// Of `likert`: what 1 means, by language.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub low: Texts,
    /// Of `likert`: what the highest number means, by language.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub high: Texts,
    /// Of `tags`: tags that the page offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suggestions: Vec<String>,
}

/// What a rubric says. Its version is a hash of it, so a rubric cannot be changed, only followed by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RubricDefinition {
    pub name: String,
    /// In the order in which they are shown.
    pub dimensions: Vec<Dimension>,
    #[serde(default = "optional")]
    pub rationale: RationaleUse,
}

fn optional() -> RationaleUse {
    RationaleUse::Optional
}

/// A rubric with its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Rubric {
    /// First 12 hex digits of the SHA-256 of the definition.
    pub version: String,
    pub definition: RubricDefinition,
}

/// A labeler's rating of one completion on one dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rating {
    pub completion_id: CompletionId,
    /// Key of the dimension.
    pub dimension: String,
    pub value: RatingValue,
}

/// A value of the kind of its dimension: a number, true or false, or a list of tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum RatingValue {
    Flag(bool),
    Likert(i64),
    Tags(Vec<String>),
}

impl RatingValue {
    /// The kind of dimension that has such values.
    pub fn kind(&self) -> DimensionKind {
        match self {
            Self::Flag(_) => DimensionKind::Flag,
            Self::Likert(_) => DimensionKind::Likert,
            Self::Tags(_) => DimensionKind::Tags,
        }
    }
}

/// Rank completions by their ratings on one dimension of a rubric, instead of by the labeler's ranking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByRating {
    /// Version of the rubric; what was rated by others is left out.
    pub rubric: String,
    /// Key of a `likert` or `flag` dimension.
    pub dimension: String,
    /// The lowest number, or no, is best. Default: the highest number, or yes.
    #[serde(default)]
    pub lower_is_better: bool,
}

/// Name of the labelers' ranking beside the dimensions of a rubric, of which a reward model has a head each.
pub const RANKING: &str = "ranking";

/// The ratings of one completion, by key of the dimension.
pub type Ratings = BTreeMap<String, RatingValue>;
