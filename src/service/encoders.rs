//! Encoders by name: the one a request names, or the active one.

use super::{Result, ServiceError, Services, bad_input, meter, register};
use crate::domain::{ModelKind, ModelState, ModelVersion};
use crate::engine::{EmbedRequest, Embeddings, FillRequest, FillResult};

/// # Errors
/// `NotFound` and `BadInput` at `model` for no such version and versions of another kind; `Conflict` when no
/// encoder is active and none is named.
pub async fn resolve(services: &Services, model: Option<&str>) -> Result<ModelVersion> {
    let version = match model {
        None | Some("" | "active" | "default") => {
            let active = services.store.models().active(ModelKind::Encoder).await?;
            return active.ok_or_else(|| {
                ServiceError::Conflict(
                    "no encoder is configured: start the server with --encoder, or name one in model".into(),
                )
            });
        }
        Some(name) => register::find(services, name, Some(ModelKind::Encoder), Some("model")).await?,
    };
    if version.kind != ModelKind::Encoder {
        return Err(bad_input("model", format!("{} is a {}, not an encoder", version.name, version.kind)));
    }
    if version.state == ModelState::Retired {
        return Err(bad_input("model", format!("{} is retired", version.name)));
    }
    Ok(version)
}

pub async fn embed(
    services: &Services,
    model: Option<&str>,
    request: EmbedRequest,
) -> Result<(ModelVersion, Embeddings)> {
    let version = resolve(services, model).await?;
    let found = services.engine()?.embed(&version, request).await?;
    metrics::counter!("instructd_prompt_tokens_total").increment(found.tokens as u64);
    meter::charge(services, found.tokens).await?;
    Ok((version, found))
}

pub async fn fill(
    services: &Services,
    model: Option<&str>,
    request: FillRequest,
) -> Result<(ModelVersion, Vec<FillResult>)> {
    let version = resolve(services, model).await?;
    let found = services.engine()?.fill(&version, request).await?;
    meter::charge(services, found.first().map_or(0, |gap| gap.text_tokens)).await?;
    Ok((version, found))
}
