//! The HTTP surface: one table of routes, each with the access it asks for; JSON in and out.
//! No SQL, no tensors, no policy: handlers translate and call services.

pub mod admin;
pub mod answers;
pub mod ask;
pub mod attention;
pub mod auth;
pub mod choices;
pub mod encoders;
pub mod error;
pub mod extract;
pub mod feedback;
pub mod guesses;
pub mod label;
pub mod markdown;
pub mod observe;
pub mod openai;
pub mod openapi;
pub mod pages;
pub mod rates;
pub mod routes;
pub mod session;
pub mod sets;
pub mod status;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::catch_panic::CatchPanicLayer;

use crate::service::Services;

/// What handlers share.
pub struct App {
    pub services: Arc<Services>,
    pub prometheus: PrometheusHandle,
    pub rates: rates::Rates,
}

pub type AppState = Arc<App>;

/// The whole server as one service; tests call it without a socket.
pub fn router(services: Arc<Services>) -> Router {
    let limits = services.config.limits.clone();
    let rates = rates::Rates::new(&services.config.rates);
    let state: AppState = Arc::new(App { services, prometheus: status::prometheus(), rates });
    let mut router = Router::new();
    for route in routes::table(&limits) {
        let guard = middleware::from_fn_with_state(auth::Guard::of(&route, state.clone()), auth::guard);
        router = router.route(route.path, route.handler.layer(guard));
    }
    router
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn(observe::observe))
        .with_state(state)
}
