//! `POST /v1/attention` and `GET /v1/plan`: attention maps of a model, and the resources that a model needs.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::MaybeCaller;
use super::contract::around_list;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Query};
use crate::domain::{ModelKind, ModelVersionId};
use crate::engine::Attention;
use crate::model::presets;
use crate::service::budget;
use crate::service::plan::{self, Plan, PlanArgs};

/// Most tokens of a text.
const MOST_TOKENS: usize = 128;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionRequest {
    /// A policy's or an encoder's name or id, or `policy` or `encoder`: the active one. Default: `policy`.
    pub model: Option<String>,
    pub text: String,
    /// Layers, counted from 0. Default: all, as far as the response may hold them.
    pub layers: Option<Vec<usize>>,
}

/// The version that computed the maps.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Origin {
    pub model_version: ModelVersionId,
}

/// Attention probabilities between tokens.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AttentionMaps {
    pub maps: Vec<LayerMaps>,
    #[schemars(extend("const" = "attention"))]
    pub object: &'static str,
    pub model: String,
    pub kind: ModelKind,
    /// Whether a token attends only to itself and to preceding ones.
    pub causal: bool,
    pub tokens: Vec<String>,
    /// Bytes of each token, which may be partial characters.
    pub bytes: Vec<Vec<u8>>,
    pub ids: Vec<u32>,
    pub n_layers: usize,
    pub n_heads: usize,
    pub instructd: Origin,
}

/// The heads of one layer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LayerMaps {
    /// From 0.
    pub layer: usize,
    /// `heads[h][i][j]`: how much token i attends to token j, rounded to five digits.
    pub heads: Vec<Vec<Vec<f64>>>,
}

pub async fn create(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<AttentionRequest>,
) -> ApiResult<Response> {
    let (services, model) = (&state.services, request.model.as_deref());
    if request.text.len() > 16 * MOST_TOKENS {
        return Err(ApiError::bad(
            "text",
            format!("has {} bytes; at most {MOST_TOKENS} tokens are allowed", request.text.len()),
        ));
    }
    // Each layer may be named once, because repeated ones would make the response arbitrarily long.
    let layers = request.layers.clone().unwrap_or_default();
    let mut seen = BTreeSet::new();
    if let Some(i) = layers.iter().position(|layer| !seen.insert(*layer)) {
        return Err(ApiError::bad(format!("layers[{i}]"), format!("layer {} is named twice", layers[i])));
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
    let answer = AttentionMaps {
        maps: Vec::new(),
        object: "attention",
        model: version.name,
        kind: version.kind,
        causal: found.causal,
        tokens: found.tokens.clone(),
        bytes: found.bytes.clone(),
        ids: found.ids.clone(),
        n_layers,
        n_heads: found.n_heads,
        instructd: Origin { model_version: version.id },
    };
    // Two million numbers are formatted on a blocking thread.
    let body = super::run_blocking(move || written(&found, &layers, &answer)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The response with `maps`, formatted number by number.
fn written(found: &Attention, layers: &[usize], answer: &AttentionMaps) -> String {
    use std::fmt::Write;
    let n = found.tokens.len();
    let (head, tail) = around_list(answer);
    // "0.12345,"
    let mut out = String::with_capacity(tail.len() + 64 + 9 * layers.len() * found.n_heads * n * n);
    out.push_str(&head);
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
                    // Five digits are enough for a picture.
                    let _ = write!(out, "{}", (f64::from(*p) * 1e5).round() / 1e5);
                }
                out.push(']');
            }
            out.push(']');
        }
        out.push_str("]}");
    }
    out.push_str(&tail);
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

/// A published architecture with its number of parameters.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PresetView {
    pub name: &'static str,
    pub title: &'static str,
    pub parameters: u64,
    /// Parameters of the published architecture, if it differs from the one here.
    pub original_parameters: Option<u64>,
    /// Number of parameters as its authors state it.
    pub published: &'static str,
    pub note: &'static str,
    pub n_layers: usize,
    pub hidden_size: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub max_positions: usize,
    pub vocab_size: usize,
}

/// The presets, or the plan of one of them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PlanAnswer {
    Presets(PresetList),
    Plan(Box<PresetPlan>),
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct PresetList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<PresetView>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct PresetPlan {
    #[schemars(extend("const" = "plan"))]
    pub object: &'static str,
    pub preset: PresetView,
    pub args: PlanArgs,
    pub plan: Plan,
}

/// Without `preset`: every preset with its number of parameters.
pub async fn plan(Query(query): Query<PlanQuery>) -> ApiResult<axum::Json<PlanAnswer>> {
    let Some(name) = &query.preset else {
        let data = presets::all().iter().map(about).collect();
        return Ok(axum::Json(PlanAnswer::Presets(PresetList { object: "list", data })));
    };
    let preset =
        presets::find(name).ok_or_else(|| ApiError::bad("preset", "is not a preset; GET /v1/plan lists them"))?;
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
    let answer = PresetPlan { object: "plan", preset: about(&preset), args, plan };
    Ok(axum::Json(PlanAnswer::Plan(Box::new(answer))))
}

fn about(preset: &presets::Preset) -> PresetView {
    let c = &preset.config;
    PresetView {
        name: preset.name,
        title: preset.title,
        parameters: presets::parameters(c),
        original_parameters: preset.original,
        published: preset.published,
        note: preset.note,
        n_layers: c.n_layers,
        hidden_size: c.hidden_size,
        n_heads: c.n_heads,
        n_kv_heads: c.n_kv_heads,
        max_positions: c.max_positions,
        vocab_size: c.vocab_size,
    }
}
