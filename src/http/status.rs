//! `/health`, `/ready` and `/metrics`.

use std::sync::OnceLock;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use schemars::JsonSchema;
use serde::Serialize;

use super::AppState;
use super::error::{ApiError, ApiResult};
use crate::engine::{DeviceStats, EngineError};
use crate::service::{health as store_health, overview};

const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The process's one recorder: the `metrics` crate has a single global place for it.
pub fn prometheus() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new();
            let recorder = match builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS) {
                Ok(builder) => builder.build_recorder(),
                // Only an empty bucket list is refused.
                Err(_) => PrometheusBuilder::new().build_recorder(),
            };
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("another metrics recorder is installed; /metrics stays empty");
            }
            describe();
            handle
        })
        .clone()
}

fn describe() {
    metrics::describe_gauge!("instructd_requests_running", "Samples being generated");
    metrics::describe_gauge!("instructd_requests_waiting", "Samples waiting for a slot");
    metrics::describe_histogram!("instructd_time_to_first_token_seconds", "From admission to the first token");
    metrics::describe_histogram!("instructd_inter_token_latency_seconds", "Between tokens of one sample");
    metrics::describe_histogram!("instructd_request_duration_seconds", "Until the end of the response's body");
    metrics::describe_histogram!("instructd_queue_seconds", "From admission to the first prefill step");
    metrics::describe_counter!("instructd_prompt_tokens_total", "Prompt tokens admitted");
    metrics::describe_counter!("instructd_generated_tokens_total", "Tokens drawn");
    metrics::describe_counter!("instructd_draft_tokens_total", "Tokens guessed before they were drawn");
    metrics::describe_counter!("instructd_draft_tokens_right_total", "Of the guessed tokens, those that were drawn");
    metrics::describe_gauge!("instructd_kv_tokens_used", "Cached tokens that running samples hold");
    metrics::describe_gauge!("instructd_kv_tokens_remembered", "Cached prefixes kept for later prompts");
    metrics::describe_gauge!("instructd_kv_tokens_total", "Tokens the key-value cache can hold");
    metrics::describe_gauge!("instructd_device_up", "1 = the last steps of the device succeeded");
    metrics::describe_gauge!("instructd_device_requests_running", "Samples being generated on the device");
    metrics::describe_gauge!("instructd_device_bytes_used", "Bytes of weights and caches on the device");
    metrics::describe_gauge!("instructd_device_bytes_total", "Bytes of the device that models may use");
    metrics::describe_gauge!("instructd_device_kv_pages_used", "Cache pages of 16 tokens that running samples hold");
    metrics::describe_gauge!("instructd_device_kv_pages_total", "Cache pages on the device");
    metrics::describe_gauge!("instructd_device_utilization", "Share of time in which kernels ran, from NVML");
    metrics::describe_gauge!("instructd_device_driver_bytes_used", "Bytes that all programs use, from NVML");
    metrics::describe_gauge!("instructd_device_driver_bytes_total", "Bytes of the device, from NVML");
    metrics::describe_gauge!("instructd_jobs", "Jobs by state");
    metrics::describe_counter!("instructd_upstream_calls_total", "Calls to the upstream server by outcome");
    metrics::describe_counter!("instructd_upstream_failovers_total", "Calls made at another replica after a failure");
    metrics::describe_gauge!("instructd_upstream_replica_up", "1 = the replica answers and lists the model");
    metrics::describe_counter!("instructd_judgments_total", "Judgments stored by this process");
    metrics::describe_counter!("instructd_webhook_attempts_total", "Attempts at deliveries to webhooks by outcome");
    metrics::describe_counter!("instructd_store_statements_total", "Statements sent to the database");
}

/// The figures of one device, which is named by a label.
fn record(stats: &DeviceStats) {
    let device = || stats.device.clone();
    metrics::gauge!("instructd_device_up", "device" => device()).set(f64::from(u8::from(stats.works)));
    metrics::gauge!("instructd_device_requests_running", "device" => device()).set(stats.running as f64);
    metrics::gauge!("instructd_device_bytes_used", "device" => device()).set(stats.models.used as f64);
    metrics::gauge!("instructd_device_bytes_total", "device" => device()).set(stats.models.total as f64);
    metrics::gauge!("instructd_device_kv_pages_used", "device" => device()).set(stats.pages_used as f64);
    metrics::gauge!("instructd_device_kv_pages_total", "device" => device()).set(stats.pages_total as f64);
    if let Some(share) = stats.utilization {
        metrics::gauge!("instructd_device_utilization", "device" => device()).set(share);
    }
    if let Some(memory) = stats.all_programs {
        metrics::gauge!("instructd_device_driver_bytes_used", "device" => device()).set(memory.used as f64);
        metrics::gauge!("instructd_device_driver_bytes_total", "device" => device()).set(memory.total as f64);
    }
}

/// The process is alive.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    #[schemars(extend("const" = "ok"))]
    pub status: &'static str,
}

pub async fn health() -> axum::Json<Health> {
    axum::Json(Health { status: "ok" })
}

/// The response when requests are served.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ready {
    #[schemars(extend("const" = "ready"))]
    pub status: &'static str,
    /// Name of the active policy.
    pub model: String,
    /// Name of the active encoder.
    pub encoder: Option<String>,
    /// Error of the served model, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// 200 when a request would be served now.
pub async fn ready(State(state): State<AppState>) -> ApiResult<axum::Json<Ready>> {
    let services = &state.services;
    if services.shutdown.is_cancelled() {
        return Err(EngineError::Draining.into());
    }
    let engine = services.engine()?;
    engine.ready()?;
    let active = engine.active().ok_or(EngineError::NotReady)?;
    let encoder = store_health::active_encoder(services).await?;
    let model = active.version.name.clone();
    Ok(axum::Json(Ready { status: "ready", model, encoder, warning: services.model_fault() }))
}

pub async fn metrics(State(state): State<AppState>) -> Result<Response, ApiError> {
    let services = &state.services;
    if let Ok(engine) = services.engine() {
        let stats = engine.stats();
        metrics::gauge!("instructd_requests_running").set(stats.running as f64);
        metrics::gauge!("instructd_requests_waiting").set(stats.waiting as f64);
        metrics::gauge!("instructd_kv_tokens_used").set(stats.kv_tokens_used as f64);
        metrics::gauge!("instructd_kv_tokens_remembered").set(stats.kv_tokens_remembered as f64);
        metrics::gauge!("instructd_kv_tokens_total").set(stats.kv_tokens_total as f64);
        metrics::counter!("instructd_draft_tokens_total").absolute(stats.draft_tokens);
        metrics::counter!("instructd_draft_tokens_right_total").absolute(stats.draft_tokens_right);
    }
    for device in overview::devices(services).await {
        record(&device);
    }
    metrics::counter!("instructd_store_statements_total").absolute(store_health::statements(services));
    // An unavailable database must not suppress the other metrics.
    for (state, jobs) in store_health::jobs_by_state(services).await {
        metrics::gauge!("instructd_jobs", "state" => state.as_str()).set(jobs as f64);
    }
    let text = state.prometheus.render();
    state.prometheus.run_upkeep();
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
