//! What may be done with what people ask the model, and how long it stays.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrivacyConfig {
    /// Whether what people ask on the chat page and through `/v1/completions` and `/v1/chat/completions`, the answers,
    /// and feedback on them may become sets for labelers, training data and exports. Prompts that are submitted for it
    /// (`/v1/prompts`, `/v1/comparison-sets`, `/v1/demonstrations`, the labeling page, imports) always may.
    pub learn_from_requests: bool,
}

/// 0 = no limit. Never removed: what a comparison set, judgment, demonstration, dataset version or published model
/// rests on. `instructd retention --dry-run` shows what would go; a server looks once an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Days after which requests (prompts and answers of chat and completions, with feedback on them) are removed.
    pub request_days: u32,
    /// Megabytes of removable requests to keep; beyond, the oldest go.
    pub request_mb: u32,
    /// Days after which feedback events are removed.
    pub feedback_days: u32,
    /// Megabytes of removable feedback events to keep; beyond, the oldest go.
    pub feedback_mb: u32,
    /// Days after its end for which a job's files stay: checkpoints and logs, and where no model was published also
    /// the training data.
    pub job_days: u32,
    /// Megabytes of removable files of ended jobs to keep; beyond, those of the jobs that ended first go.
    pub job_mb: u32,
}
