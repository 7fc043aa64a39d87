//! Versions of rubrics, and which of them is active.

use crate::store::sql::{read, write};
use crate::store::views::Rubrics;
use crate::store::*;

impl Rubrics<'_> {
    /// Stores a version; one that is there stays as it is.
    pub async fn put(self, version: RubricVersion) -> Result<()> {
        write!(self.0, |tx| rubrics::put(tx, &version))
    }

    /// All versions, newest first.
    pub async fn list(self) -> Result<Vec<RubricVersion>> {
        read!(self.0, |c| rubrics::list(c))
    }

    /// One version. `NotFound` when it was never stored.
    pub async fn get(self, version: &str) -> Result<RubricVersion> {
        read!(self.0, |c| rubrics::get(c, version))
    }

    /// Activates a version in a project, or none. `NotFound` for one that was never stored.
    pub async fn activate(self, project: &ProjectId, version: Option<&str>, by: &LabelerId, now: Micros) -> Result<()> {
        write!(self.0, project = project.clone(), version = version.map(str::to_owned), by = by.clone() =>
            |tx| rubrics::activate(tx, &project, version.as_deref(), &by, now))
    }

    /// The rubric that is active in a project; that of the first project where none was activated or deactivated.
    pub async fn active(self, project: &ProjectId) -> Result<Option<Rubric>> {
        read!(self.0, |c| rubrics::active(c, project))
    }
}
