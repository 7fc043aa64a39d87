//! Labeling projects and their members.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Projects;
use crate::store::*;

impl Projects<'_> {
    /// Stores a project. `Conflict` when another has its name.
    pub async fn put(self, project: Project) -> Result<()> {
        write!(self.0, |tx| projects::put(tx, &project))
    }

    /// Changes name and archiving of a stored project. `Conflict` when another has its name.
    pub async fn change(self, project: Project) -> Result<()> {
        write!(self.0, |tx| projects::change(tx, &project))
    }

    /// All projects, archived ones included: the first, then by time.
    pub async fn list(self) -> Result<Vec<Project>> {
        read!(self.0, |c| projects::list(c))
    }

    /// Amounts of the data of every project, or of one, in the order of [`Projects::list`].
    pub async fn counts(self, only: Option<&ProjectId>) -> Result<Vec<(ProjectId, ProjectCounts)>> {
        read!(self.0, |c| projects::counts(c, only))
    }

    /// The members of a project, by time.
    pub async fn members(self, id: &ProjectId) -> Result<Vec<ProjectMember>> {
        read!(self.0, |c| projects::members(c, id))
    }

    /// Adds a member, or changes a member's quota. `NotFound` for an unknown project or labeler.
    pub async fn put_member(self, id: &ProjectId, member: ProjectMember) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| projects::put_member(tx, &id, &member))
    }

    /// Removes a member. `NotFound` when the labeler is not a member.
    pub async fn remove_member(self, id: &ProjectId, labeler: &LabelerId) -> Result<()> {
        write!(self.0, id = id.clone(), labeler = labeler.clone() => |tx| projects::remove_member(tx, &id, &labeler))
    }

    /// The projects that the person labels in at `now`, without archived ones: those of which they are a member.
    /// Reviewers and administrators label in all projects; labelers who are a member of none label in the first. Quotas
    /// count judgments since `since`.
    pub async fn of_labeler(self, labeler: &LabelerId, now: Micros, since: Micros) -> Result<Vec<LabelerProject>> {
        read!(self.0, |c| projects::of_labeler(c, labeler, now, since))
    }

    /// The project of a set.
    pub async fn of_set(self, id: &SetId) -> Result<ProjectId> {
        read!(self.0, |c| projects::of_set(c, id))
    }
}
