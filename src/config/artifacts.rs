//! The artifact store.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::optional_text;
use super::{ConfigError, error};

/// The store in which servers on several machines share the files of models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArtifactsConfig {
    /// `file://DIR` or `s3://BUCKET[/PREFIX]`; `None` = files stay in the data directory.
    #[serde(deserialize_with = "optional_text")]
    pub url: Option<String>,
    /// Endpoint of an S3-compatible service; `None` = Amazon's.
    #[serde(deserialize_with = "optional_text")]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(deserialize_with = "optional_text")]
    pub region: Option<String>,
    /// `None` = from `AWS_ACCESS_KEY_ID` and related variables, or the machine's role.
    #[serde(deserialize_with = "optional_text")]
    pub access_key_id: Option<String>,
    /// The secret of the access key.
    #[serde(deserialize_with = "optional_text")]
    pub secret_access_key: Option<String>,
    /// Whether the endpoint may be plain HTTP.
    pub allow_http: bool,
}

impl ArtifactsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(url) = &self.url
            && !["file://", "s3://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
        {
            return Err(error("artifacts.url", "must be file://DIR or s3://BUCKET/PREFIX"));
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(error("artifacts.secret_access_key", "and access_key_id go together"));
        }
        Ok(())
    }
}
