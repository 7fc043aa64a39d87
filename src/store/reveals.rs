//! Reveals: what labelers have been shown of sets, the authors or the expected answer.

use super::Result;
use super::rows::{Conn, args};
use crate::domain::*;

/// Records that something about the set was revealed to the labeler.
pub(super) async fn put(conn: &mut Conn, set: &SetId, labeler: &LabelerId, what: Knowledge, now: Micros) -> Result<()> {
    if what == Knowledge::Blind {
        return Ok(());
    }
    conn.run(
        "INSERT INTO reveals (set_id, labeler_id, what, created) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        args![set.as_str(), labeler.as_str(), what.as_str(), now],
    )
    .await?;
    Ok(())
}

/// What has been revealed to the labeler about this set.
pub(super) async fn of(conn: &mut Conn, set: &SetId, labeler: &LabelerId) -> Result<Vec<Knowledge>> {
    conn.all(
        "SELECT what FROM reveals WHERE set_id = $1 AND labeler_id = $2 ORDER BY what",
        args![set.as_str(), labeler.as_str()],
    )
    .await?
    .iter()
    .map(|row| row.name("what", Knowledge::parse))
    .collect()
}

/// A set of the queue that contains one of these completions and that the labeler has not judged.
pub(super) async fn unjudged_with(conn: &mut Conn, id: &CompletionId, labeler: &LabelerId) -> Result<Option<SetId>> {
    let row = conn
        .one(
            "SELECT s.id FROM comparison_sets s JOIN set_items i ON i.set_id = s.id
             WHERE i.completion_id = $1 AND s.status <> 'retired' AND NOT EXISTS (
                 SELECT 1 FROM judgments j WHERE j.set_id = s.id AND j.labeler_id = $2 AND j.outcome <> 'skip')
             ORDER BY s.id LIMIT 1",
            args![id.as_str(), labeler.as_str()],
        )
        .await?;
    row.map(|row| row.text("id").map(Into::into)).transpose()
}
