//! Clients that hold connections without using them, against the real process.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::place;
use crate::crash::server::Server;

const PLACES: usize = 20;

async fn health(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    let mut all = String::new();
    let _ = stream.read_to_string(&mut all).await;
    all
}

/// Requests without end, and no answer is read.
async fn reads_nothing(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let many = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(200);
    stream.write_all(many.as_bytes()).await.unwrap();
    stream
}

/// HTTP/2 with its preface, and no request.
async fn asks_nothing(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stream
}

/// A body that never comes.
async fn sends_half(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// With every place taken by one client, the next one is answered, and in the end no descriptor is lost.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_hold_every_connection() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path())
        .with("INSTRUCTD_SERVER__MAX_CONNECTIONS", PLACES)
        .with("INSTRUCTD_SERVER__CONNECTIONS_PER_ADDRESS", PLACES)
        .with("INSTRUCTD_SERVER__RESERVED_CONNECTIONS", 0)
        .with("INSTRUCTD_SERVER__BODY_TIMEOUT_SECONDS", 3)
        .with("INSTRUCTD_SERVER__HEADER_TIMEOUT_SECONDS", 10)
        .with("INSTRUCTD_SERVER__WRITE_TIMEOUT_SECONDS", 3)
        .with("INSTRUCTD_SERVER__IDLE_TIMEOUT_SECONDS", 3);
    let server = Server::start(&place).await;
    let address = server.url.strip_prefix("http://").unwrap();
    let before = server.descriptors();
    for kind in ["reads nothing", "asks nothing", "sends half"] {
        let mut held = Vec::new();
        for _ in 0..PLACES {
            held.push(match kind {
                "reads nothing" => reads_nothing(address).await,
                "asks nothing" => asks_nothing(address).await,
                _ => sends_half(address).await,
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer = tokio::time::timeout(Duration::from_secs(10), health(address)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{kind}: the server is unreachable"));
        assert!(answer.contains("200 OK"), "{kind}: {answer}");
        drop(held);
    }
    for _ in 0..200 {
        if server.descriptors() <= before + 4 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} descriptors, {before} before", server.descriptors());
}
