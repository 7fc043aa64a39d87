//! Conversations: comparison sets that follow each other.

use super::rows::{Conn, Row, args, not_found};
use super::{Page, Result, StoreError};
use crate::domain::*;

/// A comparison set that continues another.
#[derive(Clone, Debug)]
pub struct NewTurn {
    pub labeler_id: LabelerId,
    /// The set that is continued. It becomes the first turn of a new conversation unless it is a turn already.
    pub before: SetId,
    /// Its completion that the prompt of `set_id` contains.
    pub continued: CompletionId,
    pub set_id: SetId,
    pub now: Micros,
}

/// Adds a turn; returns its conversation.
///
/// # Errors
/// `Conflict` when the set before is not the last turn of its conversation, or is one of another labeler.
pub(super) async fn put_turn(conn: &mut Conn, new: &NewTurn) -> Result<Conversation> {
    let id = match of_set(conn, &new.before).await? {
        Some(known) => {
            let last = known.turns.last().map(|turn| &turn.set_id);
            if known.labeler_id != new.labeler_id || last != Some(&new.before) {
                return Err(StoreError::Conflict(format!("set {} is continued already", new.before)));
            }
            put_row(conn, &known.id, known.turns.len() as i64 + 1, &new.set_id, Some(&new.continued), new.now).await?;
            known.id
        }
        None => {
            let id = ConversationId::new();
            conn.run(
                "INSERT INTO conversations (id, labeler_id, created) VALUES ($1, $2, $3)",
                args![id.as_str(), new.labeler_id.as_str(), new.now],
            )
            .await?;
            put_row(conn, &id, 1, &new.before, None, new.now).await?;
            put_row(conn, &id, 2, &new.set_id, Some(&new.continued), new.now).await?;
            id
        }
    };
    get(conn, &id).await
}

async fn put_row(
    conn: &mut Conn,
    id: &ConversationId,
    turn: i64,
    set_id: &SetId,
    continued: Option<&CompletionId>,
    now: Micros,
) -> Result<()> {
    conn.run(
        "INSERT INTO conversation_turns (conversation_id, turn, set_id, continued_id, created)
         VALUES ($1, $2, $3, $4, $5)",
        args![id.as_str(), turn, set_id.as_str(), continued.map(CompletionId::as_str), now],
    )
    .await?;
    Ok(())
}

/// Conversations with their turns, newest first, one row for each turn.
macro_rules! conversations {
    ($which:literal) => {
        concat!(
            "SELECT c.id, c.labeler_id, c.created AS begun, t.turn, t.set_id, t.continued_id, t.created,
                    (SELECT j.id FROM judgments j WHERE j.set_id = t.set_id AND j.labeler_id = c.labeler_id
                     ORDER BY j.revision DESC LIMIT 1) AS judgment_id
             FROM conversations c JOIN conversation_turns t ON t.conversation_id = c.id WHERE ",
            $which,
            " ORDER BY c.id DESC, t.turn"
        )
    };
}

fn gather(rows: &[Row]) -> Result<Vec<Conversation>> {
    let mut found: Vec<Conversation> = Vec::new();
    for row in rows {
        let id: ConversationId = row.text("id")?.into();
        if found.last().is_none_or(|last| last.id != id) {
            let (labeler_id, created) = (row.text("labeler_id")?.into(), row.int("begun")?);
            found.push(Conversation { id, labeler_id, created, turns: Vec::new() });
        }
        let turn = ConversationTurn {
            turn: row.int("turn")?,
            set_id: row.text("set_id")?.into(),
            continued: row.opt_text("continued_id")?.map(Into::into),
            judgment_id: row.opt_text("judgment_id")?.map(Into::into),
            created: row.int("created")?,
        };
        if let Some(last) = found.last_mut() {
            last.turns.push(turn);
        }
    }
    Ok(found)
}

pub(super) async fn get(conn: &mut Conn, id: &ConversationId) -> Result<Conversation> {
    let rows = conn.all(conversations!("c.id = $1"), args![id.as_str()]).await?;
    gather(&rows)?.pop().ok_or_else(|| not_found("conversation", id.as_str()))
}

pub(super) async fn of_set(conn: &mut Conn, set_id: &SetId) -> Result<Option<Conversation>> {
    let sql = conversations!("c.id = (SELECT x.conversation_id FROM conversation_turns x WHERE x.set_id = $1)");
    Ok(gather(&conn.all(sql, args![set_id.as_str()]).await?)?.pop())
}

/// A labeler's, newest first.
pub(super) async fn list(conn: &mut Conn, labeler: &LabelerId, page: &Page) -> Result<Vec<Conversation>> {
    let sql = conversations!(
        "c.id IN (SELECT x.id FROM conversations x WHERE x.labeler_id = $1 AND ($2 IS NULL OR x.id < $2)
             ORDER BY x.id DESC LIMIT $3)"
    );
    gather(&conn.all(sql, args![labeler.as_str(), &page.after, page.limit]).await?)
}

/// Removes a labeler's conversations; their sets stay.
pub(super) async fn erase(conn: &mut Conn, me: &str) -> Result<()> {
    for sql in [
        "DELETE FROM conversation_turns WHERE conversation_id IN (SELECT id FROM conversations WHERE labeler_id = $1)",
        "DELETE FROM conversations WHERE labeler_id = $1",
    ] {
        conn.run(sql, args![me]).await?;
    }
    Ok(())
}
