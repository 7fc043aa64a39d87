//! The settings of the supervisor of jobs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::process::Launch;
use crate::config::{ExecutorsConfig, JudgeConfig, UpstreamConfig};

/// Settings of a [`Supervisor`](super::Supervisor).
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// Jobs live in `jobs/<id>`, published models in `models/<name>`.
    pub data_dir: PathBuf,
    pub launch: Launch,
    /// Number of jobs that run at the same time.
    pub slots: usize,
    pub lease_seconds: i64,
    /// A job fails after so many crashes and lost leases without a new checkpoint.
    pub max_crashes: i64,
    /// Compute threads of a child (`RAYON_NUM_THREADS`); 0 = the child chooses.
    pub threads: usize,
    /// At shutdown: time from the request to stop to SIGTERM, and from there to SIGKILL.
    pub grace: Duration,
    /// After a cancel: time that the child has to end its step and write a checkpoint.
    pub cancel_grace: Duration,
    /// Hosts that a reward of kind `http` may call.
    pub reward_hosts: Vec<String>,
    /// Commands of other trainers, by name.
    pub trainers: BTreeMap<String, Vec<String>>,
    /// Language models on other servers that may judge, by name.
    pub judges: BTreeMap<String, JudgeConfig>,
    /// The servers that may generate rollouts, if there are any.
    pub upstream: Option<UpstreamConfig>,
    /// The places, and the recipes that run at each.
    pub executors: ExecutorsConfig,
    /// Whether requests may be used for training, unless a stored setting overrides it.
    pub learn_from_requests: bool,
    /// Interval of looking for work and of storing a running job's reports.
    pub tick: Duration,
}

impl SupervisorConfig {
    /// Defaults: leases of 60 s, a heartbeat every 10 s, reports stored once a second.
    pub fn new(data_dir: PathBuf, launch: Launch) -> Self {
        Self {
            data_dir,
            launch,
            slots: 1,
            lease_seconds: 60,
            max_crashes: 3,
            threads: 0,
            grace: Duration::from_secs(10),
            cancel_grace: Duration::from_secs(600),
            reward_hosts: Vec::new(),
            judges: BTreeMap::new(),
            trainers: BTreeMap::new(),
            upstream: None,
            executors: ExecutorsConfig::default(),
            learn_from_requests: false,
            tick: Duration::from_secs(1),
        }
    }

    /// The interval of lease extensions: a sixth of the lease, at most 10 s.
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_secs_f64(self.lease_seconds.max(1) as f64 / 6.0).min(Duration::from_secs(10))
    }
}
