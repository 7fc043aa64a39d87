//! The rate at which judgments are submitted.

use super::rows::{Conn, args};
use super::{DayCount, Result, Throughput};
use crate::domain::time::DAY;
use crate::domain::{Micros, ProjectId};

/// Whether a judgment is of a set of the project `$project`, an SQL expression; NULL = of any project.
macro_rules! in_project {
    ($project:literal) => {
        concat!(
            "(",
            $project,
            " IS NULL OR set_id IN (SELECT id FROM comparison_sets WHERE project_id = ",
            $project,
            "))"
        )
    };
}

/// First judgments (revisions do not count) since `since`, by day, and their median time at work.
pub(super) async fn since(conn: &mut Conn, since: Micros, project: Option<&ProjectId>) -> Result<Throughput> {
    let project = project.map(ProjectId::as_str);
    let days = conn
        .all(
            concat!(
                "SELECT created / $2 AS day, COUNT(*) AS n, COUNT(CASE WHEN outcome = 'skip' THEN 1 END) AS skips
                 FROM judgments WHERE supersedes_id IS NULL AND created >= $1 AND idempotency_key NOT LIKE 'import:%'
                   AND ",
                in_project!("$3"),
                " GROUP BY created / $2 ORDER BY day"
            ),
            args![since, DAY, project],
        )
        .await?
        .iter()
        .map(|row| Ok(DayCount { day: row.int("day")?, judgments: row.int("n")?, skips: row.int("skips")? }))
        .collect::<Result<Vec<_>>>()?;
    let timed = conn
        .count(
            concat!(
                "SELECT COUNT(*) AS n FROM judgments WHERE created >= $1 AND active_ms > 0 AND ",
                in_project!("$2")
            ),
            args![since, project],
        )
        .await?;
    let median_active_ms = match timed {
        0 => None,
        n => Some(
            conn.count(
                concat!(
                    "SELECT active_ms AS n FROM judgments WHERE created >= $1 AND active_ms > 0 AND ",
                    in_project!("$3"),
                    " ORDER BY active_ms LIMIT 1 OFFSET $2"
                ),
                args![since, (n - 1) / 2, project],
            )
            .await?,
        ),
    };
    Ok(Throughput { days, median_active_ms })
}
