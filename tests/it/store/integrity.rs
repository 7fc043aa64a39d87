//! Whether a database is sound: its own integrity check, every index, every reference.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

/// Panics with what is wrong. Postgres: `amcheck` over every B-tree, and every foreign key looked up; SQLite:
/// `integrity_check` and `foreign_key_check`.
pub async fn assert_sound(url: &str) {
    if url.starts_with("sqlite") {
        let mut conn = SqliteConnection::connect(url).await.unwrap();
        let words: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut conn).await.unwrap();
        assert_eq!(words, ["ok"]);
        let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut conn).await.unwrap();
        assert!(broken.is_empty(), "{} references to nothing", broken.len());
        conn.close().await.unwrap();
        return;
    }
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::query("CREATE EXTENSION IF NOT EXISTS amcheck").execute(&mut conn).await.unwrap();
    let checked = sqlx::query(
        "SELECT bt_index_check(c.oid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE a.amname = 'btree' AND n.nspname = 'public'",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(checked.len() > 20, "{} indexes checked", checked.len());
    let keys = sqlx::query(
        "SELECT conname, conrelid::regclass::text AS child, confrelid::regclass::text AS parent,
             ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY k(n, o)
                   JOIN pg_attribute ON attrelid = conrelid AND attnum = k.n ORDER BY o) AS columns,
             ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY k(n, o)
                   JOIN pg_attribute ON attrelid = confrelid AND attnum = k.n ORDER BY o) AS targets
         FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert!(keys.len() > 10, "{} foreign keys", keys.len());
    for key in keys {
        let (name, child, parent): (String, String, String) = (key.get("conname"), key.get("child"), key.get("parent"));
        let (columns, targets): (Vec<String>, Vec<String>) = (key.get("columns"), key.get("targets"));
        let pairs = columns.iter().zip(&targets);
        let equal: Vec<_> = pairs.map(|(c, t)| format!("p.{t} = c.{c}")).collect();
        let set: Vec<_> = columns.iter().map(|c| format!("c.{c} IS NOT NULL")).collect();
        let sql = format!(
            "SELECT COUNT(*) FROM {child} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {})",
            set.join(" AND "),
            equal.join(" AND ")
        );
        let broken: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut conn).await.unwrap();
        assert_eq!(broken, 0, "{name}: references to nothing");
    }
    conn.close().await.unwrap();
}
