//! Dumps of a Postgres database.

use std::path::Path;

use futures::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqlSafeStr, SqlStr};

use super::cells::{Cell, Kind};
use super::{Column, Comparison, Dump, Reader, Table, Writer, matched, ordered, quoted, refused};
use crate::store::Result;
use crate::store::connect::migrate_error;
use crate::store::migrations;
use crate::store::postgres::{Address, forget_statements};
use crate::store::rows::without_nul;

async fn tables(conn: &mut PgConnection) -> Result<Vec<Table>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables
         WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut tables = Vec::new();
    for name in names {
        let rows = sqlx::query(
            "SELECT column_name::text AS name, udt_name::text AS type, is_identity = 'YES' AS identity
             FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1
             ORDER BY ordinal_position",
        )
        .bind(&name)
        .fetch_all(&mut *conn)
        .await?;
        let mut columns = Vec::new();
        for row in rows {
            let column: String = row.try_get("name")?;
            let kind = match row.try_get::<String, _>("type")?.as_str() {
                "text" | "varchar" => Kind::Text,
                "int8" | "int4" | "int2" => Kind::Int,
                "float8" | "float4" => Kind::Real,
                "bool" => Kind::Flag,
                "bytea" => Kind::Bytes,
                "jsonb" | "json" => Kind::Json,
                other => return refused(format!("{name}.{column}: a dump does not support the type {other}")),
            };
            columns.push(Column { name: column, kind, identity: row.try_get("identity")? });
        }
        let key = sqlx::query_scalar(
            "SELECT a.attname::text FROM pg_constraint c
             CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY AS k (n, place)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n
             WHERE c.contype = 'p' AND c.conrelid = to_regclass(quote_ident($1)) ORDER BY k.place",
        )
        .bind(&name)
        .fetch_all(&mut *conn)
        .await?;
        let parents = sqlx::query_scalar(
            "SELECT DISTINCT p.relname::text FROM pg_constraint c JOIN pg_class p ON p.oid = c.confrelid
             WHERE c.contype = 'f' AND c.conrelid = to_regclass(quote_ident($1))",
        )
        .bind(&name)
        .fetch_all(&mut *conn)
        .await?;
        tables.push(Table { name, columns, key, parents });
    }
    Ok(ordered(tables))
}

/// Writes every row in SQLite's order, which compares text by its bytes.
fn select(table: &Table) -> Result<SqlStr> {
    if table.key.is_empty() {
        return refused(format!("table {} has no primary key", table.name));
    }
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|c| {
            let name = quoted(&c.name);
            match c.kind {
                Kind::Text | Kind::Json => format!("{name}::text"),
                Kind::Int => format!("{name}::bigint"),
                Kind::Flag => format!("{name}::int::bigint"),
                Kind::Real => format!("{name}::float8"),
                Kind::Bytes => name,
            }
        })
        .collect();
    let order = |name: &String| {
        let text = table.columns.iter().any(|c| c.name == *name && c.kind == Kind::Text);
        if text { format!("{} COLLATE \"C\"", quoted(name)) } else { quoted(name) }
    };
    let key: Vec<_> = table.key.iter().map(order).collect();
    let sql = format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), quoted(&table.name), key.join(", "));
    Ok(AssertSqlSafe(sql).into_sql_str())
}

fn cells(table: &Table, row: &PgRow) -> Result<Vec<Cell>> {
    table
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let cell = match column.kind {
                Kind::Text | Kind::Json => row.try_get::<Option<String>, _>(i)?.map(Cell::Text),
                Kind::Int | Kind::Flag => row.try_get::<Option<i64>, _>(i)?.map(Cell::Int),
                Kind::Real => row.try_get::<Option<f64>, _>(i)?.map(Cell::Real),
                Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(i)?.map(Cell::Bytes),
            };
            Ok(cell.unwrap_or(Cell::Null))
        })
        .collect()
}

pub(super) async fn export(url: &str, dir: &Path) -> Result<Dump> {
    let Address { options, is_pooled } = Address::parse(url)?;
    let mut conn = options.connect().await?;
    // One snapshot for all tables; others can write meanwhile.
    let mut tx = conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    if is_pooled {
        forget_statements(&mut tx).await?;
    }
    let schema: i64 =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success").fetch_one(&mut *tx).await?;
    let mut dumped = Vec::new();
    for table in tables(&mut tx).await? {
        let mut out = Writer::new(dir, &table)?;
        {
            let mut rows = sqlx::query(select(&table)?).fetch(&mut *tx);
            while let Some(row) = rows.try_next().await? {
                out.row(&cells(&table, &row)?)?;
            }
        }
        dumped.push(out.end(&table.name)?);
    }
    if is_pooled {
        forget_statements(&mut tx).await?;
    }
    tx.commit().await?;
    conn.close().await?;
    Ok(Dump { backend: "postgres".into(), schema, tables: dumped })
}

pub(super) async fn import(url: &str, dir: &Path, dump: &Dump) -> Result<()> {
    let Address { options, is_pooled } = Address::parse(url)?;
    if is_pooled {
        return refused("a dump is imported without a pooler; give the address of the PostgreSQL server itself");
    }
    let mut conn = options.connect().await?;
    let there: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema()")
            .fetch_one(&mut conn)
            .await?;
    if there > 0 {
        return refused("the database is not empty");
    }
    migrations::POSTGRES.run_to(dump.schema, &mut conn).await.map_err(migrate_error)?;
    let tables = tables(&mut conn).await?;
    let tables = matched(&tables, dump)?;
    let mut tx = conn.begin().await?;
    // Rows may refer to later rows of their own table, so references are checked at the end.
    let references: Vec<(String, String)> = sqlx::query_as(
        "SELECT r.relname::text, c.conname::text FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
         WHERE c.contype = 'f' AND c.connamespace = current_schema()::regnamespace",
    )
    .fetch_all(&mut *tx)
    .await?;
    let alter = |(table, name): &(String, String), how: &str| {
        AssertSqlSafe(format!("ALTER TABLE {} ALTER CONSTRAINT {} {how}", quoted(table), quoted(name))).into_sql_str()
    };
    for reference in &references {
        sqlx::query(alter(reference, "DEFERRABLE INITIALLY DEFERRED")).execute(&mut *tx).await?;
    }
    for table in tables.iter().rev() {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {}", quoted(&table.name)))).execute(&mut *tx).await?;
    }
    for table in &tables {
        fill(&mut tx, dir, table).await?;
    }
    for table in &tables {
        let mut comparison = Comparison::new(dir, table)?;
        {
            let mut rows = sqlx::query(select(table)?).fetch(&mut *tx);
            while let Some(row) = rows.try_next().await? {
                comparison.row(&cells(table, &row)?)?;
            }
        }
        comparison.end()?;
    }
    sqlx::query("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *tx).await?;
    for reference in &references {
        sqlx::query(alter(reference, "NOT DEFERRABLE")).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    conn.close().await?;
    Ok(())
}

async fn fill(tx: &mut PgConnection, dir: &Path, table: &Table) -> Result<()> {
    let mut file = Reader::open(dir, &table.name)?;
    let kinds = file.kinds(table)?;
    let names: Vec<_> = file.columns.iter().map(|c| quoted(c)).collect();
    let places: Vec<_> = (1..=names.len()).map(|i| format!("${i}")).collect();
    let identity: Vec<_> = table.columns.iter().filter(|c| c.identity).collect();
    let given = if identity.is_empty() { "" } else { "OVERRIDING SYSTEM VALUE " };
    let sql =
        format!("INSERT INTO {} ({}) {given}VALUES ({})", quoted(&table.name), names.join(", "), places.join(", "));
    let sql = AssertSqlSafe(sql).into_sql_str();
    while let Some(row) = file.next()? {
        let mut query = sqlx::query::<sqlx::Postgres>(sql.clone());
        for (kind, cell) in kinds.iter().zip(row) {
            query = match (kind, cell) {
                (Kind::Json, Cell::Text(v)) => {
                    let value = serde_json::from_str(&v).map_err(|e| {
                        crate::store::StoreError::Conflict(format!("table {}: {e} in a JSON column", table.name))
                    })?;
                    query.bind(Some(sqlx::types::Json(crate::store::rows::without_nul_in(value))))
                }
                (Kind::Json, _) => query.bind(None::<sqlx::types::Json<serde_json::Value>>),
                (Kind::Flag, Cell::Int(v)) => query.bind(Some(v != 0)),
                (Kind::Flag, _) => query.bind(None::<bool>),
                (Kind::Text, Cell::Text(v)) => query.bind(Some(without_nul(v))),
                (Kind::Text, _) => query.bind(None::<String>),
                (Kind::Int, Cell::Int(v)) => query.bind(Some(v)),
                (Kind::Int, _) => query.bind(None::<i64>),
                (Kind::Real, Cell::Real(v)) => query.bind(Some(v)),
                (Kind::Real, Cell::Int(v)) => query.bind(Some(v as f64)),
                (Kind::Real, _) => query.bind(None::<f64>),
                (Kind::Bytes, Cell::Bytes(v)) => query.bind(Some(v)),
                (Kind::Bytes, _) => query.bind(None::<Vec<u8>>),
            };
        }
        query.execute(&mut *tx).await?;
    }
    for column in identity {
        // The sequence continues after the largest inserted number.
        let sql = format!(
            "SELECT setval(pg_get_serial_sequence($1, $2), GREATEST(MAX({0}), 1), MAX({0}) IS NOT NULL) FROM {1}",
            quoted(&column.name),
            quoted(&table.name)
        );
        sqlx::query(AssertSqlSafe(sql)).bind(&table.name).bind(&column.name).execute(&mut *tx).await?;
    }
    Ok(())
}
