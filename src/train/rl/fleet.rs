//! Rollouts that other servers generate: the adapter of every round is pushed to them, and with a staleness of 1 the
//! next round is generated while this one is trained on.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::generation::{GenParams, Sample};
use crate::train::Reporter;
use crate::train::args::{RlCommon, RolloutSource};
use crate::train::remote::RemoteGenerator;
use crate::train::trainable::Trainable;

/// What follows the name of the directory of the checkpoints, or of the result, in that of the pushed adapters.
const SUFFIX: &str = "-rollouts";

/// Interval of looking whether a batch is ready.
const CHECK: Duration = Duration::from_millis(5);

/// Responses, and the version that wrote them.
pub struct FleetResponses {
    pub samples: Vec<Sample>,
    pub version: u64,
}

/// A batch that is being generated while the batch before it is trained on.
struct NextBatch {
    prompts: Vec<Vec<u32>>,
    version: u64,
    stop: Arc<AtomicBool>,
    /// `None` once it was joined.
    thread: Option<JoinHandle<Result<Option<Vec<Sample>>>>>,
}

impl Drop for NextBatch {
    /// The thread ends by itself: the batch is not needed.
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// The servers that generate rollouts. The files of the pushed adapters are removed at the end.
pub struct Fleet {
    generator: Arc<dyn RemoteGenerator>,
    dir: PathBuf,
    /// Name of the model under the adapters.
    base: String,
    generates_ahead: bool,
    /// The newest version that the servers have: the number of updates of its weights.
    version: RefCell<Option<u64>>,
    next: RefCell<Option<NextBatch>>,
}

impl Fleet {
    /// The servers, if the arguments name them.
    ///
    /// # Errors
    /// If none are configured, or they cannot be used.
    pub fn open(args: &RlCommon, reporter: &dyn Reporter) -> Result<Option<Self>> {
        if args.rollouts == RolloutSource::Local {
            return Ok(None);
        }
        let generator = reporter.generator(&args.common.model).context("rollouts")?;
        let generator = generator.context("rollouts: the configuration has no servers ([upstream] in config.toml)")?;
        let common = &args.common;
        let mut dir = std::path::absolute(common.checkpoint_dir.as_deref().unwrap_or(&common.output_dir))?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        dir.set_file_name(name + SUFFIX);
        let base = Path::new(&common.model).file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Some(Self {
            generator,
            dir,
            base: base.unwrap_or_else(|| common.model.clone()),
            generates_ahead: args.rollout_staleness > 0,
            version: RefCell::default(),
            next: RefCell::default(),
        }))
    }

    /// Pushes the policy after `version` updates.
    ///
    /// # Errors
    /// If the adapter cannot be written, or no server loads it.
    pub fn push(&self, policy: &Trainable, version: u64) -> Result<()> {
        let dir = self.dir.join(version.to_string());
        policy.save_adapter(&dir, &self.base).context("rollouts: the adapter cannot be written")?;
        self.generator.load(version, &dir).with_context(|| format!("rollouts: version {version}"))?;
        let before = self.version.borrow_mut().replace(version);
        // The servers may read the files of the last two versions again.
        for old in before.into_iter().filter(|before| *before < version).flat_map(|before| before.checked_sub(1)) {
            std::fs::remove_dir_all(self.dir.join(old.to_string())).ok();
        }
        Ok(())
    }

    /// The responses to `prompts`: those that were generated ahead for these prompts, or new ones by the newest version.
    /// `None` if a stop was requested.
    ///
    /// # Errors
    /// If a response cannot be had from any server.
    pub fn responses(
        &self,
        prompts: &[Vec<u32>],
        params: &GenParams,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<FleetResponses>> {
        let is_it = |next: &NextBatch| next.prompts == prompts;
        let known = self.next.borrow_mut().take_if(|next| is_it(next));
        let batch = match known {
            Some(batch) => batch,
            None => self.begin(prompts.to_vec(), params.clone())?,
        };
        batch.wait(stop)
    }

    /// Begins to generate the batch that will be asked for next, by the newest version, if the run allows it.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn generate_ahead(&self, prompts: impl FnOnce() -> Vec<Vec<u32>>, params: GenParams) -> Result<()> {
        if self.generates_ahead {
            let batch = self.begin(prompts(), params)?;
            self.next.replace(Some(batch));
        }
        Ok(())
    }

    fn begin(&self, prompts: Vec<Vec<u32>>, params: GenParams) -> Result<NextBatch> {
        let Some(version) = *self.version.borrow() else { bail!("rollouts: no version was pushed") };
        let (generator, stop) = (self.generator.clone(), Arc::new(AtomicBool::new(false)));
        let (asked, stopped) = (prompts.clone(), stop.clone());
        let generate = move || generator.generate(version, &asked, &params, &|| stopped.load(Relaxed));
        let thread = std::thread::Builder::new().name("rollouts".into()).spawn(generate)?;
        Ok(NextBatch { prompts, version, stop, thread: Some(thread) })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

impl NextBatch {
    /// Waits for the responses. `None` if a stop was requested.
    fn wait(mut self, stop: &dyn Fn() -> bool) -> Result<Option<FleetResponses>> {
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if stop() {
                return Ok(None);
            }
            std::thread::sleep(CHECK);
        }
        let ended = self.thread.take().map(JoinHandle::join);
        let ended = ended.and_then(Result::ok).context("rollouts: the thread that generates panicked")??;
        let Some(samples) = ended else { return Ok(None) };
        if samples.len() != self.prompts.len() {
            bail!("rollouts: {} responses to {} prompts", samples.len(), self.prompts.len());
        }
        Ok(Some(FleetResponses { samples, version: self.version }))
    }
}
