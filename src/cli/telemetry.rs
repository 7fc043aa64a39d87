//! The log on standard error, and traces for an OpenTelemetry collector.

use std::io::IsTerminal;
use std::sync::OnceLock;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogConfig;
use crate::domain::TRACE;

/// The provider of spans, once traces are enabled.
static TRACES: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Logs to standard error, and sends traces where the configuration names a collector; a second call changes nothing.
pub fn start(config: &LogConfig) {
    // The HTML parser behind the Markdown filter warns once for each odd table cell: a short text could fill the log.
    let filter = format!("html5ever=error,{}", config.filter);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info,html5ever=error"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Colours are for terminals: files and collectors get plain lines.
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    let lines = if config.json { lines.json().boxed() } else { lines.with_target(false).boxed() };
    let (traces, fault) = match config.traces_url.as_deref().map(|url| provider(url, config.traces_share)) {
        None => (None, None),
        Some(Err(error)) => (None, Some(error)),
        Some(Ok(provider)) => {
            let tracer = provider.tracer("instructd");
            let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
            // Traces have already been started by another call.
            let _ = TRACES.set(provider);
            (Some(layer.with_filter(filter_fn(is_traced)).with_filter(LevelFilter::TRACE)), None)
        }
    };
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).try_init();
    if let Some(error) = fault {
        tracing::error!(error, "traces are disabled: the exporter cannot be created");
    }
}

/// Sends the remaining traces; called at the end of the program.
pub fn finish() {
    if let Some(Err(error)) = TRACES.get().map(SdkTracerProvider::shutdown) {
        tracing::warn!(%error, "the last traces were not sent");
    }
}

/// The program's own spans, and warnings inside them.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    let own = metadata.target() == TRACE || metadata.target().starts_with("instructd");
    own && (metadata.target() == TRACE
        || *metadata.level() <= if metadata.is_span() { Level::INFO } else { Level::WARN })
}

/// Sends spans to `url` + `/v1/traces` in the background; while the collector is away they are dropped.
fn provider(url: &str, share: f64) -> Result<SdkTracerProvider, String> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
        .with_protocol(Protocol::HttpJson)
        .build()
        .map_err(|e| e.to_string())?;
    // Sampled by the trace's id alone: a client that names a trace cannot make this server send more of them.
    let sampler = Sampler::TraceIdRatioBased(share);
    let resource = Resource::builder().with_service_name("instructd").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource).build())
}
