//! PostgreSQL behind PgBouncer with `pool_mode = transaction`: what the conformance suite does not show.

use std::time::Duration;

use instructd::domain::ModelKind;
use instructd::store::{self, StoreError, dump};

use super::{backend, fixture};
use crate::support::eventually::{LONG, eventually};

/// Several servers start at once on an empty database, and on one that is migrated already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_migrate_one_after_the_other() {
    let Some(url) = backend::pooler_without_schema().await else { return };
    for _ in 0..2 {
        let opened = futures::future::join_all((0..6).map(|_| store::connect(&url))).await;
        for store in opened {
            let store = store.unwrap();
            assert_eq!(store.counts().await.unwrap().prompts, 0);
            store.close().await;
        }
    }
    // A server without the pooler finds the same schema.
    store::connect(&backend::direct(&url)).await.unwrap().close().await;
}

/// Many tasks send different statements over three connections of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_do_not_meet_those_of_others() {
    let Some(fresh) = backend::pooler().await else { return };
    let second = store::connect(&fresh.url).await.unwrap();
    let stores = [fresh.store.clone(), second];
    let tasks = (0..24).map(|task: usize| {
        let store = stores[task % 2].clone();
        tokio::spawn(async move {
            for round in 0..10 {
                let set = fixture::stored_set(&store, &format!("{task} {round}"), &["a", "b"], 1).await;
                assert_eq!(store.sets().get(&set.id).await.unwrap().id, set.id);
                assert!(store.counts().await.unwrap().prompts > 0);
                assert!(store.jobs().list(fixture::page(5), None).await.unwrap().is_empty());
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(stores[1].counts().await.unwrap().sets_open, 240);
}

/// A read ends its transaction: PgBouncer would otherwise run out of connections.
#[tokio::test]
async fn reads_give_their_connections_back() {
    let Some(fresh) = backend::pooler().await else { return };
    let direct = sqlx::PgPool::connect(&backend::direct(&fresh.url)).await.unwrap();
    for _ in 0..20 {
        fresh.store.counts().await.unwrap();
        assert!(matches!(fresh.store.sets().get(&"no".into()).await, Err(StoreError::NotFound { .. })));
    }
    let idle = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    let ended = async || (sqlx::query_scalar::<_, i64>(idle).fetch_one(&direct).await.unwrap() == 0).then_some(());
    eventually(LONG, "the end of all transactions", ended).await;
    let prepared = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()";
    assert!(sqlx::query_scalar::<_, i64>(prepared).fetch_one(&direct).await.unwrap() <= 3 + 2, "three and our own");
}

/// Each statement of a transaction has the limits that a session has without a pooler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_held_for_long_is_an_error() {
    let Some(fresh) = backend::pooler().await else { return };
    let direct = sqlx::PgPool::connect(&backend::direct(&fresh.url)).await.unwrap();
    let mut other = direct.begin().await.unwrap();
    sqlx::query("LOCK TABLE prompts IN ACCESS EXCLUSIVE MODE").execute(&mut *other).await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(20), fresh.store.prompts().put(fixture::prompt("q"))).await;
    assert!(matches!(refused, Ok(Err(StoreError::Unavailable(_)))), "{refused:?}");
    other.rollback().await.unwrap();
    fresh.store.prompts().put(fixture::prompt("q")).await.unwrap();
}

/// A dump is written through the pooler, and read without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dumps_are_written() {
    let Some(fresh) = backend::pooler().await else { return };
    fixture::stored_set(&fresh.store, "q", &["a", "b"], 1).await;
    fresh.store.models().put(fixture::model("base", ModelKind::Policy)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Twice, because statements that stay on a connection would disturb the second time.
    dump::export(&fresh.url, &dir.path().join("first")).await.unwrap();
    let found = dump::export(&fresh.url, &dir.path().join("second")).await.unwrap();
    fresh.store.close().await;
    let empty = backend::pooler_without_schema().await.unwrap();
    let refused = dump::import(&empty, &dir.path().join("second"), &found).await.unwrap_err().to_string();
    assert!(refused.contains("without a pooler"), "{refused}");
    dump::import(&backend::direct(&empty), &dir.path().join("second"), &found).await.unwrap();
    let store = store::connect(&empty).await.unwrap();
    assert_eq!((store.counts().await.unwrap().completions, store.models().list().await.unwrap().len()), (2, 1));
}

#[tokio::test]
async fn other_modes_are_refused() {
    let error = store::connect("postgres://a@localhost/b?pooler=statement&host=/tmp").await.err().unwrap().to_string();
    assert!(error.contains("\"transaction\", not \"statement\""), "{error}");
}
