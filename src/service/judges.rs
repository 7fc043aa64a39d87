//! Language models that rank sets as labelers: their agreement with people, and the sets that they doubt. A job of kind
//! `judge` makes the rankings.

use std::collections::HashMap;

use serde::Serialize;

use super::quality::{Scope, blocking, facts};
use super::{Result, Services};
use crate::domain::{ModelVersionId, ProjectId, Rubric, SetKind};
use crate::eval::quality::judges::{self, JudgeFigures, Rated, SetUrgency};
use crate::eval::quality::statistics::Resampling;
use crate::store::JudgedFilter;

/// Agreement of judges with people.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct JudgesReport {
    /// One entry for each judge and each text about good answers that it was given.
    pub judges: Vec<JudgeFigures>,
    /// Names of the model versions in the figures, by id.
    pub versions: HashMap<ModelVersionId, String>,
    pub resampling: Resampling,
}

/// Agreement of each judge with people on the sets that both ranked. Rankings by judges count whenever they were made;
/// `days` restricts those of people.
///
/// # Errors
/// `BadInput` for too many replicates.
pub async fn report(services: &Services, scope: Scope) -> Result<JudgesReport> {
    let resampling = scope.resampling(super::quality::REPLICATES)?;
    let kind = scope.kind.unwrap_or(SetKind::Normal);
    let labelers = services.store.model_judgments().labelers().await?;
    let of_people = scope.of(services, Some(kind));
    let of_models = JudgedFilter { since: None, ..of_people.clone() };
    let judgments = services.store.model_judgments().all(&of_models).await?;
    let ratings = services.store.judgments().ratings(&of_people).await?;
    let rubrics: Vec<Rubric> = services.store.rubrics().list().await?.into_iter().map(|v| v.rubric).collect();
    let facts = facts(services, &scope).await?;
    let judges = blocking(move || {
        let rated = Rated { rubrics: &rubrics, ratings: &ratings };
        judges::figures(&facts, &judgments, &labelers, rated, resampling)
    })
    .await?;
    let names = services.store.models().list().await?.into_iter().map(|m| (m.id, m.name));
    let is_used = |id: &ModelVersionId| judges.iter().any(|j| j.versions.iter().any(|v| v.model_version_id == *id));
    let versions = names.filter(|(id, _)| is_used(id)).collect();
    Ok(JudgesReport { judges, versions, resampling })
}

/// What judges said about ordinary sets of all projects or one, the most urgent first.
pub(super) async fn urgencies(services: &Services, project: Option<&ProjectId>) -> Result<Vec<SetUrgency>> {
    let scope = Scope { kind: Some(SetKind::Normal), project: project.cloned(), ..Scope::default() };
    let judgments = services.store.model_judgments().all(&scope.of(services, scope.kind)).await?;
    let facts = facts(services, &scope).await?;
    let mut found = blocking(move || judges::urgencies(&facts, &judgments)).await?;
    let urgency = |one: &SetUrgency| one.doubt.max(one.disagreement.unwrap_or(0.0));
    found.sort_by(|a, b| urgency(b).total_cmp(&urgency(a)));
    Ok(found)
}
