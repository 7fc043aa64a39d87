//! A run of a recipe: its step counter, optimizer, checkpoints and reports. A batch of data is a pure function of
//! (seed, step), so a resumed run trains on the same batches as an uninterrupted one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::args::{Common, DeviceArg, FrozenPrecision, RecipeArgs, roles, with_earlier_defaults};
use super::card::{Card, Curve, Curves};
use super::checkpoint::{Checkpoint, CheckpointDir, TensorFile};
use super::device_tensors::{DeviceTensors, adam_step};
use super::logs::Logs;
use super::meter::{Meter, resident_bytes};
use super::optim::{AdamConfig, AdamW, Grads, Group, OptimizerInBackward, Params, clipping, global_norm};
use super::schedule::Schedule;
use super::step::Accumulator;
use super::{Reporter, TrainOutcome, rng, trl_names};
use crate::domain::{Metric, Progress, hash};
use crate::model::{self, Loaded};

/// The state of a run.
pub struct Run<'a> {
    pub reporter: &'a mut dyn Reporter,
    pub common: Common,
    pub optimizer: AdamW,
    pub schedule: Schedule,
    /// Number of finished steps (RL: iterations).
    pub step: u64,
    /// Number of steps of the whole run.
    pub total: u64,
    pub meter: Meter,
    /// Tensors of the recipe that checkpoints contain in addition to weights and optimizer, by file stem. `resume`
    /// fills it.
    pub extra: BTreeMap<String, TensorFile>,
    /// The trained tensors that are on a device.
    pub devices: Vec<DeviceTensors>,
    recipe: &'static str,
    checkpoints: Option<CheckpointDir>,
    /// Must equal that of a checkpoint to resume from it: recipe, arguments, hashes of data and of the starting model.
    identity: Value,
    /// Adds the arguments that did not exist when a checkpoint was written.
    with_earlier_defaults: fn(&Value) -> Value,
    /// Counts of the data, for the model card.
    pub data_report: Option<Value>,
    /// First and last values of every metric, for the model card.
    curves: Curves,
    /// What the figures show, in sentences, for the model card.
    findings: Vec<String>,
    logs: LogState,
}

/// The log files. They are opened at the first metric, when the step at which the run continues is known.
enum LogState {
    Unopened,
    Open(Logs),
    /// Not requested, or they could not be written; training continues.
    Off,
}

/// The parameters of `Run::new`.
pub struct TrainPlan<'a, A: RecipeArgs> {
    pub recipe: &'static str,
    pub args: &'a A,
    pub common: Common,
    /// Number of steps of the whole run, without the limit of `max_steps`.
    pub steps: u64,
    /// Maximum number of optimizer steps in one step: 1, except in RL.
    pub updates_per_step: u64,
    /// SHA-256 of every file that the run reads, by argument.
    pub data: BTreeMap<String, String>,
}

impl<'a> Run<'a> {
    pub fn new<A: RecipeArgs>(plan: TrainPlan<'_, A>, reporter: &'a mut dyn Reporter) -> Result<Self> {
        let common = plan.common;
        let args = compared_args(serde_json::to_value(plan.args)?);
        let checkpoints =
            common.checkpoint_dir.as_deref().map(|dir| CheckpointDir::open(Path::new(dir))).transpose()?;
        let adam = AdamConfig { beta2: common.adam_beta2, eps: common.adam_eps, form: common.adam_form, beta1: 0.9 };
        let schedule = Schedule {
            peak: common.learning_rate,
            warmup_steps: common.warmup_steps,
            total_steps: plan.steps * plan.updates_per_step,
            decay: common.lr_schedule,
        };
        let mut data = plan.data;
        if checkpoints.is_some() && !common.model.is_empty() {
            data.insert("model".to_owned(), model_hash(&common.model).context("model")?);
        }
        Ok(Self {
            extra: BTreeMap::new(),
            devices: Vec::new(),
            recipe: plan.recipe,
            logs: if common.log_dir.is_some() { LogState::Unopened } else { LogState::Off },
            optimizer: AdamW::new(adam, Group::standard(common.weight_decay)).with_states(common.adam_states),
            schedule,
            step: 0,
            total: common.max_steps.map_or(plan.steps, |max| max.min(plan.steps)),
            meter: Meter::new(0),
            checkpoints,
            identity: json!({"recipe": plan.recipe, "args": args, "data": data}),
            with_earlier_defaults: with_earlier_defaults::<A>,
            data_report: None,
            curves: Curves::new(),
            findings: Vec::new(),
            reporter,
            common,
        })
    }

    /// Restores weights, optimizer and step from the newest checkpoint, if `resume` is set and there is one. Returns
    /// the state of the recipe.
    ///
    /// # Errors
    /// If no checkpoint is intact, or the newest has other arguments or data; the message names the field.
    pub fn resume<T: DeserializeOwned>(&mut self, params: &Params) -> Result<Option<T>> {
        let Some(dir) = self.checkpoints.as_ref().filter(|_| self.common.resume) else { return Ok(None) };
        let Some((mut checkpoint, warnings)) = dir.load_latest()? else { return Ok(None) };
        for warning in warnings {
            self.reporter.event("warning", json!({"message": warning}));
        }
        let mut identity = checkpoint.state["identity"].clone();
        identity["args"] = compared_args((self.with_earlier_defaults)(&identity["args"]));
        if let Some(field) = difference(&self.identity, &identity) {
            bail!("the checkpoint was made with another {field}; set the same {field}, or start without resume");
        }
        let (before, now) = (checkpoint.state["computed_by"].as_str(), computed_by(&self.common, params));
        // Older checkpoints have no such entry.
        if let Some(before) = before.filter(|before| *before != now) {
            self.warn(format!(
                "the checkpoint was computed by {before}, and this run continues on {now}: the last bits of results will differ"
            ));
        }
        let weights = checkpoint.tensors.get("weights").context("the checkpoint has no weights")?;
        for (name, var) in params {
            let saved = weights.get(name).with_context(|| format!("the checkpoint has no weight {name}"))?;
            var.set(&saved.to_device(var.device())?)?;
        }
        let updates = checkpoint.state["updates"].as_u64().context("the checkpoint has no entry `updates`")?;
        let moments = checkpoint.tensors.get("optimizer").context("the checkpoint has no optimizer state")?;
        self.optimizer.restore(params, moments, updates)?;
        self.step = checkpoint.step;
        checkpoint.tensors.retain(|stem, _| stem != "weights" && stem != "optimizer");
        self.extra = checkpoint.tensors;
        self.meter = Meter::new(self.step);
        // Older checkpoints have none.
        self.curves = serde_json::from_value(checkpoint.state["curves"].clone()).unwrap_or_default();
        self.reporter.event("log", json!({"message": format!("resumed after step {}", self.step)}));
        Ok(Some(serde_json::from_value(checkpoint.state["recipe"].clone())?))
    }

    /// Writes a checkpoint and returns its path; `None` without a checkpoint directory.
    pub fn save(&mut self, params: &Params, recipe: &impl Serialize, best: bool) -> Result<Option<PathBuf>> {
        let Some(dir) = &self.checkpoints else { return Ok(None) };
        for device in &self.devices {
            device.pull()?;
            self.optimizer.moments.extend(device.moments()?);
        }
        let weights = params.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let optimizer = self.optimizer.state(params)?;
        for name in self.devices.iter().flat_map(DeviceTensors::names) {
            self.optimizer.moments.remove(name);
        }
        let state = json!({
            "identity": self.identity,
            "computed_by": computed_by(&self.common, params),
            "updates": self.optimizer.step,
            "curves": self.curves,
            "recipe": serde_json::to_value(recipe)?,
        });
        let mut tensors = BTreeMap::from([("weights".to_owned(), weights), ("optimizer".to_owned(), optimizer)]);
        tensors.extend(self.extra.clone());
        let path = dir.save(&Checkpoint { step: self.step, tensors, state }, best)?;
        self.reporter.event("checkpoint", json!({"path": path, "step": self.step}));
        Ok(Some(path))
    }

    /// Call after a finished step: writes a checkpoint if one is due, and returns the outcome if a stop was requested.
    pub fn pause(&mut self, params: &Params, recipe: &impl Serialize) -> Result<Option<TrainOutcome>> {
        if self.step < self.total && self.reporter.should_stop() {
            return self.stopped(params, recipe).map(Some);
        }
        if self.checkpoint_due() {
            self.save(params, recipe, false)?;
        }
        Ok(None)
    }

    /// Writes a checkpoint and returns the outcome of a stopped run.
    pub fn stopped(&mut self, params: &Params, recipe: &impl Serialize) -> Result<TrainOutcome> {
        let checkpoint = self.save(params, recipe, false)?.map(|p| p.display().to_string());
        Ok(TrainOutcome::Stopped { checkpoint })
    }

    /// Whether an action that is done every `every` steps (0: only at the end) is due.
    pub fn due(&self, every: u64) -> bool {
        self.step == self.total || (every > 0 && self.step.is_multiple_of(every))
    }

    /// Whether `pause` will write a checkpoint.
    pub fn checkpoint_due(&self) -> bool {
        let every = self.common.checkpoint_every;
        self.checkpoints.is_some() && every > 0 && self.step.is_multiple_of(every) && self.step < self.total
    }

    /// One optimizer update. Returns (gradient norm before clipping, learning rate).
    pub fn update(&mut self, params: &Params, grads: &Grads) -> Result<(f64, f64)> {
        let rate = self.schedule.at(self.optimizer.step);
        match self.updated(params, grads, rate) {
            Ok(norm) => Ok((norm, rate)),
            Err(error) => {
                let (step, blame) = (self.step + 1, self.describe_non_finite(params)?);
                let context = format!("step {step} was not applied ({blame}); the last checkpoint before it is intact");
                Err(anyhow::Error::from(error).context(context))
            }
        }
    }

    /// One update of the parameters of the host and of those on devices, whose gradients are there. Returns the norm of
    /// all gradients before clipping.
    fn updated(&mut self, params: &Params, grads: &Grads, rate: f64) -> candle_core::Result<f64> {
        let max = self.common.max_grad_norm;
        if self.devices.is_empty() {
            return self.optimizer.update(params, grads, rate, max);
        }
        let mut squares = global_norm(grads)?.powi(2);
        for device in &self.devices {
            squares += device.gradient_norm()?.powi(2);
        }
        let norm = squares.sqrt();
        let scale = clipping(norm, max);
        self.optimizer.update_scaled(params, grads, rate, scale)?;
        let step = adam_step(self.optimizer.config, self.optimizer.step, rate, self.common.weight_decay);
        self.devices.iter().try_for_each(|device| device.apply(&step, scale))?;
        Ok(norm)
    }

    /// Drops gradients that devices hold and that are not applied.
    ///
    /// # Errors
    /// A failure of a device.
    pub fn drop_gradients(&self) -> Result<()> {
        Ok(self.devices.iter().try_for_each(DeviceTensors::clear_gradients)?)
    }

    /// An accumulator of gradients for one update. With `at_once`, and without clipping, gradients are applied and
    /// freed during the backward pass; then no parameter may get gradients from two losses.
    pub fn accumulator(&mut self, params: &Params, at_once: bool) -> Accumulator {
        if !at_once || self.common.max_grad_norm.is_some() || !self.devices.is_empty() {
            return Accumulator::default();
        }
        let rate = self.schedule.at(self.optimizer.step);
        let optimizer = self.optimizer.clone_settings();
        Accumulator::applying(OptimizerInBackward::begin(
            std::mem::replace(&mut self.optimizer, optimizer),
            params,
            rate,
        ))
    }

    /// Finishes the update of an accumulator. Returns (gradient norm before clipping, learning rate).
    pub fn finish(&mut self, params: &Params, sum: Accumulator) -> Result<(f64, f64)> {
        if !sum.applies() {
            return self.update(params, &sum.grads);
        }
        let (optimizer, norm) = sum.into_optimizer().context("the update is still in use")?.finish();
        let rate = self.schedule.at(optimizer.step - 1);
        self.optimizer = optimizer;
        Ok((norm, rate))
    }

    /// The indices of this step's batch among `n` items. Every epoch has its own random order and contains each item
    /// once.
    pub fn batch(&self, n: usize, batch_size: usize) -> Vec<usize> {
        let per_epoch = n.div_ceil(batch_size) as u64;
        let order = rng::permutation(n, &mut rng::rng(self.common.seed, rng::Stream::DataOrder, self.step / per_epoch));
        let start = (self.step % per_epoch) as usize * batch_size;
        order[start..n.min(start + batch_size)].to_vec()
    }

    /// Reports a phase of a step, and optionally (done, total) within it.
    pub fn phase(&mut self, phase: &str, done: Option<(u64, u64)>) {
        self.reporter.progress(&Progress {
            phase: phase.to_owned(),
            step: self.step,
            total_steps: Some(self.total),
            eta_seconds: self.meter.eta(self.step, self.total),
            memory_bytes: resident_bytes(),
            phase_done: done.map(|(done, _)| done),
            phase_total: done.map(|(_, total)| total),
            tokens_per_second: None,
        });
    }

    /// Reports progress, with the speed since the last report.
    pub fn progress(&mut self, phase: &str) {
        let (tokens_per_second, memory_bytes) = (self.meter.take_rate(), resident_bytes());
        self.reporter.progress(&Progress {
            phase: phase.to_owned(),
            step: self.step,
            total_steps: Some(self.total),
            eta_seconds: self.meter.eta(self.step, self.total),
            tokens_per_second,
            memory_bytes,
            ..Progress::default()
        });
        if let Some(rate) = tokens_per_second {
            let memory = memory_bytes.map(|bytes| ("memory_bytes", bytes as f64));
            let elapsed = ("elapsed_seconds", self.meter.elapsed());
            self.metrics([("tokens_per_second", rate), elapsed].into_iter().chain(memory));
        }
    }

    /// Reports metrics of the current step, under the program's names and TRL's. A value that is not finite is reported
    /// as a warning instead.
    pub fn metrics<'n>(&mut self, values: impl IntoIterator<Item = (&'n str, f64)>) {
        self.metrics_at(self.step, values);
    }

    /// Reports metrics of the step `at`. A measurement after the last step has the number of the following step.
    pub fn metrics_at<'n>(&mut self, at: u64, values: impl IntoIterator<Item = (&'n str, f64)>) {
        let step = at as i64;
        let (good, bad): (Vec<Metric>, Vec<Metric>) = values
            .into_iter()
            .map(|(name, value)| Metric { step, name: name.to_owned(), value })
            .partition(|m| m.value.is_finite());
        for metric in bad {
            self.warn(format!("{} is not finite at step {step}", metric.name));
        }
        for m in &good {
            let curve = Curve { first: m.value, last: m.value, step: at };
            let known = self.curves.entry(m.name.clone()).or_insert(curve);
            (known.last, known.step) = (m.value, at);
        }
        let aliases = good.iter().filter_map(|m| {
            trl_names::alias(self.recipe, &m.name).map(|name| Metric { name: name.to_owned(), ..m.clone() })
        });
        let all: Vec<Metric> = good.iter().cloned().chain(aliases).collect();
        self.reporter.metrics(&all);
        self.log(|logs| logs.metrics(at, &all));
    }

    /// Writes the model card into the output directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_card(&self) -> Result<()> {
        let parent = Path::new(&self.common.model).file_name().map(|name| name.to_string_lossy().into_owned());
        let card = Card {
            recipe: self.recipe,
            parent: parent.as_deref().unwrap_or("nothing"),
            steps: self.step,
            args: &self.identity["args"],
            defaults: &compared_args((self.with_earlier_defaults)(&json!({}))),
            data: &self.identity["data"],
            report: self.data_report.as_ref(),
            curves: &self.curves,
            findings: &self.findings,
        };
        card.write(Path::new(&self.common.output_dir)).context("output_dir")
    }

    /// A sentence on what the figures show, for the log and the model card.
    pub fn conclude(&mut self, finding: String) {
        self.info(finding.clone());
        self.findings.push(finding);
    }

    /// A warning on what the figures show, for the log and the model card.
    pub fn find(&mut self, finding: String) {
        self.warn(finding.clone());
        self.findings.push(finding);
    }

    /// Reports a sampled completion.
    pub fn sample(&mut self, sample: Value) {
        self.log(|logs| logs.sample(&sample));
        self.reporter.event("sample", sample);
    }

    /// Writes to the log files. After the first error, which is a warning, nothing more is written and training
    /// continues.
    fn log(&mut self, write: impl FnOnce(&mut Logs) -> std::io::Result<()>) {
        if let (LogState::Unopened, Some(dir)) = (&self.logs, &self.common.log_dir) {
            self.logs = match Logs::open(Path::new(dir), self.step) {
                Ok(logs) => LogState::Open(logs),
                Err(error) => {
                    self.warn(format!("log_dir: no log files: {error}"));
                    LogState::Off
                }
            };
        }
        if let LogState::Open(logs) = &mut self.logs
            && let Err(error) = write(logs)
        {
            self.logs = LogState::Off;
            self.warn(format!("log_dir: no more log files: {error}"));
        }
    }

    /// Names a parameter with values that are not finite, for error messages.
    pub fn describe_non_finite(&self, params: &Params) -> Result<String> {
        self.devices.iter().try_for_each(DeviceTensors::pull)?;
        for (name, var) in params {
            let sum =
                var.as_detached_tensor().to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            if !sum.is_finite() {
                return Ok(format!("the parameter {name} has values that are not finite"));
            }
        }
        Ok("all parameters are finite".to_owned())
    }

    pub fn info(&mut self, message: String) {
        self.reporter.event("log", json!({"message": message}));
    }

    pub fn warn(&mut self, message: String) {
        self.reporter.event("warning", json!({"message": message}));
    }
}

/// The arguments that must be equal in a resumed run.
fn compared_args(mut args: Value) -> Value {
    if let Some(map) = args.as_object_mut() {
        map.retain(|key, _| !roles::is_free_on_resume(key));
    }
    args
}

/// Reports a phase before the run begins: `loading` the model, or `preparing` the data.
pub fn report_phase(reporter: &mut dyn Reporter, phase: &str) {
    reporter.progress(&Progress { phase: phase.to_owned(), memory_bytes: resident_bytes(), ..Progress::default() });
}

/// The name of the first difference between two identities.
fn difference(now: &Value, then: &Value) -> Option<String> {
    for part in ["recipe", "args", "data"] {
        match (now[part].as_object(), then[part].as_object()) {
            (Some(a), Some(b)) => {
                let keys = a.keys().chain(b.keys());
                if let Some(key) = keys.into_iter().find(|key| a.get(*key) != b.get(*key)) {
                    return Some(if part == "data" { format!("file for {key}") } else { key.clone() });
                }
            }
            _ if now[part] != then[part] => return Some(part.to_owned()),
            _ => {}
        }
    }
    None
}

/// SHA-256 of a model: of a .gguf file, or of the configuration, tokenizer and weight files of a directory, in the
/// order of their names.
pub fn model_hash(path: &str) -> Result<String> {
    let dir = Path::new(path);
    if !dir.is_dir() {
        return file_hash(path);
    }
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {path}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if [".json", ".safetensors", ".jinja"].iter().any(|end| name.ends_with(end)) {
            names.push(name);
        }
    }
    names.sort();
    let mut all = String::new();
    for name in names {
        all.push_str(&format!("{name} {}\n", file_hash(&dir.join(&name).display().to_string())?));
    }
    Ok(hash::of_bytes(&all))
}

/// SHA-256 of a file.
pub fn file_hash(path: &str) -> Result<String> {
    let path = Path::new(path);
    Ok(hash::of_file(path).with_context(|| format!("cannot read {}", path.display()))?.0)
}

/// The properties of the machine that determine the last bits of results: the kind of the device, its precision where
/// the own kernels compute, and for frozen weights in bfloat16 whether the processor has instructions for it.
fn computed_by(common: &Common, params: &Params) -> String {
    if common.uses_own_kernels() {
        let device = if common.device == DeviceArg::Sim { "the simulated device" } else { "a GPU" };
        return format!("{device}, {:?}", common.precision).to_lowercase();
    }
    let device = params.values().next().map_or(candle_core::Device::Cpu, |var| var.device().clone());
    match (device.location(), common.frozen_precision) {
        (candle_core::DeviceLocation::Cpu, FrozenPrecision::Bf16) => {
            let instructions = if crate::ops::bf16::native() { "bfloat16 instructions" } else { "bfloat16 by f32" };
            format!("the CPU's kernels, {instructions}")
        }
        (candle_core::DeviceLocation::Cpu, _) => "the CPU's kernels".to_owned(),
        _ => "a GPU".to_owned(),
    }
}

/// Loads the model from which a recipe starts. With LoRA, its frozen matrices are quantised as the arguments specify.
pub fn load_base(common: &Common, device: &candle_core::Device) -> Result<Loaded> {
    let path = Path::new(&common.model);
    match common.frozen_precision.blocks().filter(|_| common.lora.is_some()) {
        Some(kind) => model::load_quantized(path, device, kind),
        None => model::load(path, device),
    }
    .context("model")
}

/// The device that a run computes on.
///
/// # Errors
/// If `device` requires a GPU that is missing, or an argument would have no effect on the GPU; the message begins with
/// the argument.
pub fn device(common: &Common) -> Result<candle_core::Device> {
    let device = open_device(common.device)?;
    if !device.is_cpu() {
        common.check_gpu()?;
    }
    Ok(device)
}

/// The device that an argument names.
///
/// # Errors
/// If it requires a GPU that is missing.
pub fn open_device(device: DeviceArg) -> Result<candle_core::Device> {
    Ok(match device {
        DeviceArg::Cpu => candle_core::Device::Cpu,
        DeviceArg::Sim => bail!("device: the simulated device is not for this recipe; set it to cpu"),
        DeviceArg::Auto => crate::gpu::first_or_cpu(),
        DeviceArg::Cuda => crate::gpu::open(0).map_err(|why| anyhow!("device: the GPU cannot be used: {why}"))?,
    })
}
