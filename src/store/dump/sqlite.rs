//! Dumps of a SQLite database.

use std::path::Path;

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row, SqlSafeStr, TypeInfo, ValueRef};

use super::cells::{Cell, Kind};
use super::{Column, Comparison, Dump, Reader, Table, Writer, matched, ordered, quoted, refused};
use crate::store::connect::{migrate_error, sqlite_options};
use crate::store::migrations;
use crate::store::{Result, StoreError};

async fn tables(conn: &mut SqliteConnection) -> Result<Vec<Table>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             AND name <> '_sqlx_migrations' ORDER BY name",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut tables = Vec::new();
    for name in names {
        let rows = sqlx::query("SELECT name, type, pk FROM pragma_table_info($1) ORDER BY cid")
            .bind(&name)
            .fetch_all(&mut *conn)
            .await?;
        let (mut columns, mut key) = (Vec::new(), Vec::new());
        for row in rows {
            let column: String = row.try_get("name")?;
            let position: i64 = row.try_get("pk")?;
            if position > 0 {
                key.push((position, column.clone()));
            }
            // SQLite has no types of their own for flags and JSON.
            let kind = match row.try_get::<String, _>("type")?.as_str() {
                "INTEGER" | "INT" => Kind::Int,
                "REAL" => Kind::Real,
                "BLOB" => Kind::Bytes,
                "TEXT" => Kind::Text,
                other => return refused(format!("{name}.{column}: a dump does not support the type {other}")),
            };
            columns.push(Column { name: column, kind, identity: false });
        }
        key.sort();
        let parents = sqlx::query_scalar("SELECT DISTINCT \"table\" FROM pragma_foreign_key_list($1)")
            .bind(&name)
            .fetch_all(&mut *conn)
            .await?;
        tables.push(Table { name, columns, key: key.into_iter().map(|(_, column)| column).collect(), parents });
    }
    Ok(ordered(tables))
}

fn cells(row: &SqliteRow) -> Result<Vec<Cell>> {
    (0..row.len())
        .map(|i| {
            let raw = row.try_get_raw(i)?;
            if raw.is_null() {
                return Ok(Cell::Null);
            }
            Ok(match raw.type_info().name() {
                "INTEGER" | "BOOLEAN" => Cell::Int(row.try_get_unchecked(i)?),
                "REAL" => Cell::Real(row.try_get_unchecked(i)?),
                "BLOB" => Cell::Bytes(row.try_get_unchecked(i)?),
                _ => Cell::Text(row.try_get_unchecked(i)?),
            })
        })
        .collect()
}

fn select(table: &Table) -> sqlx::SqlStr {
    let columns: Vec<_> = table.columns.iter().map(|c| quoted(&c.name)).collect();
    let key: Vec<_> = table.key.iter().map(|c| quoted(c)).collect();
    let order = if key.is_empty() { "rowid".to_owned() } else { key.join(", ") };
    let sql = format!("SELECT {} FROM {} ORDER BY {order}", columns.join(", "), quoted(&table.name));
    AssertSqlSafe(sql).into_sql_str()
}

pub(super) async fn export(path: &Path, dir: &Path) -> Result<Dump> {
    if !path.is_file() {
        return Err(StoreError::NotFound { what: "database", id: path.display().to_string() });
    }
    let mut conn = SqliteConnection::connect_with(&sqlite_options(path)).await?;
    // One read transaction gives a consistent snapshot; others can write meanwhile.
    sqlx::query("BEGIN").execute(&mut conn).await?;
    let schema: i64 =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success").fetch_one(&mut conn).await?;
    let mut dumped = Vec::new();
    for table in tables(&mut conn).await? {
        let mut out = Writer::new(dir, &table)?;
        {
            let mut rows = sqlx::query(select(&table)).fetch(&mut conn);
            while let Some(row) = rows.try_next().await? {
                out.row(&cells(&row)?)?;
            }
        }
        dumped.push(out.end(&table.name)?);
    }
    sqlx::query("COMMIT").execute(&mut conn).await?;
    conn.close().await?;
    Ok(Dump { backend: "sqlite".into(), schema, tables: dumped })
}

pub(super) async fn import(path: &Path, dir: &Path, dump: &Dump) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(super::failed(parent))?;
    }
    let mut conn = SqliteConnection::connect_with(&sqlite_options(path)).await?;
    let there: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master").fetch_one(&mut conn).await?;
    if there > 0 {
        return refused(format!("{} is not empty", path.display()));
    }
    migrations::SQLITE.run_to(dump.schema, &mut conn).await.map_err(migrate_error)?;
    let tables = tables(&mut conn).await?;
    let tables = matched(&tables, dump)?;
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("PRAGMA defer_foreign_keys = ON").execute(&mut *tx).await?;
    for table in tables.iter().rev() {
        let sql = format!("DELETE FROM {}", quoted(&table.name));
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    }
    for table in &tables {
        let mut file = Reader::open(dir, &table.name)?;
        file.kinds(table)?;
        let names: Vec<_> = file.columns.iter().map(|c| quoted(c)).collect();
        let places: Vec<_> = (1..=names.len()).map(|i| format!("${i}")).collect();
        let sql = format!("INSERT INTO {} ({}) VALUES ({})", quoted(&table.name), names.join(", "), places.join(", "));
        let sql = AssertSqlSafe(sql).into_sql_str();
        while let Some(row) = file.next()? {
            let mut query = sqlx::query::<sqlx::Sqlite>(sql.clone());
            for cell in row {
                query = match cell {
                    Cell::Null => query.bind(None::<String>),
                    Cell::Text(v) => query.bind(v),
                    Cell::Int(v) => query.bind(v),
                    Cell::Real(v) => query.bind(v),
                    Cell::Bytes(v) => query.bind(v),
                };
            }
            query.execute(&mut *tx).await?;
        }
    }
    for table in &tables {
        let mut comparison = Comparison::new(dir, table)?;
        {
            let mut rows = sqlx::query(select(table)).fetch(&mut *tx);
            while let Some(row) = rows.try_next().await? {
                comparison.row(&cells(&row)?)?;
            }
        }
        comparison.end()?;
    }
    tx.commit().await?;
    conn.close().await?;
    Ok(())
}

/// A copy of a consistent snapshot of the database in one file; others can write meanwhile.
pub(super) async fn copy(path: &Path, to: &Path) -> Result<i64> {
    let mut conn = SqliteConnection::connect_with(&sqlite_options(path).create_if_missing(false)).await?;
    let schema: i64 =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success").fetch_one(&mut conn).await?;
    sqlx::query("VACUUM INTO $1").bind(to.display().to_string()).execute(&mut conn).await?;
    conn.close().await?;
    // One file, without a write-ahead log.
    let options = sqlite_options(to).create_if_missing(false).journal_mode(SqliteJournalMode::Delete);
    let mut copy = SqliteConnection::connect_with(&options).await?;
    let words: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut copy).await?;
    if words != ["ok"] {
        return refused(format!("the copy fails SQLite's integrity check: {}", words.join("; ")));
    }
    copy.close().await?;
    Ok(schema)
}
