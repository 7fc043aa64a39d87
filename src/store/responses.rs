//! Stored responses of the Responses API, which a later request may continue.

use super::Result;
use super::rows::{Conn, args, json};
use crate::domain::{KeptResponse, Micros};

pub(super) async fn put(conn: &mut Conn, kept: &KeptResponse, bytes: i64) -> Result<()> {
    conn.run(
        "INSERT INTO responses (id, owner, messages, response, bytes, created) VALUES ($1, $2, $3, $4, $5, $6)",
        args![&kept.id, &kept.owner, json(&kept.messages)?, &kept.response, bytes, kept.created],
    )
    .await?;
    Ok(())
}

pub(super) async fn get(conn: &mut Conn, id: &str, owner: Option<&str>, since: Micros) -> Result<Option<KeptResponse>> {
    let row = conn
        .one(
            "SELECT * FROM responses
             WHERE id = $1 AND (owner = $2 OR (owner IS NULL AND $2 IS NULL)) AND created >= $3",
            args![id, owner, since],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(KeptResponse {
        id: row.text("id")?,
        owner: row.opt_text("owner")?,
        messages: row.json("messages")?,
        response: row.json("response")?,
        created: row.int("created")?,
    }))
}

pub(super) async fn delete(conn: &mut Conn, id: &str, owner: Option<&str>) -> Result<bool> {
    let gone = conn
        .run("DELETE FROM responses WHERE id = $1 AND (owner = $2 OR (owner IS NULL AND $2 IS NULL))", args![id, owner])
        .await?;
    Ok(gone > 0)
}

pub(super) async fn expire(conn: &mut Conn, since: Micros, most_bytes: i64) -> Result<u64> {
    let mut gone = conn.run("DELETE FROM responses WHERE created < $1", args![since]).await?;
    // The newest ones within the limit are kept.
    gone += conn
        .run(
            "DELETE FROM responses WHERE id IN (SELECT id FROM
                 (SELECT id, SUM(bytes) OVER (ORDER BY created DESC, id DESC) AS held FROM responses) AS t
             WHERE held > $1)",
            args![most_bytes],
        )
        .await?;
    Ok(gone)
}

/// Removes the responses of a person and of the person's keys.
pub(super) async fn erase(conn: &mut Conn, labeler: &str) -> Result<()> {
    conn.run(
        "DELETE FROM responses WHERE owner = $2 OR owner IN (SELECT id FROM api_keys WHERE labeler_id = $1)",
        args![labeler, format!("person:{labeler}").as_str()],
    )
    .await?;
    Ok(())
}
