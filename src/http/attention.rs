//! `POST /v1/attention` and `GET /v1/plan`: a look into a model, and what a model of some size needs.

use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Query};
use crate::model::plan::{self, PlanArgs};
use crate::model::presets;

/// Tokens of a text that is looked at.
const MOST_TOKENS: usize = 128;
/// Probabilities in one answer.
const MOST_VALUES: usize = 2_000_000;

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
) -> ApiResult<axum::Json<Value>> {
    let (services, model) = (&state.services, request.model.as_deref());
    if request.text.len() > 16 * MOST_TOKENS {
        return Err(ApiError::bad("text", format!("at most {MOST_TOKENS} tokens are shown")));
    }
    let (version, found) =
        crate::service::attention::maps(services, model, &request.text, MOST_TOKENS, caller.is_admin()).await?;
    let (n, heads) = (found.tokens.len(), found.n_heads);
    let layers = request.layers.unwrap_or_else(|| (0..found.layers.len()).collect());
    if layers.len() * heads * n * n > MOST_VALUES {
        let message = format!("give fewer layers: one answer holds {MOST_VALUES} probabilities");
        return Err(ApiError::bad("layers", message));
    }
    // Five digits are more than a picture shows.
    let rounded = |p: &f32| (f64::from(*p) * 1e5).round() / 1e5;
    let mut maps = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let Some(values) = found.layers.get(*layer) else {
            let message = format!("the model has {} layers, counted from 0", found.layers.len());
            return Err(ApiError::bad(format!("layers[{i}]"), message));
        };
        let heads: Vec<Vec<Vec<f64>>> = values
            .chunks_exact(n * n)
            .map(|head| head.chunks_exact(n).map(|row| row.iter().map(rounded).collect()).collect())
            .collect();
        maps.push(json!({"layer": layer, "heads": heads}));
    }
    Ok(axum::Json(json!({
        "object": "attention",
        "model": version.name,
        "kind": version.kind,
        "causal": found.causal,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "ids": found.ids,
        "n_layers": found.layers.len(),
        "n_heads": heads,
        "maps": maps,
        "instructd": {"model_version": version.id},
    })))
}

#[derive(Debug, Deserialize)]
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
