//! Quality of the human judgments: agreement, labelers, consensus, the table of versions. Reads the data once and
//! computes on a blocking thread.

use std::collections::HashMap;

use serde::Serialize;

use super::{Result, ServiceError, Services, bad_input};
use crate::domain::time;
use crate::domain::{GivenRating, Micros, ModelVersionId, ProjectId, RubricDefinition, SetKind};
use crate::eval::quality::bradley_terry::{self, Cell, Options, Standing};
use crate::eval::quality::facts::Author;
use crate::eval::quality::ratings::{self, DimensionFigures};
use crate::eval::quality::{self, Facts, FactsBuilder, Figure, Report, Resampling, SetConsensus};
use crate::store::JudgedFilter;

/// Default number of bootstrap replicates: enough for two stable digits of a 95 % bound.
pub(super) const REPLICATES: usize = 1000;
const MAX_REPLICATES: usize = 10_000;
/// Default for the table of versions, where each replicate refits a model.
const TABLE_REPLICATES: usize = 300;

/// The judgments in the figures, and how their intervals are computed.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Sets whose judgments are compared; `Normal` when absent. Sets with known answers measure accuracy only.
    pub kind: Option<SetKind>,
    pub days: Option<u32>,
    /// Only sets of this project.
    pub project: Option<ProjectId>,
    pub replicates: Option<usize>,
    pub seed: Option<u64>,
}

impl Scope {
    /// The judgments of sets of `kind`.
    pub(super) fn of(&self, services: &Services, kind: Option<SetKind>) -> JudgedFilter {
        let since = self.days.map(|days| time::before(services.now(), days, time::DAY));
        JudgedFilter { kind, since, project: self.project.clone() }
    }

    pub(super) fn resampling(&self, default: usize) -> Result<Resampling> {
        let replicates = self.replicates.unwrap_or(default);
        if replicates > MAX_REPLICATES {
            return Err(bad_input("replicates", format!("at most {MAX_REPLICATES}")));
        }
        Ok(Resampling { replicates, seed: self.seed.unwrap_or(0) })
    }
}

/// The judgments in scope, with dense indices. Each is added as the database sends it, which takes microseconds.
pub(super) async fn facts(services: &Services, scope: &Scope) -> Result<Facts> {
    let labelers = services.store.people().list().await?;
    let mut builder = FactsBuilder::new(&labelers);
    services.store.sets().each_judged(&scope.of(services, scope.kind), |judgment| builder.add(&judgment)).await?;
    let gold = services.store.sets().all_gold().await?;
    Ok(builder.finish(&gold).of(scope.kind.unwrap_or(SetKind::Normal)))
}

/// Runs a computation on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(compute).await.map_err(|e| ServiceError::Internal(format!("figures: {e}")))
}

/// Agreement, labelers, length bias.
pub async fn report(services: &Services, scope: Scope) -> Result<Report> {
    let resampling = scope.resampling(REPLICATES)?;
    let facts = facts(services, &scope).await?;
    let mut report = blocking(move || quality::report(&facts, resampling)).await?;
    // Built-in labelers and inactive people are listed only if they have judgments.
    report.labelers.retain(|l| l.judgments > 0 || (l.active && !["admin", "import"].contains(&l.labeler_id.as_str())));
    Ok(report)
}

/// Consensus on every ranked set, the most disputed first. Sets with known answers are left out unless their kind is
/// requested.
pub async fn consensus(services: &Services, scope: Scope) -> Result<Vec<SetConsensus>> {
    let scope = Scope { kind: scope.kind.or(Some(SetKind::Normal)), ..scope };
    let facts = facts(services, &scope).await?;
    let mut sets = blocking(move || quality::set_consensus(&facts)).await?;
    sets.sort_by(|a, b| b.disagreement.unwrap_or(-1.0).total_cmp(&a.disagreement.unwrap_or(-1.0)));
    Ok(sets)
}

/// Figures of the ratings, by version of the rubric: what was said under different versions is never put together.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct RatingsReport {
    /// Those with ratings in scope and the active one; the newest first.
    pub rubrics: Vec<RubricFigures>,
    pub resampling: Resampling,
}

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct RubricFigures {
    pub version: String,
    pub name: String,
    /// When the version was stored, µs UTC.
    pub created: Micros,
    pub active: bool,
    /// In the order of the rubric.
    pub dimensions: Vec<DimensionFigures>,
}

/// Means, shares and agreement of each dimension of each rubric. Active is the rubric of the project in scope; of the
/// first project where there is none in scope.
pub async fn ratings(services: &Services, scope: Scope) -> Result<RatingsReport> {
    let resampling = scope.resampling(TABLE_REPLICATES)?;
    let which = scope.of(services, Some(scope.kind.unwrap_or(SetKind::Normal)));
    let given = services.store.judgments().ratings(&which).await?;
    let project = scope.project.unwrap_or_else(ProjectId::first);
    let (versions, active) = super::rubrics::versions(services, &project).await?;
    let active = active.map(|rubric| rubric.version);
    blocking(move || {
        let mut by_version: HashMap<&str, Vec<&GivenRating>> = HashMap::new();
        for one in &given {
            by_version.entry(&one.rubric_version).or_default().push(one);
        }
        let mut rubrics = Vec::new();
        for stored in &versions {
            let (version, definition): (&String, &RubricDefinition) =
                (&stored.rubric.version, &stored.rubric.definition);
            let is_active = active.as_ref() == Some(version);
            let said = by_version.remove(version.as_str()).unwrap_or_default();
            if said.is_empty() && !is_active {
                continue;
            }
            let dimensions = definition.dimensions.iter();
            rubrics.push(RubricFigures {
                version: version.clone(),
                name: definition.name.clone(),
                created: stored.created,
                active: is_active,
                dimensions: dimensions.map(|d| ratings::figures(d, &said, resampling)).collect(),
            });
        }
        RatingsReport { rubrics, resampling }
    })
    .await
}

/// One author of the table: a model version, or `human` for the answers people wrote.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Contestant {
    pub model_version_id: Option<ModelVersionId>,
    pub name: String,
    #[serde(flatten)]
    pub standing: Standing,
}

/// The table of versions by what people preferred, best first; `wins` is in the same order.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct VersionTable {
    pub versions: Vec<Contestant>,
    pub wins: Vec<Vec<Cell>>,
    pub tie_rate: f64,
    /// Log-odds that a text one standard deviation longer gains, at most; only when length-controlled.
    pub length_effect: Option<Figure>,
    pub length_controlled: bool,
    pub comparisons: usize,
    pub prompts: usize,
    pub resampling: Resampling,
}

/// Bradley–Terry with ties over all comparisons of different versions.
pub async fn versions(services: &Services, scope: Scope, length_controlled: bool) -> Result<VersionTable> {
    let resampling = scope.resampling(TABLE_REPLICATES)?;
    let facts = facts(services, &scope).await?;
    let names: HashMap<ModelVersionId, String> =
        services.store.models().list().await?.into_iter().map(|m| (m.id, m.name)).collect();
    let options = Options { covariate: length_controlled, ..Options::default() };
    blocking(move || {
        let mut matches = facts.matches();
        // Authors without comparisons are not in the table.
        let mut met: Vec<usize> = matches.iter().flat_map(|m| [m.a, m.b]).collect();
        met.sort_unstable();
        met.dedup();
        let place = |author: usize| met.binary_search(&author).unwrap_or(0);
        for m in &mut matches {
            (m.a, m.b) = (place(m.a), place(m.b));
        }
        let table = bradley_terry::table(&matches, met.len(), facts.prompts, options, resampling);
        let mut prompts: Vec<usize> = matches.iter().map(|m| m.cluster).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let Some(table) = table else {
            return VersionTable {
                versions: vec![],
                wins: vec![],
                tie_rate: 0.0,
                length_effect: None,
                length_controlled,
                comparisons: 0,
                prompts: 0,
                resampling,
            };
        };
        let mut order: Vec<usize> = (0..met.len()).collect();
        let strength = |i: &usize| table.standings[*i].strength.value;
        order.sort_by(|a, b| strength(b).total_cmp(&strength(a)));
        let contestant = |i: &usize| match &facts.authors[met[*i]] {
            Author::Version(id) => Contestant {
                model_version_id: Some(id.clone()),
                name: names.get(id).cloned().unwrap_or_else(|| id.to_string()),
                standing: table.standings[*i].clone(),
            },
            Author::Human => {
                Contestant { model_version_id: None, name: "human".to_owned(), standing: table.standings[*i].clone() }
            }
        };
        VersionTable {
            versions: order.iter().map(contestant).collect(),
            wins: order.iter().map(|i| order.iter().map(|j| table.wins[*i][*j]).collect()).collect(),
            tie_rate: table.tie_rate,
            length_effect: table.covariate,
            length_controlled,
            comparisons: table.comparisons,
            prompts: prompts.len(),
            resampling,
        }
    })
    .await
}
