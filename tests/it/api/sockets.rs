//! Real connections: clients that are slow, too many, or come and go.

use std::sync::Arc;
use std::time::Duration;

use crate::support::mock::MockOptions;
use instructd::config::Config;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::Server;
use crate::support::eventually::{LONG, eventually};

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
async fn connections_over_the_limit_wait() {
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
async fn connections_that_come_and_go_leave_nothing_busy() {
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
    eventually(LONG, "free slots", async || (engine.stats().running == 0).then_some(())).await;
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_tokens_used), (0, 0, 0));
    assert!(get(address, "/ready").await.contains("200 OK"));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("outcome=\"client_left\"") && metrics.contains("outcome=\"ok\""), "{metrics}");
}

/// From another address of this machine.
async fn get_from(source: &str, address: std::net::SocketAddr, path: &str) -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    rest(&mut stream).await
}

fn few_places(c: &mut Config) {
    c.server.max_connections = 20;
    c.server.connections_per_address = 20;
    c.server.reserved_connections = 0;
    c.server.write_timeout_seconds = 2;
    c.server.idle_timeout_seconds = 2;
}

/// 200 requests on each of 20 connections, and no answer is ever read.
async fn readers_of_nothing(address: std::net::SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let many = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
        stream.write_all(many.as_bytes()).await.unwrap();
        held.push(stream);
    }
    held
}

/// HTTP/2 connections that answer pings and ask for nothing.
async fn idle_http2(address: std::net::SocketAddr) -> Vec<tokio::task::JoinHandle<()>> {
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        held.push(tokio::spawn(async move {
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let answer = match (head[3], head[4] & 1) {
                    // Settings and pings are acknowledged.
                    (4, 0) => b"\0\0\0\x04\x01\0\0\0\0".to_vec(),
                    (6, 0) => [b"\0\0\x08\x06\x01\0\0\0\0".as_slice(), &body].concat(),
                    _ => continue,
                };
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }));
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_clients_read_nothing_are_closed() {
    let (_server, address) = listening(few_places, MockOptions::default()).await;
    let mut held = readers_of_nothing(address).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Somebody else, and somebody at the same address, get in long before any time limit.
    for source in ["127.0.0.2", "127.0.0.1"] {
        let answer = tokio::time::timeout(Duration::from_secs(6), get_from(source, address, "/health")).await;
        assert!(answer.expect("in time").contains("200 OK"));
    }
    // And in the end all of them are closed, also where nobody needs the place.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for stream in &mut held {
        tokio::time::timeout(Duration::from_secs(5), rest(stream)).await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_http2_connections_are_closed() {
    let (_server, address) = listening(few_places, MockOptions::default()).await;
    let held = idle_http2(address).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for source in ["127.0.0.2", "127.0.0.1"] {
        let answer = tokio::time::timeout(Duration::from_secs(6), get_from(source, address, "/health")).await;
        assert!(answer.expect("in time").contains("200 OK"));
    }
    for one in held {
        tokio::time::timeout(Duration::from_secs(8), one).await.expect("closed").unwrap();
    }
}

/// An HTTP/2 client that asks, and opens no window for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn unread_http2_responses_end_the_connection() {
    let (_server, address) = listening(few_places, MockOptions::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0, then GET /openapi.json (static table, literals without index).
    let path = b"/openapi.json";
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend_from_slice(path);
    block.extend_from_slice(&[0x01, 1, b'x']);
    let mut ask = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0".to_vec();
    ask.extend_from_slice(&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    ask.extend_from_slice(&block);
    stream.write_all(&ask).await.unwrap();
    let began = std::time::Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(10), rest(&mut stream)).await.expect("closed");
    assert!(began.elapsed() >= Duration::from_secs(1), "it had its time");
    assert!(!answer.contains("openapi"), "no window, no answer");
}

/// A share for each address: a crowd at one keeps nobody else out.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let mock = MockOptions { delay_per_token: Duration::from_millis(20), ..MockOptions::default() };
    let (server, address) = listening(
        |c| {
            few_places(c);
            c.server.connections_per_address = 5;
            c.server.header_timeout_seconds = 1;
        },
        mock,
    )
    .await;
    // Each is busy with an answer that goes on: none is still, none can be closed for another.
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = json!({"prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true}).to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut some = [0; 64];
        stream.read_exact(&mut some).await.unwrap();
        held.push(tokio::spawn(async move { rest(&mut stream).await }));
    }
    assert!(get_from("127.0.0.2", address, "/health").await.contains("200 OK"));
    let refused = get(address, "/health").await;
    assert!(refused.contains("503") || refused.is_empty(), "{refused}");
    assert!(server.services.engine().unwrap().stats().running > 0);
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A large answer to a client that reads slowly but reads is whole.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_get_the_whole_response() {
    let (_server, address) = listening(few_places, MockOptions::default()).await;
    let whole = get(address, "/openapi.json").await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let mut some = vec![0; 16 << 10];
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match stream.read(&mut some).await.unwrap() {
            0 => break,
            n => all.extend_from_slice(&some[..n]),
        }
    }
    let body = |text: &str| text.split("\r\n\r\n").nth(1).unwrap().to_owned();
    assert_eq!(body(&String::from_utf8(all).unwrap()), body(&whole));
}
