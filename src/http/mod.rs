//! The HTTP API: one table of routes, each with its required access; JSON in and out. No SQL, no tensors, no policy:
//! handlers translate requests and call services.

pub mod access;
pub mod admin;
pub mod anthropic;
pub mod ask;
pub mod attention;
pub mod auth;
pub mod batches;
pub mod choices;
mod compressed;
pub mod contract;
pub mod conversations;
mod cross_origin;
pub mod docs;
pub mod encoders;
pub mod error;
pub mod examples;
pub mod extract;
pub mod feedback;
pub mod guesses;
pub mod hosts;
pub mod key_map;
pub mod label;
pub mod markdown;
pub mod nulls;
pub mod observe;
pub mod oidc;
pub mod openai;
pub mod openapi;
pub mod pages;
pub mod peer;
mod proxied;
pub mod rates;
pub mod rerank;
pub mod responses;
pub mod route;
pub mod routes;
pub mod rubrics;
pub mod session;
pub mod sets;
pub mod shown;
pub mod status;

use std::sync::{Arc, LazyLock, OnceLock};

use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::catch_panic::CatchPanicLayer;

use crate::engine::BlockingPool;
use crate::service::Services;

/// State shared by handlers.
pub struct App {
    pub services: Arc<Services>,
    pub prometheus: PrometheusHandle,
    pub rates: rates::Rates,
    /// The API's page and document, generated once.
    pub docs: OnceLock<Bytes>,
    pub openapi: OnceLock<Bytes>,
}

pub type AppState = Arc<App>;

/// Most concurrent pieces of long work of this module (parsing, formatting), and most that may wait.
const MAX_BLOCKING: usize = 4;
const MAX_BLOCKING_WAITING: usize = 64;
static BLOCKING: LazyLock<BlockingPool> = LazyLock::new(|| BlockingPool::new(MAX_BLOCKING, MAX_BLOCKING_WAITING));

/// Runs long work on a blocking thread, with limited concurrency, to keep the async threads free.
///
/// # Errors
/// 429 when too many wait.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, error::ApiError> {
    BLOCKING.run(|_| Ok(work())).await.map_err(error::ApiError::from)
}

/// The state of handlers over these services.
pub fn state(services: Arc<Services>) -> AppState {
    let rates = rates::Rates::new(&services.config.rates);
    let (docs, openapi) = (OnceLock::new(), OnceLock::new());
    Arc::new(App { services, prometheus: status::prometheus(), rates, docs, openapi })
}

/// The whole server as one service; tests call it without a socket.
pub fn router(services: Arc<Services>) -> Router {
    router_of(state(services))
}

/// The whole server as one service, over existing state.
pub fn router_of(state: AppState) -> Router {
    let services = &state.services;
    let limits = services.config.limits.clone();
    let cors = cross_origin::layer(&services.config.server.cors_origins);
    let hosts = hosts::Hosts::new(services.config.listen, &services.config.server.hosts);
    let compress = state.services.config.server.compress;
    let mut router = Router::new();
    for route in routes::table(&limits) {
        let guard = middleware::from_fn_with_state(auth::Guard::of(&route, state.clone()), auth::guard);
        router = router.route(route.path, route.handler.layer(guard));
    }
    router = router
        .fallback(pages::missing)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(CatchPanicLayer::custom(error::panicked));
    if compress {
        router = router.layer(compressed::layer());
    }
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    router
        .layer(middleware::from_fn_with_state(hosts, hosts::check))
        .layer(middleware::from_fn(observe::observe))
        .with_state(state)
}
