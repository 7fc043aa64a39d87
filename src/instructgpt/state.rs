//! Finished work: results by step, each with a fingerprint of its inputs; and the curves of the recipes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::domain::files::write_atomically;
use crate::domain::{Metric, Progress, hash};
use crate::train::Reporter;

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// SHA-256 (hex) of arguments and inputs.
    pub fingerprint: String,
    /// `None` while it is running.
    pub result: Option<Value>,
    /// Wall time of the last run of this step.
    pub seconds: f64,
}

/// state.json of a work directory.
pub struct PipelineState {
    path: PathBuf,
    pub steps: BTreeMap<String, StepRecord>,
}

impl PipelineState {
    pub fn open(path: &Path) -> Result<Self> {
        let steps = match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), steps })
    }

    pub fn is_done(&self, name: &str, fingerprint: &str) -> bool {
        self.steps.get(name).is_some_and(|s| s.fingerprint == fingerprint && s.result.is_some())
    }

    pub fn is_begun(&self, name: &str, fingerprint: &str) -> bool {
        self.steps.get(name).is_some_and(|s| s.fingerprint == fingerprint)
    }

    pub fn begin(&mut self, name: &str, fingerprint: &str) -> Result<()> {
        self.put(name, StepRecord { fingerprint: fingerprint.to_owned(), result: None, seconds: 0.0 })
    }

    pub fn finish(&mut self, name: &str, fingerprint: &str, result: Value, seconds: f64) -> Result<()> {
        self.put(name, StepRecord { fingerprint: fingerprint.to_owned(), result: Some(result), seconds })
    }

    /// The result of a finished step.
    pub fn result(&self, name: &str) -> Option<&Value> {
        self.steps.get(name)?.result.as_ref()
    }

    /// Writes the state atomically; a step counts as done only when its record is on disk.
    fn put(&mut self, name: &str, record: StepRecord) -> Result<()> {
        self.steps.insert(name.to_owned(), record);
        write_atomically(&self.path, &serde_json::to_vec_pretty(&self.steps)?)
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

/// Fingerprint of a value.
pub fn fingerprint(value: &Value) -> String {
    hash::of_bytes(value.to_string())
}

/// Fingerprint of a file's bytes.
pub fn fingerprint_of_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    add_file(&mut hash, path)?;
    Ok(hex::encode(hash.finalize()))
}

/// Fingerprint of a model's weights and configuration.
pub fn fingerprint_of_model(path: &Path) -> Result<String> {
    let described = crate::model::describe(path).context("model")?;
    let mut hash = Sha256::new();
    hash.update(described.hf_config.to_string());
    for file in &described.source.weight_files {
        add_file(&mut hash, file)?;
    }
    Ok(hex::encode(hash.finalize()))
}

fn add_file(hash: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// A reporter that also stores the curves, one JSON line per point.
pub struct RecordingReporter<'a> {
    file: File,
    inner: &'a mut dyn Reporter,
}

impl<'a> RecordingReporter<'a> {
    pub fn open(path: &Path, inner: &'a mut dyn Reporter) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self { file: file.with_context(|| format!("writing {}", path.display()))?, inner })
    }
}

impl Reporter for RecordingReporter<'_> {
    fn progress(&mut self, progress: &Progress) {
        self.inner.progress(progress);
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        for metric in metrics {
            // A full disk must not end the training here; writing a checkpoint reports it.
            if let Err(error) = writeln!(self.file, "{}", json!(metric)) {
                self.inner.event("warning", json!({"message": format!("a curve was not written: {error}")}));
            }
        }
        self.inner.metrics(metrics);
    }

    fn event(&mut self, kind: &str, data: Value) {
        self.inner.event(kind, data);
    }

    fn remote(&self) -> Option<std::sync::Arc<dyn crate::train::remote::RemoteReward>> {
        self.inner.remote()
    }

    fn should_stop(&self) -> bool {
        self.inner.should_stop()
    }
}

/// The curves of a step by name; where a resumed run repeated a step, the later value is used.
pub fn curves(path: &Path) -> Result<BTreeMap<String, BTreeMap<i64, f64>>> {
    let mut curves: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The last line of a killed run may be incomplete.
    for metric in text.lines().filter_map(|line| serde_json::from_str::<Metric>(line).ok()) {
        curves.entry(metric.name).or_default().insert(metric.step, metric.value);
    }
    Ok(curves)
}
