//! The labelers' guidelines and their version, which every judgment records.

use sha2::{Digest, Sha256};

use super::{Result, ServiceError, Services};

const BUILT_IN: &str = include_str!("guidelines.md");

/// Markdown text and its version (first 12 hex digits of its SHA-256).
pub async fn current(services: &Services) -> Result<(String, String)> {
    let text = match &services.config.labeling.guidelines {
        None => BUILT_IN.to_owned(),
        Some(path) => tokio::fs::read_to_string(path)
            .await
            .map_err(|e| ServiceError::Internal(format!("guidelines {}: {e}", path.display())))?,
    };
    let version = hex::encode(Sha256::digest(text.as_bytes()))[..12].to_owned();
    Ok((text, version))
}
