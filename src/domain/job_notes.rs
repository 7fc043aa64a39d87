//! Names, notes and tags of jobs.

use serde::{Deserialize, Serialize};

use super::LabelerId;

/// Name, note and tags of a job, and who queued it. They do not affect the computation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobNotes {
    /// Shown instead of the recipe's name.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub note: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    /// The labeler who queued it; `None` for jobs of older releases.
    #[serde(default)]
    pub created_by: Option<LabelerId>,
}
