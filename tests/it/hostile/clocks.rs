//! Clocks that are set wrong for a while: nothing stays taken or open until that time comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use serde_json::json;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::user;
use crate::api::client::Server;
use crate::store::{backend, fixture};

const YEARS: i64 = 10 * 365 * 86_400 * 1_000_000;

/// A set that was leased while the clock ran ten years ahead is given out again, to its holder too.
#[tokio::test]
async fn leases_of_a_clock_that_ran_ahead_are_over() {
    let clock = Arc::new(AtomicI64::new(1_000_000 * 3_600_000_000));
    let server = Server::at(clock.clone(), |_| {}).await;
    let body = json!({"messages": user("x"), "completions": ["a", "b"], "overlap": 1});
    server.post("/v1/comparison-sets", body).await.expect(201);
    let (ada, bob) = (server.key(&["feedback"], None).await, server.key(&["feedback"], None).await);
    let next = async |key: &str, query: &str| {
        let header = format!("Bearer {key}");
        server.call("GET", &format!("/v1/label/next{query}"), &[("authorization", &header)], None).await
    };
    clock.fetch_add(YEARS, SeqCst);
    let ahead = next(&ada, "").await.expect(200).json();
    clock.fetch_sub(YEARS, SeqCst);
    let given = next(&ada, "").await.expect(200).json();
    assert_eq!(given["set_id"], ahead["set_id"]);
    // The place is taken by an ordinary lease now, for its ordinary time.
    next(&bob, "").await.expect(204);
    clock.fetch_add(3_600_000_000, SeqCst);
    next(&bob, "").await.expect(200);
}

/// A job whose worker was lost while the clock ran ahead does not wait ten years for another one.
#[tokio::test]
async fn job_leases_of_a_clock_that_ran_ahead_are_over() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    let base = fixture::model("base", instructd::domain::ModelKind::Policy);
    store.models().put(base).await.unwrap();
    store.jobs().enqueue(fixture::job("sft", None, 0)).await.unwrap();
    let (job, _) = store.jobs().claim("lost", 60, &[], 3).await.unwrap().unwrap();
    assert!(store.jobs().claim("other", 60, &[], 3).await.unwrap().is_none(), "it is held");
    let mut conn = SqliteConnection::connect(&fresh.url).await.unwrap();
    sqlx::query("UPDATE jobs SET lease_expires = lease_expires + $1").bind(YEARS).execute(&mut conn).await.unwrap();
    let (again, _) = store.jobs().claim("other", 60, &[], 3).await.unwrap().expect("taken over");
    assert_eq!((again.id, again.attempt), (job.id, 2));
}
