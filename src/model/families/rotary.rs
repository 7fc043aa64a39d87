//! Rotary positions in config.json: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (older), of
//! every kind that transformers implements.

use serde_json::Value;

use super::read::Defaults;
use super::read::{Result, get, malformed, number, number_opt, size_opt, unsupported};
use crate::model::config::{LocalRope, ModelConfig, PositionKind, RopeScaling};

pub(super) struct Rotary {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// Number of rotated channels of each head.
    pub rotary_dim: Option<usize>,
}

/// `trained`: `max_position_embeddings`.
pub(super) fn read(config: &Value, trained: usize, head_dim: usize, defaults: &Defaults) -> Result<Rotary> {
    let newer = get(config, "rope_parameters").filter(|rope| !nested(rope));
    let older = get(config, "rope_scaling").filter(|rope| rope.as_object().is_some_and(|map| !map.is_empty()));
    let empty = Value::Null;
    let rope = older.or(newer).unwrap_or(&empty);
    let theta = match (number_opt(rope, "rope_theta")?, newer) {
        (Some(theta), _) => Some(theta),
        (None, Some(newer)) => number_opt(newer, "rope_theta")?,
        (None, None) => None,
    };
    let theta = theta.or(number_opt(config, "rope_theta")?).unwrap_or(defaults.theta);
    let share = match (number_opt(rope, "partial_rotary_factor")?, newer) {
        (None, Some(newer)) => number_opt(newer, "partial_rotary_factor")?,
        (share, _) => share,
    };
    let share = share.or(number_opt(config, "partial_rotary_factor")?).unwrap_or(1.0);
    let dim = rotary_dim(head_dim, share, defaults.partial)?;
    Ok(Rotary { theta, scaling: scaling(config, rope, trained, dim)?, rotary_dim: Some(dim) })
}

fn rotary_dim(head_dim: usize, share: f64, partial: bool) -> Result<usize> {
    if share == 1.0 {
        return Ok(head_dim);
    }
    if !partial || share > 1.0 {
        return unsupported(format!("`partial_rotary_factor` = {share} in this family"));
    }
    match (head_dim as f64 * share) as usize {
        // An odd number of channels is rounded up, as in transformers.
        dim if dim > 0 && 2 * dim.div_ceil(2) <= head_dim => Ok(dim),
        dim => {
            unsupported(format!("`partial_rotary_factor` = {share}: {dim} of {head_dim} channels cannot turn in pairs"))
        }
    }
}

/// True where each kind of layer has its own entry.
fn nested(rope: &Value) -> bool {
    ["full_attention", "sliding_attention"].iter().any(|kind| rope.get(*kind).is_some())
}

/// Full and windowed layers with separate bases; `older` names their fields in older files, with the defaults.
pub(super) fn by_layer(config: &Value, parsed: &mut ModelConfig, older: [(&str, f64); 2]) -> Result<()> {
    let trained = parsed.max_positions;
    let empty = Value::Null;
    let of = |kind: &str, (key, default): (&str, f64), scaled: bool| -> Result<(f64, RopeScaling)> {
        let newer = get(config, "rope_parameters").and_then(|rope| get(rope, kind));
        let rope = get(config, "rope_scaling").filter(|_| scaled).or(newer).unwrap_or(&empty);
        let own = newer.map_or(Ok(None), |rope| number_opt(rope, "rope_theta"))?;
        let theta = own.or(number_opt(rope, "rope_theta")?).or(number_opt(config, key)?).unwrap_or(default);
        Ok((theta, scaling(config, rope, trained, parsed.head_dim)?))
    };
    let (theta, full) = of("full_attention", older[0], true)?;
    let (local_theta, local) = of("sliding_attention", older[1], parsed.arch.is_encoder())?;
    parsed.max_positions = full.context(trained);
    parsed.position = PositionKind::Rope { theta };
    parsed.switches.rope_scaling = full;
    parsed.switches.local_rope = Some(LocalRope { theta: local_theta, scaling: local });
    Ok(())
}

/// `rope` holds the kind and its numbers; `dim` channels are rotated.
fn scaling(config: &Value, rope: &Value, trained: usize, dim: usize) -> Result<RopeScaling> {
    let kind = match get(rope, "rope_type").or_else(|| get(rope, "type")) {
        None => "default",
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => return malformed(format!("`rope_type` must be a string, found {other}")),
    };
    let factor = || match number_opt(rope, "factor")? {
        Some(factor) => Ok(factor),
        None => malformed(format!("rotary scaling of type {kind:?} needs `factor`")),
    };
    // The top-level field takes precedence over the one beside the kind, as in transformers.
    let original = match size_opt(config, "original_max_position_embeddings")? {
        Some(own) => own,
        None => size_opt(rope, "original_max_position_embeddings")?.unwrap_or(trained),
    };
    let per_frequency = get(rope, "short_factor").is_some();
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()?.max(1.0), trained },
        "llama3" => {
            let (low, high) = (number(rope, "low_freq_factor", 1.0)?, number(rope, "high_freq_factor", 4.0)?);
            if high <= low {
                return malformed(format!("`high_freq_factor` {high} must be over `low_freq_factor` {low}"));
            }
            RopeScaling::Llama3 { factor: factor()?, low, high, original }
        }
        // Phi-3's first files write `su` or `yarn` for longrope.
        "longrope" | "su" => long(rope, original, trained, dim)?,
        "yarn" if per_frequency => long(rope, original, trained, dim)?,
        "yarn" => yarn(rope, original, trained)?,
        other => {
            return unsupported(format!(
                "rotary scaling of type {other:?} (known: default, linear, dynamic, llama3, yarn, longrope)"
            ));
        }
    })
}

fn yarn(rope: &Value, original: usize, trained: usize) -> Result<RopeScaling> {
    let factor = number_opt(rope, "factor")?.unwrap_or(trained as f64 / original as f64);
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention = match number_opt(rope, "attention_factor")? {
        Some(given) => given,
        None => match (unless_zero(rope, "mscale")?, unless_zero(rope, "mscale_all_dim")?) {
            (Some(one), Some(all)) => mscale(one) / mscale(all),
            _ => mscale(1.0),
        },
    };
    let truncate = super::read::flag(rope, "truncate", true)?;
    let fast = unless_zero(rope, "beta_fast")?.unwrap_or(32.0);
    let slow = unless_zero(rope, "beta_slow")?.unwrap_or(1.0);
    Ok(RopeScaling::Yarn { factor, fast, slow, original, attention, truncate })
}

/// An optional number; 0 counts as absent, as in transformers.
fn unless_zero(rope: &Value, key: &str) -> Result<Option<f64>> {
    if get(rope, key).and_then(Value::as_f64) == Some(0.0) { Ok(None) } else { number_opt(rope, key) }
}

fn long(rope: &Value, original: usize, trained: usize, dim: usize) -> Result<RopeScaling> {
    let list = |key: &str| -> Result<Vec<f64>> {
        let found = get(rope, key).and_then(Value::as_array).map(|list| {
            list.iter().map(|v| v.as_f64().filter(|f| f.is_finite() && *f > 0.0)).collect::<Option<Vec<f64>>>()
        });
        match found {
            Some(Some(list)) if list.len() == dim / 2 => Ok(list),
            _ => malformed(format!("`{key}` must be a list of {} positive numbers", dim / 2)),
        }
    };
    let factor = number_opt(rope, "factor")?.unwrap_or(trained as f64 / original as f64);
    let attention = match number_opt(rope, "attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::Long { short: list("short_factor")?, long: list("long_factor")?, original, attention })
}
