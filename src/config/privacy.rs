//! The permitted use of people's requests to the model, and their retention.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrivacyConfig {
    /// Whether requests on the chat page and through `/v1/completions` and `/v1/chat/completions`, their answers, and
    /// feedback on them may be used in sets for labelers, training data and exports. Prompts that are submitted for
    /// these uses (`/v1/prompts`, `/v1/comparison-sets`, `/v1/demonstrations`, the labeling page, imports) always may.
    pub learn_from_requests: bool,
}

/// Limits on stored data; 0 = no limit. Data that a comparison set, judgment, demonstration, dataset version or
/// published model depends on is never removed. `instructd retention --dry-run` shows what would be removed; a server
/// applies the limits once an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Days after which requests (prompts and answers of chat and completions, with feedback on them) are removed.
    pub request_days: u32,
    /// Megabytes of removable requests to keep; the oldest beyond them are removed.
    pub request_mb: u32,
    /// Days after which feedback events are removed.
    pub feedback_days: u32,
    /// Megabytes of removable feedback events to keep; the oldest beyond them are removed.
    pub feedback_mb: u32,
    /// Days after its end for which a job's files are kept: checkpoints and logs, and where no model was published also
    /// the training data.
    pub job_days: u32,
    /// Megabytes of removable files of ended jobs to keep; beyond them, the files of the jobs that ended first are
    /// removed.
    pub job_mb: u32,
}
