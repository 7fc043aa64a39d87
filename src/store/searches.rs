//! Searches that no index answers, part by part: each statement looks at a limited number of rows, so that it takes about
//! as long in a large table as in a small one.

use super::rows::{Conn, args};
use super::{Micros, Result};

/// A part of a list, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The part begins with the row before this id; with the newest one when absent.
    pub after: Option<String>,
    /// Number of rows that are looked at.
    pub rows: i64,
    /// Most rows that are returned.
    pub limit: i64,
}

/// The last row of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartEnd {
    pub id: String,
    pub created: Micros,
}

/// Tables that can be searched. Their ids ascend with time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    Sets,
    Judgments,
    Jobs,
}

/// The last row of a part; `None` when the table ends before. It does not look at conditions: a row that matches may be
/// anywhere, and the number of rows that are read must not depend on where.
pub(super) async fn end(conn: &mut Conn, table: Table, part: &Part) -> Result<Option<PartEnd>> {
    let sql = match table {
        Table::Sets => {
            "SELECT id, created FROM comparison_sets WHERE id < COALESCE($1, '~') ORDER BY id DESC LIMIT 1 OFFSET $2"
        }
        Table::Judgments => {
            "SELECT id, created FROM judgments WHERE id < COALESCE($1, '~') ORDER BY id DESC LIMIT 1 OFFSET $2"
        }
        Table::Jobs => "SELECT id, created FROM jobs WHERE id < COALESCE($1, '~') ORDER BY id DESC LIMIT 1 OFFSET $2",
    };
    let row = conn.one(sql, args![&part.after, (part.rows - 1).max(0)]).await?;
    row.map(|row| Ok(PartEnd { id: row.text("id")?, created: row.int("created")? })).transpose()
}
