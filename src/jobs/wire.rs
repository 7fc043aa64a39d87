//! The messages between parent and child: spec.json, and one JSON object per line of the child's stdout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{JudgeConfig, UpstreamConfig};
use crate::domain::{JobId, Metric, Progress};
use crate::train::TrainOutcome;

/// File in the job directory that describes the job to the child.
pub const SPEC: &str = "spec.json";

/// A line on the child's stdin that means `Reporter::should_stop`. So does the end of its stdin.
pub const STOP: &str = "stop";

/// `lease SECONDS` on the child's stdin: it may run for this long from now, until the next extension.
pub const LEASE: &str = "lease";

/// Contents of spec.json. `args` lack the directories and `resume`, which `recipe_args` adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub recipe: String,
    pub args: Value,
    pub job_id: JobId,
    pub checkpoint_dir: PathBuf,
    pub output_dir: PathBuf,
    /// Resume from the newest checkpoint.
    pub resume: bool,
    /// Hosts that a reward of kind `http` may call; from the server's configuration, never from the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reward_hosts: Vec<String>,
    /// The judges that the arguments name; from the configuration, never from the job.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub judges: BTreeMap<String, JudgeConfig>,
    /// Command of the trainer that the arguments of `external` name; from the configuration, never from the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trainer: Vec<String>,
    /// The servers that generate rollouts, if the arguments ask for them; from the configuration, never from the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<UpstreamConfig>,
    /// Whether the supervisor may be on another machine: both then communicate by files in this directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_files: bool,
}

impl Spec {
    /// # Errors
    /// When the file cannot be read or is not a valid spec.
    pub fn read(job_dir: &Path) -> anyhow::Result<Self> {
        let path = job_dir.join(SPEC);
        let text = std::fs::read(&path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
        serde_json::from_slice(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
    }

    /// The recipe's arguments, completed with the directories and `resume`.
    pub fn recipe_args(&self) -> Value {
        let mut args = self.args.clone();
        if let Some(map) = args.as_object_mut() {
            map.insert("output_dir".into(), self.output_dir.display().to_string().into());
            map.insert("checkpoint_dir".into(), self.checkpoint_dir.display().to_string().into());
            map.insert("log_dir".into(), self.checkpoint_dir.with_file_name("logs").display().to_string().into());
            map.insert("resume".into(), self.resume.into());
        }
        args
    }
}

/// One line of the child's stdout. The last one is `outcome` or `failed`; without it the child crashed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "lowercase")]
pub enum Line {
    Progress(Progress),
    Metrics {
        metrics: Vec<Metric>,
    },
    Event {
        kind: String,
        data: Value,
    },
    Outcome(TrainOutcome),
    /// A permanent error: the job fails without a retry.
    Failed {
        error: String,
    },
}
