//! The rate at which judgments are submitted.

use super::rows::{Conn, args};
use super::{DayCount, Result, Throughput};
use crate::domain::Micros;
use crate::domain::time::DAY;

/// First judgments (revisions do not count) since `since`, by day, and their median time at work.
pub(super) async fn since(conn: &mut Conn, since: Micros) -> Result<Throughput> {
    let days = conn
        .all(
            "SELECT created / $2 AS day, COUNT(*) AS n, COUNT(CASE WHEN outcome = 'skip' THEN 1 END) AS skips
             FROM judgments WHERE supersedes_id IS NULL AND created >= $1 AND idempotency_key NOT LIKE 'import:%'
             GROUP BY created / $2 ORDER BY day",
            args![since, DAY],
        )
        .await?
        .iter()
        .map(|row| Ok(DayCount { day: row.int("day")?, judgments: row.int("n")?, skips: row.int("skips")? }))
        .collect::<Result<Vec<_>>>()?;
    let timed =
        conn.count("SELECT COUNT(*) AS n FROM judgments WHERE created >= $1 AND active_ms > 0", args![since]).await?;
    let median_active_ms = match timed {
        0 => None,
        n => Some(
            conn.count(
                "SELECT active_ms AS n FROM judgments WHERE created >= $1 AND active_ms > 0
                 ORDER BY active_ms LIMIT 1 OFFSET $2",
                args![since, (n - 1) / 2],
            )
            .await?,
        ),
    };
    Ok(Throughput { days, median_active_ms })
}
