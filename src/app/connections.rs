//! Accepts connections: HTTP/1 and HTTP/2, a cap on how many, a time limit for request headers, and a
//! drain at shutdown. `axum::serve` has none of the limits, so hyper is driven directly.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::config::ServerConfig;
use crate::http::rates::Peer;
use crate::service::Services;

/// Serves until shutdown, then waits for running requests up to the drain timeout.
pub async fn serve(listener: TcpListener, router: Router, config: &ServerConfig, services: Arc<Services>) {
    let places = Arc::new(Semaphore::new(config.max_connections));
    let header_timeout = Duration::from_secs(config.header_timeout_seconds);
    let graceful = GracefulShutdown::new();
    loop {
        // Over the cap, connections wait in the kernel's backlog.
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
            () = services.shutdown.cancelled() => break,
        };
        let (place, stream, peer) = match accepted {
            (Ok(place), Ok((stream, peer))) => (place, stream, Peer(peer.ip())),
            (_, Err(error)) => {
                // Usually out of file descriptors: give others time to close.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let (router, watcher) = (router.clone(), graceful.watcher());
        tokio::spawn(async move {
            one(stream, peer, router, header_timeout, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    let deadline = Duration::from_secs(config.drain_timeout_seconds);
    let drained = async {
        if let Ok(engine) = services.engine() {
            engine.drain(deadline).await;
        }
        graceful.shutdown().await;
    };
    if tokio::time::timeout(deadline + Duration::from_secs(1), drained).await.is_err() {
        tracing::warn!("some requests were still running at the end of the drain");
    }
}

async fn one(stream: TcpStream, peer: Peer, router: Router, header_timeout: Duration, watcher: Watcher) {
    let _ = stream.set_nodelay(true);
    // Which protocol it is has to be said in time too.
    let Ok(Some(protocol)) = tokio::time::timeout(header_timeout, protocol(&stream)).await else { return };
    let service =
        TowerToHyperService::new(router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer);
            request
        }));
    let io = TokioIo::new(stream);
    let ended = match protocol {
        Protocol::Http1 => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .serve_connection(io, service);
            watcher.watch(connection).await
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
                .max_concurrent_streams(256)
                .serve_connection(io, service);
            watcher.watch(connection).await
        }
    };
    if let Err(error) = ended {
        // Clients leave as they like; that is no fault of the server.
        tracing::debug!(%error, "a connection ended early");
    }
}

enum Protocol {
    Http1,
    Http2,
}

/// HTTP/2 with prior knowledge begins with `PRI `; no HTTP/1 method does. `None` = closed before four bytes.
async fn protocol(stream: &TcpStream) -> Option<Protocol> {
    let mut start = [0; 4];
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return None,
            Ok(4) => return Some(if &start == b"PRI " { Protocol::Http2 } else { Protocol::Http1 }),
            // The same bytes would be seen again at once.
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
