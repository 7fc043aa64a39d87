//! The database goes away and comes back: requests are refused at once with 503, nothing restarts, and what
//! was acknowledged stays. `INSTRUCTD_OUTAGE_SECONDS` makes the outage longer than the test needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::server::{Place, Server, setting};
use crate::store::backend;

/// How the wire between server and database behaves.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Whole,
    /// Connections end and new ones are refused, as when the database is down.
    Cut,
    /// Nothing gets through, and nobody says so, as behind a broken network.
    Silent,
}

/// Stands between the server and Postgres' socket.
struct Proxy {
    dir: tempfile::TempDir,
    wire: Arc<watch::Sender<Wire>>,
}

const SOCKET: &str = ".s.PGSQL.5432";

impl Proxy {
    fn start(upstream: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wire = Arc::new(watch::channel(Wire::Whole).0);
        let (path, state) = (dir.path().join(SOCKET), wire.clone());
        tokio::spawn(async move {
            let mut changes = state.subscribe();
            loop {
                let now = *changes.borrow_and_update();
                if now == Wire::Cut {
                    changes.changed().await.unwrap();
                    continue;
                }
                let _ = std::fs::remove_file(&path);
                let listener = UnixListener::bind(&path).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (client, _) = accepted.unwrap();
                            tokio::spawn(carry(client, upstream.clone(), state.subscribe()));
                        }
                        _ = changes.changed() => if *changes.borrow_and_update() == Wire::Cut { break },
                    }
                }
                drop(listener);
                let _ = std::fs::remove_file(&path);
            }
        });
        Self { dir, wire }
    }

    fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

/// Carries bytes both ways while the wire is whole.
async fn carry(mut client: UnixStream, upstream: PathBuf, mut wire: watch::Receiver<Wire>) {
    let Ok(mut server) = UnixStream::connect(upstream).await else { return };
    let whole = wire.wait_for(|w| *w == Wire::Whole).await.map(|_| ());
    if whole.is_err() {
        return;
    }
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        _ = wire.changed() => {}
    }
    // Bytes may be lost in between, so a connection that fell silent ends when the wire is whole again.
    let _ = wire.wait_for(|w| *w != Wire::Silent).await;
}

fn ranking(key: &str) -> Value {
    json!({"messages": [{"role": "user", "content": key}], "idempotency_key": key,
        "completions": [{"text": "a", "tier": 0}, {"text": "b", "tier": 1}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_survives_an_outage_of_the_database() {
    let Some(fresh) = backend::postgres().await else { return };
    let (name, dir) = fresh.url.split_once("?host=").unwrap();
    let proxy = Proxy::start(Path::new(dir).join(SOCKET));
    let data = tempfile::tempdir().unwrap();
    let url = format!("{name}?host={}", proxy.dir.path().display());
    let place = Place::new(&url, data.path());
    while !proxy.dir.path().join(SOCKET).exists() {
        tokio::task::yield_now().await;
    }
    let mut server = Server::start(&place).await;
    server.call("POST", "/v1/comparisons", Some(ranking("before"))).await.expect(201);

    let least = Duration::from_secs(setting("INSTRUCTD_OUTAGE_SECONDS", 1));
    for (i, wire) in [Wire::Cut, Wire::Silent, Wire::Cut].into_iter().enumerate() {
        proxy.set(wire);
        let since = Instant::now();
        // One client, one request after the other: were each to wait for a timeout, this would take minutes.
        let mut refused = 0;
        while refused < 50 || since.elapsed() < least {
            let answer = server.call("POST", "/v1/comparisons", Some(ranking(&format!("during {i}-{refused}")))).await;
            assert_eq!(answer.status, 503, "{}", answer.json);
            assert_eq!(answer.json["error"]["code"], "database_unavailable");
            refused += 1;
            server.call("GET", "/health", None).await.expect(200);
            server.call("GET", "/ready", None).await.expect(503);
            server.call("GET", "/metrics", None).await.expect(200);
        }
        println!("outage {}: {refused} refused in {:?}", i + 1, since.elapsed());
        proxy.set(Wire::Whole);
        loop {
            let answer = server.call("POST", "/v1/comparisons", Some(ranking(&format!("after {i}")))).await;
            match answer.status {
                200 | 201 => break,
                status => assert_eq!(status, 503, "{}", answer.json),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.call("GET", "/ready", None).await.expect(200);
    }
    let keys: Vec<_> = fresh
        .store
        .judgments()
        .list(crate::store::fixture::page(500), None)
        .await
        .unwrap()
        .into_iter()
        .map(|j| j.idempotency_key)
        .collect();
    for key in ["before", "after 0", "after 1", "after 2"] {
        assert_eq!(keys.iter().filter(|k| *k == key).count(), 1, "{key} in {keys:?}");
    }
    // The same process all along, and it still stops politely.
    server.signal(libc::SIGTERM);
    assert!(server.end().await.success(), "{}", server.words());
}
