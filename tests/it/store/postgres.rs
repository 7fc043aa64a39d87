//! What only the Postgres backend promises: many servers on one database, and refusals.

use instructd::store::{self, StoreError};
use sqlx::migrate::Migrator;

use super::{backend, fixture};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_servers_share_one_database() {
    let Some(fresh) = backend::postgres().await else { return };
    let opens = (0..4).map(|_| store::connect(&fresh.url));
    let mut servers = Vec::new();
    for opened in futures::future::join_all(opens).await {
        servers.push(opened.unwrap());
    }
    for i in 0..3 {
        fixture::stored_set(&servers[0], &format!("q{i}"), &["a", "b"], 1).await;
    }
    // Leases hold between servers, not only between the connections of one.
    let mut people = Vec::new();
    for i in 0..servers.len() {
        people.push(fixture::labeler(&servers[0], &format!("ada{i}")).await);
    }
    let lease = |i: usize| servers[i].leases().next(fixture::lease(&people[i], fixture::T0));
    let rounds = futures::future::join_all((0..4).map(lease)).await;
    let mut sets: Vec<_> = rounds.into_iter().filter_map(|r| r.unwrap()).map(|a| a.set_id).collect();
    assert_eq!(sets.len(), 3, "three places for four people");
    sets.sort();
    sets.dedup();
    assert_eq!(sets.len(), 3);
    assert_eq!(servers[3].backend(), "postgres");
}

#[tokio::test]
async fn refuses_a_newer_schema() {
    let Some(fresh) = backend::postgres().await else { return };
    let pool = sqlx::PgPool::connect(&fresh.url).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', true, 'x', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    // Twice: a refusal must not leave the migrator's lock behind.
    for _ in 0..2 {
        let error = store::connect(&fresh.url).await.err().expect("a newer schema must be refused").to_string();
        assert!(error.contains("9999") && error.contains("newer"), "{error}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_not_available() {
    let error = store::connect("postgres://nobody@127.0.0.1:1/none").await.err();
    assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
}

#[tokio::test]
async fn migrates_stepwise_with_rows_in_it() {
    let Some(fresh) = backend::postgres_without_schema().await else { return };
    let pool = sqlx::PgPool::connect(&fresh).await.unwrap();
    let all = sqlx::migrate::Migrator::new(std::path::Path::new("migrations/postgres")).await.unwrap();
    let upto = |n: usize| Migrator::with_migrations(all.iter().take(n).cloned().collect());
    upto(1).run(&pool).await.unwrap();
    sqlx::raw_sql(backend::OLD_ROWS).execute(&pool).await.unwrap();
    for n in 2..=all.iter().count() {
        upto(n).run(&pool).await.unwrap();
    }
    assert!(sqlx::query("UPDATE model_versions SET kind = 'nonsense'").execute(&pool).await.is_err());
    pool.close().await;
    backend::old_rows_are_whole(&store::connect(&fresh).await.unwrap()).await;
}

/// Reads that find all connections in use get theirs later, also after the time in which the server is tested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_keep_their_turn_while_the_server_is_slow() {
    let Some(fresh) = backend::postgres().await else { return };
    let pool = sqlx::PgPool::connect(&fresh.url).await.unwrap();
    let mut slow = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE").execute(&mut *slow).await.unwrap();
    let reads: Vec<_> = (0..60)
        .map(|_| {
            let store = fresh.store.clone();
            tokio::spawn(async move { store.prompts().get(&"none".into()).await })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    slow.rollback().await.unwrap();
    for read in reads {
        let answer = read.await.unwrap();
        assert!(matches!(answer, Err(StoreError::NotFound { .. })), "{answer:?}");
    }
    fresh.store.close().await;
    pool.close().await;
}

/// A store that is dropped without `close` outside a runtime, with connections that it keeps for the next reads.
#[test]
fn a_store_can_be_dropped_without_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fresh = runtime.block_on(async {
        let fresh = backend::postgres().await?;
        fresh.store.counts().await.unwrap();
        Some(fresh)
    });
    drop(fresh);
}
