//! Progress of a run in the foreground: a bar on standard error, and ctrl-c requests a stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use super::block_on;
use crate::config::{Config, UpstreamConfig};
use crate::domain::{Metric, Progress};
use crate::jobs::judges::{self, Judges};
use crate::jobs::remote::HttpRewards;
use crate::jobs::upstream;
use crate::train::Reporter;
use crate::train::judge::Judge;
use crate::train::remote::{RemoteGenerator, RemoteReward};

/// Reports a run as a progress bar; warnings and samples are printed above it.
pub struct Foreground {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    metrics: String,
    remote: Option<Arc<dyn RemoteReward>>,
    judges: Judges,
    trainers: BTreeMap<String, Vec<String>>,
    /// The servers that may generate rollouts.
    upstream: UpstreamConfig,
}

impl Foreground {
    /// Rewards of kind `http` may call `reward_hosts` only; rewards of kind `judge` and the recipe `external` may name the
    /// configuration's judges and trainers.
    ///
    /// # Errors
    /// A host that is malformed; a thread that cannot start.
    pub fn new(reward_hosts: &[String], config: &Config) -> Result<Self> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}")?);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let asks = block_on(async { Ok(tokio::signal::ctrl_c().await?) });
            asked.store(asks.is_ok(), Ordering::Relaxed);
        })?;
        let remote = HttpRewards::new(reward_hosts)?.map(|client| Arc::new(client) as Arc<dyn RemoteReward>);
        let judges = judges::clients(&config.judges)?;
        let (trainers, upstream) = (config.trainers.clone(), config.upstream.clone());
        Ok(Self { bar, stop, metrics: String::new(), remote, judges, trainers, upstream })
    }
}

impl Reporter for Foreground {
    fn progress(&mut self, progress: &Progress) {
        if let Some(total) = progress.total_steps {
            self.bar.set_length(total);
        }
        self.bar.set_prefix(progress.phase.clone());
        self.bar.set_position(progress.step);
        let memory = progress.memory_bytes.map(|b| format!("{} MiB ", b >> 20)).unwrap_or_default();
        let rate = progress.tokens_per_second.map(|r| format!("{r:.0} tok/s ")).unwrap_or_default();
        self.bar.set_message(format!("{rate}{memory}{}", self.metrics));
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        let shown = metrics.iter().take(4).map(|m| format!("{}={:.4}", m.name, m.value));
        self.metrics = shown.collect::<Vec<_>>().join(" ");
    }

    fn event(&mut self, kind: &str, data: serde_json::Value) {
        self.bar.suspend(|| eprintln!("{kind}: {data}"));
    }

    fn remote(&self) -> Option<Arc<dyn RemoteReward>> {
        self.remote.clone()
    }

    fn judge(&self, name: &str) -> Option<Arc<dyn Judge>> {
        self.judges.get(name).cloned()
    }

    fn trainer(&self, name: &str) -> Option<Vec<String>> {
        self.trainers.get(name).cloned()
    }

    fn generator(&self, model: &str) -> Result<Option<Arc<dyn RemoteGenerator>>> {
        upstream::generator(Some(&self.upstream), model)
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
