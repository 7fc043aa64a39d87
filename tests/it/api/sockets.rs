//! Real connections: clients that are slow, too many, or come and go.

use std::sync::Arc;
use std::time::Duration;

use instructd::config::Config;
use instructd::engine::mock::MockOptions;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::Server;

/// The server on a port of its own, as `instructd serve` runs it.
async fn listening(change: impl FnOnce(&mut Config), mock: MockOptions) -> (Arc<Server>, std::net::SocketAddr) {
    let server = Arc::new(Server::with(change, mock).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (router, services) = (server.router.clone(), server.services.clone());
    tokio::spawn(async move {
        let config = services.config.server.clone();
        instructd::app::connections::serve(listener, router, &config, services).await;
    });
    (server, address)
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end too.
    stream.read_to_end(&mut all).await.ok();
    String::from_utf8_lossy(&all).into_owned()
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    rest(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_end_the_connection() {
    let (_server, address) = listening(|c| c.server.header_timeout_seconds = 1, MockOptions::default()).await;
    for start in ["", "G", "GET", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        // One byte now and then does not prolong it.
        let (mut reader, mut writer) = stream.into_split();
        let drip = tokio::spawn(async move {
            while writer.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.ok();
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
        drip.abort();
    }
    assert!(get(address, "/health").await.contains("200 OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_answered_408() {
    let (_server, address) = listening(|c| c.server.body_timeout_seconds = 1, MockOptions::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut first = vec![0; 512];
    let n = reader.read(&mut first).await.unwrap();
    assert!(
        String::from_utf8_lossy(&first[..n]).starts_with("HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&first[..n])
    );
    drip.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_cap_wait_for_a_place() {
    let (_server, address) = listening(
        |c| {
            c.server.max_connections = 2;
            c.server.header_timeout_seconds = 2;
        },
        MockOptions::default(),
    )
    .await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.unwrap();
        held.push(stream);
    }
    // The third is in the backlog until one of the two has idled for the header timeout or left.
    let third = tokio::spawn(get(address, "/health"));
    held.pop();
    assert!(third.await.unwrap().contains("200 OK"));
}

/// 64 clients that come, go, and cut streams at random; in the end nothing is busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_and_goes_leaves_nothing_behind() {
    let mock = MockOptions { delay_per_token: Duration::from_micros(200), ..MockOptions::default() };
    let (server, address) = listening(|_| {}, mock).await;
    let clients = (0..64u64).map(|client| {
        tokio::spawn(async move {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(client);
            let mut answered = 0;
            for _ in 0..6 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let body = json!({"prompt": "x", "max_tokens": 60, "ignore_eos": true, "n": rng.random_range(1..4),
                    "stream": rng.random_bool(0.7)})
                .to_string();
                let head = format!(
                    "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
                     content-length: {}\r\n\r\n",
                    body.len()
                );
                let whole = head + &body;
                match rng.random_range(0..4) {
                    // Cut in the request.
                    0 => {
                        let cut = rng.random_range(1..whole.len());
                        stream.write_all(&whole.as_bytes()[..cut]).await.unwrap();
                    }
                    // Cut in the answer.
                    1 | 2 => {
                        stream.write_all(whole.as_bytes()).await.unwrap();
                        let mut some = vec![0; rng.random_range(1..2000)];
                        assert!(stream.read(&mut some).await.unwrap() <= some.len());
                    }
                    _ => {
                        stream.write_all(whole.as_bytes()).await.unwrap();
                        let answer = rest(&mut stream).await;
                        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                        answered += 1;
                    }
                }
            }
            answered
        })
    });
    let answered: Vec<i32> =
        futures::future::join_all(clients.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
    assert!(answered.iter().sum::<i32>() > 50);
    let engine = server.services.engine().unwrap();
    for _ in 0..2000 {
        if engine.stats().running == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_tokens_used), (0, 0, 0));
    assert!(get(address, "/ready").await.contains("200 OK"));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("outcome=\"client_left\"") && metrics.contains("outcome=\"ok\""), "{metrics}");
}
