//! Keys of the labeling page that people have changed.

use super::Result;
use super::rows::{Conn, args, json};
use crate::domain::{KeyMap, LabelerId, Micros};

pub(super) async fn get(conn: &mut Conn, id: &LabelerId) -> Result<Option<KeyMap>> {
    let row = conn.one("SELECT keys FROM key_maps WHERE labeler_id = $1", args![id.as_str()]).await?;
    row.map(|row| row.json("keys")).transpose()
}

pub(super) async fn put(conn: &mut Conn, id: &LabelerId, keys: &KeyMap, now: Micros) -> Result<()> {
    conn.run(
        "INSERT INTO key_maps (labeler_id, keys, updated) VALUES ($1, $2, $3)
         ON CONFLICT (labeler_id) DO UPDATE SET keys = excluded.keys, updated = excluded.updated",
        args![id.as_str(), json(keys)?, now],
    )
    .await?;
    Ok(())
}
