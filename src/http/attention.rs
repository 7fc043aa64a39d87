//! `POST /v1/attention` and `GET /v1/plan`: a look into a model, and what a model of some size needs.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Query};
use crate::engine::Attention;
use crate::model::presets;
use crate::service::budget;
use crate::service::plan::{self, PlanArgs};

/// Tokens of a text that is looked at.
const MOST_TOKENS: usize = 128;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionRequest {
    /// A policy's or an encoder's name or id, or `policy` or `encoder`: the active one. Default: `policy`.
    pub model: Option<String>,
    pub text: String,
    /// Which layers, from 0. Default: all, as far as an answer holds them.
    pub layers: Option<Vec<usize>>,
}

pub async fn create(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<AttentionRequest>,
) -> ApiResult<Response> {
    let (services, model) = (&state.services, request.model.as_deref());
    if request.text.len() > 16 * MOST_TOKENS {
        return Err(ApiError::bad("text", format!("at most {MOST_TOKENS} tokens are shown")));
    }
    // Each layer is shown once: repeated ones would make the answer as long as the request likes.
    let layers = request.layers.clone().unwrap_or_default();
    let mut seen = BTreeSet::new();
    if let Some(i) = layers.iter().position(|layer| !seen.insert(*layer)) {
        return Err(ApiError::bad(format!("layers[{i}]"), format!("layer {} is there twice", layers[i])));
    }
    let (version, found) =
        crate::service::attention::maps(services, model, &request.text, MOST_TOKENS, caller.is_admin()).await?;
    let n_layers = found.layers.len();
    if let Some(i) = layers.iter().position(|layer| *layer >= n_layers) {
        let message = format!("the model has {n_layers} layers, counted from 0");
        return Err(ApiError::bad(format!("layers[{i}]"), message));
    }
    let layers = if request.layers.is_some() { layers } else { (0..n_layers).collect() };
    budget::maps(layers.len(), found.n_heads, found.tokens.len())?;
    let tail = json!({
        "object": "attention",
        "model": version.name,
        "kind": version.kind,
        "causal": found.causal,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "ids": found.ids,
        "n_layers": n_layers,
        "n_heads": found.n_heads,
        "instructd": {"model_version": version.id},
    })
    .to_string();
    // Two million numbers are no work for the threads that answer everybody.
    let body = super::apart(move || written(&found, &layers, &tail)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The answer, with `maps` in it.
fn written(found: &Attention, layers: &[usize], tail: &str) -> String {
    use std::fmt::Write;
    let n = found.tokens.len();
    // "0.12345,"
    let mut out = String::with_capacity(tail.len() + 64 + 9 * layers.len() * found.n_heads * n * n);
    out.push_str("{\"maps\":[");
    for (i, layer) in layers.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"layer\":{layer},\"heads\":[");
        for (h, head) in found.layers[*layer].chunks_exact(n * n).enumerate() {
            out.push_str(if h == 0 { "[" } else { ",[" });
            for (r, row) in head.chunks_exact(n).enumerate() {
                out.push_str(if r == 0 { "[" } else { ",[" });
                for (k, p) in row.iter().enumerate() {
                    if k > 0 {
                        out.push(',');
                    }
                    // Five digits are more than a picture shows.
                    let _ = write!(out, "{}", (f64::from(*p) * 1e5).round() / 1e5);
                }
                out.push(']');
            }
            out.push(']');
        }
        out.push_str("]}");
    }
    out.push_str("],");
    out.push_str(&tail[1..]);
    out
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanQuery {
    preset: Option<String>,
    bandwidth_gb_s: Option<f64>,
    tflops: Option<f64>,
    memory_gib: Option<f64>,
    context: Option<usize>,
    batch: Option<usize>,
    lora_rank: Option<usize>,
}

/// Without `preset`: every preset with its number of parameters.
pub async fn plan(Query(query): Query<PlanQuery>) -> ApiResult<axum::Json<Value>> {
    let Some(name) = &query.preset else {
        let data: Vec<Value> = presets::all().iter().map(about).collect();
        return Ok(axum::Json(json!({"object": "list", "data": data})));
    };
    let preset = presets::find(name).ok_or_else(|| ApiError::bad("preset", "there is no such preset; see /v1/plan"))?;
    let default = PlanArgs::default();
    let args = PlanArgs {
        bandwidth_gb_s: query.bandwidth_gb_s.unwrap_or(default.bandwidth_gb_s),
        tflops: query.tflops.unwrap_or(default.tflops),
        memory_gib: query.memory_gib.unwrap_or(default.memory_gib),
        usable: default.usable,
        context: query.context.unwrap_or(default.context),
        batch: query.batch.unwrap_or(default.batch),
        lora_rank: query.lora_rank.unwrap_or(default.lora_rank),
    };
    let plan = plan::plan(&preset.config, &args).map_err(|e| ApiError::bad(e.field, e.message))?;
    Ok(axum::Json(json!({"object": "plan", "preset": about(&preset), "args": args, "plan": plan})))
}

fn about(preset: &presets::Preset) -> Value {
    let c = &preset.config;
    json!({
        "name": preset.name,
        "title": preset.title,
        "parameters": presets::parameters(c),
        "original_parameters": preset.original,
        "published": preset.published,
        "note": preset.note,
        "n_layers": c.n_layers,
        "hidden_size": c.hidden_size,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "max_positions": c.max_positions,
        "vocab_size": c.vocab_size,
    })
}
