//! What only the SQLite backend promises: durable settings, safe migrations, refusals.

use instructd::store;
use sqlx::migrate::Migrator;

use super::{backend, fixture};

#[tokio::test]
async fn survives_reopening_and_uses_a_log() {
    let fresh = backend::sqlite().await.unwrap();
    let prompt = fresh.store.prompts().put(fixture::prompt("q")).await.unwrap();
    let file = fresh.url.strip_prefix("sqlite://").unwrap();
    assert!(std::path::Path::new(&format!("{file}-wal")).exists());
    fresh.store.close().await;
    assert!(matches!(fresh.store.ping().await, Err(store::StoreError::Unavailable(_))));
    let again = store::connect(&fresh.url).await.unwrap();
    assert_eq!(again.prompts().get(&prompt.id).await.unwrap(), prompt);
    assert_eq!(again.backend(), "sqlite");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_may_start_at_once() {
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("deep/down/test.db").display());
        let opens = (0..6).map(|_| store::connect(&url));
        for opened in futures::future::join_all(opens).await {
            opened.unwrap().counts().await.unwrap();
        }
    }
}

#[tokio::test]
async fn refuses_a_newer_schema() {
    let fresh = backend::sqlite().await.unwrap();
    fresh.store.close().await;
    let pool = sqlx::SqlitePool::connect(&fresh.url).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', 1, x'00', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let error = store::connect(&fresh.url).await.err().expect("a newer schema must be refused").to_string();
    assert!(error.contains("9999") && error.contains("newer"), "{error}");
    assert!(store::migrate(&fresh.url).await.is_err());
}

#[tokio::test]
async fn refuses_urls_it_cannot_keep_data_in() {
    for url in ["mysql://x/y", "sqlite::memory:", "sqlite:", "nonsense"] {
        assert!(store::connect(url).await.is_err(), "{url}");
    }
}

/// The store reads judgments in parts; 11,003 are in three of them.
#[tokio::test]
async fn each_judgment_is_read_once_however_many_there_are() {
    let fresh = backend::sqlite().await.unwrap();
    let set = fixture::stored_set(&fresh.store, "q", &["one", "two"], 1).await;
    // A person for each judgment. Nothing that is read here refers to people.
    let options: sqlx::sqlite::SqliteConnectOptions = fresh.url.parse().unwrap();
    let pool = sqlx::SqlitePool::connect_with(options.foreign_keys(false)).await.unwrap();
    let numbers = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 11003)";
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "{numbers} INSERT INTO judgments (id, set_id, labeler_id, revision, outcome, active_ms, wall_ms, idempotency_key, created)
         SELECT printf('%026d', n), ?, 'person ' || n, 1, 'ranked', 1, 2, 'key ' || n, n FROM c"
    )))
    .bind(set.id.as_str())
    .execute(&pool)
    .await
    .unwrap();
    for (tier, completion) in set.completion_ids.iter().enumerate() {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{numbers} INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position)
             SELECT printf('%026d', n), ?, {tier}, 0 FROM c"
        )))
        .bind(completion.as_str())
        .execute(&pool)
        .await
        .unwrap();
    }
    pool.close().await;
    let judged = fixture::judged(&fresh.store, None, None).await;
    assert!(judged.iter().all(|judgment| judgment.items.len() == 2));
    let ids: Vec<String> = judged.iter().map(|judgment| judgment.judgment_id.to_string()).collect();
    assert_eq!(ids, (1..=11003).map(|n| format!("{n:026}")).collect::<Vec<_>>());
}

/// Every migration one by one over a database with rows, references checked after each.
#[tokio::test]
async fn migrates_stepwise_with_rows_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("old.db").display());
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let all = sqlx::migrate::Migrator::new(std::path::Path::new("migrations/sqlite")).await.unwrap();
    let upto = |n: usize| Migrator::with_migrations(all.iter().take(n).cloned().collect());
    upto(1).run(&pool).await.unwrap();
    sqlx::raw_sql(backend::OLD_ROWS).execute(&pool).await.unwrap();
    let children = "INSERT INTO completions VALUES
        ('c', 'p', 'child', 'model', NULL, 't', x'', x'', '{}', NULL, NULL, NULL, NULL, 0)";
    sqlx::raw_sql(children).execute(&pool).await.unwrap();
    for n in 2..=all.iter().count() {
        upto(n).run(&pool).await.unwrap();
        let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(&pool).await.unwrap();
        assert!(broken.is_empty(), "migration {n} left broken references");
    }
    // The references of other tables still bind, and so does the rule of one active version.
    assert!(sqlx::query("DELETE FROM model_versions WHERE id = 'child'").execute(&pool).await.is_err());
    assert!(sqlx::query("UPDATE model_versions SET state = 'active'").execute(&pool).await.is_err());
    assert!(sqlx::query("UPDATE model_versions SET kind = 'nonsense'").execute(&pool).await.is_err());
    pool.close().await;
    let store = store::connect(&format!("sqlite://{}", dir.path().join("old.db").display())).await.unwrap();
    backend::old_rows_are_whole(&store).await;
}
