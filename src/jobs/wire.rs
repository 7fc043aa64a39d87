//! The messages between parent and child: spec.json, and one JSON object per line of the child's stdout.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{JobId, Metric, Progress};
use crate::train::TrainOutcome;

/// File in the job directory that tells the child what to do.
pub const SPEC: &str = "spec.json";

/// A line on the child's stdin that means `Reporter::should_stop`. So does the end of its stdin.
pub const STOP: &str = "stop";

/// `lease SECONDS` on the child's stdin: it may run so long from now, unless it is told again.
pub const LEASE: &str = "lease";

/// Contents of spec.json. `args` are complete but for the three fields below, which the child adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub recipe: String,
    pub args: Value,
    pub job_id: JobId,
    pub checkpoint_dir: PathBuf,
    pub output_dir: PathBuf,
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Hosts that a reward by HTTP may ask; from the server's configuration, never from the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reward_hosts: Vec<String>,
    /// Command of the trainer that the arguments of `external` name; from the configuration, never from the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trainer: Vec<String>,
    /// The supervisor is on another machine, or may be: both sides speak by files in this directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_files: bool,
}

impl Spec {
    /// # Errors
    /// When the file cannot be read or is no spec.
    pub fn read(job_dir: &Path) -> anyhow::Result<Self> {
        let path = job_dir.join(SPEC);
        let text = std::fs::read(&path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
        serde_json::from_slice(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
    }

    /// The recipe's arguments with the directories in their places.
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
    /// An error that would come again: the job fails without another try.
    Failed {
        error: String,
    },
}
