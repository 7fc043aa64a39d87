//! A database that others hold, or that is damaged.

use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::{place, user};
use crate::crash::server::Server;

async fn ready(server: &Server) -> u16 {
    server.call("GET", "/ready", None).await.status
}

/// Waits until `/ready` says `status`; returns how long it took.
async fn until(server: &Server, status: u16) -> Duration {
    let began = Instant::now();
    while ready(server).await != status {
        assert!(began.elapsed() < Duration::from_secs(10), "/ready never said {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_not_ready_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let server = Server::start(&place).await;
    let mut other = SqliteConnection::connect(&place.database_url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let took = until(&server, 503).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    // What only reads goes on; a write is refused in words, and not kept waiting for ever.
    server.call("GET", "/v1/prompts", None).await.expect(200);
    server.call("GET", "/health", None).await.expect(200);
    let began = Instant::now();
    let refused = server.call("POST", "/v1/prompts", Some(json!({"messages": user("x")}))).await.expect(503);
    assert_eq!(refused["error"]["code"], "database_unavailable", "{refused}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    until(&server, 200).await;
    server.call("POST", "/v1/prompts", Some(json!({"messages": user("x")}))).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let mut server = Server::start(&place).await;
    server.call("POST", "/v1/prompts", Some(json!({"messages": user("x")}))).await.expect(201);
    server.signal(libc::SIGTERM);
    server.end().await;
    let mut conn = SqliteConnection::connect(&place.database_url).await.unwrap();
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.unwrap();
    let page: i64 =
        sqlx::query_scalar("SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = 'judgments'")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    let size: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let path = place.database_url.strip_prefix("sqlite://").unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(((page - 1) * size) as u64)).unwrap();
    file.write_all(&vec![0xa5; size as usize]).unwrap();
    drop(file);
    let server = Server::listening(&place);
    // It comes up, and says that it is not well.
    for _ in 0..40 {
        let answer = server.call("GET", "/ready", None).await;
        assert_eq!(answer.status, 503, "{}", answer.json);
        if answer.json["error"]["code"] == "database_unavailable" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("/ready does not name the database: {}", server.words());
}
