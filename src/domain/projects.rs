//! Labeling projects and their members.

use serde::{Deserialize, Serialize};

use super::{LabelerId, Micros, ProjectId};

/// Id of the project that every installation has.
const FIRST: &str = "default";

impl ProjectId {
    /// The project that every installation has.
    pub fn first() -> Self {
        FIRST.into()
    }

    /// Whether this is the project that every installation has.
    pub fn is_first(&self) -> bool {
        self.as_str() == FIRST
    }
}

/// A labeling project: prompts and sets with guidelines, a rubric and people of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Project {
    pub id: ProjectId,
    /// Unique.
    pub name: String,
    /// µs UTC; 0 for the project that every installation has.
    pub created: Micros,
    /// Since when nothing is handed out from it (µs UTC); null for a project in use.
    pub archived: Option<Micros>,
}

/// A person who labels in a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProjectMember {
    pub labeler_id: LabelerId,
    /// Judgments a day in this project; null = the person's own quota, 0 = no limit.
    pub daily_quota: Option<i64>,
    /// µs UTC.
    pub created: Micros,
}
