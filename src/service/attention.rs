//! Attention maps by name: a policy's or an encoder's.

use super::complete::resolve_model;
use super::{Result, Services, encoders, meter, publish};
use crate::domain::{ModelKind, ModelVersion};
use crate::engine::Attention;

/// `model` names a version of either kind, or is `policy` or `encoder` for the active one; absent = the policy.
///
/// # Errors
/// Those of finding a policy or an encoder; `BadRequest` at `text` when it is empty or too long.
pub async fn maps(
    services: &Services,
    model: Option<&str>,
    text: &str,
    most: usize,
    may_load: bool,
) -> Result<(ModelVersion, Attention)> {
    let version = match model {
        Some("encoder") => encoders::resolve(services, None).await?,
        Some("policy") => resolve_model(services, None, may_load).await?.version.clone(),
        Some(name) if publish::find(services, name).await.is_ok_and(|v| v.kind == ModelKind::Encoder) => {
            encoders::resolve(services, Some(name)).await?
        }
        other => resolve_model(services, other, may_load).await?.version.clone(),
    };
    let found = services.engine()?.attention(&version, text, most).await?;
    meter::charge(services, found.tokens.len()).await?;
    Ok((version, found))
}
