//! A `Reporter` that keeps what a recipe said, and can ask it to stop.

use std::sync::Arc;

use instructd::domain::{Metric, Progress};
use instructd::train::Reporter;
use instructd::train::remote::RemoteGenerator;
use serde_json::Value;

#[derive(Default)]
pub struct Recorder {
    pub metrics: Vec<Metric>,
    pub events: Vec<(String, Value)>,
    pub progress: Vec<Progress>,
    /// Ask to stop once the run has reported this many finished steps.
    pub stop_after: Option<u64>,
    /// Generates the rollouts of recipes that ask for it.
    pub generator: Option<Arc<dyn RemoteGenerator>>,
}

impl Recorder {
    /// All values of one metric, in order of steps.
    pub fn curve(&self, name: &str) -> Vec<f64> {
        self.metrics.iter().filter(|m| m.name == name).map(|m| m.value).collect()
    }

    pub fn last(&self, name: &str) -> f64 {
        *self.curve(name).last().unwrap_or_else(|| panic!("no metric {name}"))
    }

    pub fn events(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|(k, _)| k == kind).map(|(_, v)| v).collect()
    }
}

impl Reporter for Recorder {
    fn progress(&mut self, progress: &Progress) {
        self.progress.push(progress.clone());
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        self.metrics.extend_from_slice(metrics);
    }

    fn event(&mut self, kind: &str, data: Value) {
        self.events.push((kind.to_owned(), data));
    }

    fn generator(&self, _: &str) -> anyhow::Result<Option<Arc<dyn RemoteGenerator>>> {
        Ok(self.generator.clone())
    }

    fn should_stop(&self) -> bool {
        let done = self.metrics.iter().map(|m| m.step as u64).max().unwrap_or(0);
        self.stop_after.is_some_and(|n| done >= n)
    }
}
