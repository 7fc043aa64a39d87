//! The rows of labeling projects.

use super::{Admin, List, Route, delete, get, post};
use crate::domain::{Project, ProjectMember};
use crate::http::admin::projects;
use crate::service::projects::{CountedProject, ProjectChange};

/// The administrators' routes of labeling projects.
pub(super) fn table() -> Vec<Route> {
    vec![
        get("/admin/projects", Admin, "Labeling projects, with the amounts of their data", projects::list)
            .returns::<List<CountedProject>>(200),
        post("/admin/projects", Admin, "Create a labeling project", projects::create)
            .body::<projects::NewProject>()
            .returns::<Project>(201),
        post("/admin/projects/{id}", Admin, "Rename, archive or restore a project", projects::change)
            .body::<ProjectChange>()
            .returns::<Project>(200),
        get("/admin/projects/{id}/members", Admin, "Who labels in a project", projects::members)
            .returns::<List<ProjectMember>>(200),
        post("/admin/projects/{id}/members", Admin, "Add a member, or change their quota", projects::put_member)
            .body::<projects::NewMember>()
            .returns::<ProjectMember>(200),
        delete("/admin/projects/{id}/members/{labeler}", Admin, "Remove a member", projects::remove_member)
            .returns_nothing(),
    ]
}
