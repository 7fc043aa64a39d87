//! InstructGPT (arXiv 2203.02155) in one command: demonstrations → SFT → comparisons → reward
//! model → PPO(-ptx) → report. Every finished step is recorded; the next run continues from there and repeats a step
//! only when one of its inputs has changed.

mod chart;
mod data;
mod measure;
mod report;
mod state;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::train::args::RewardSpec;
use crate::train::{Reporter, TrainOutcome, recipe};

pub use data::{demonstrations, prompts};
pub use state::{PipelineState, RecordingReporter, StepRecord};

/// The arguments of `instructd instructgpt --args FILE`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstructGptArgs {
    /// The initial language model: a Hugging Face directory or a .gguf file.
    pub model: String,
    /// The work directory: data, models, state, report.
    pub work_dir: PathBuf,
    /// JSONL of `{"prompt", "completion"}`; absent = the best completion of every comparison.
    pub demonstrations: Option<PathBuf>,
    /// JSONL of people's rankings `{"prompt", "completions": [{"text", "tier"}…]}`. Else `collect`.
    pub comparisons: Option<PathBuf>,
    /// Instead of people's rankings: samples of the SFT model, ranked by a rule.
    pub collect: Option<Collect>,
    /// JSONL of prompts for PPO; absent = the prompts of the comparisons.
    pub prompts: Option<PathBuf>,
    /// Arguments of the recipes, as for `instructd train`; models, data and directories are set here.
    #[serde(default)]
    pub sft: Map<String, Value>,
    #[serde(default)]
    pub reward: Map<String, Value>,
    /// With `ptx_coef` above 0, the loss includes the demonstrations (PPO-ptx).
    #[serde(default)]
    pub ppo: Map<String, Value>,
    /// Number of prompts for which the report shows completions.
    #[serde(default = "default_samples")]
    pub sample_prompts: usize,
    /// Number of prompts over which the report measures rewards.
    #[serde(default = "default_measured")]
    pub measured_prompts: usize,
    #[serde(default)]
    pub seed: u64,
}

/// Rankings made by a rule.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Collect {
    /// JSONL of prompts.
    pub prompts: PathBuf,
    /// Samples per prompt, 2 to 9.
    pub samples: usize,
    /// Length of the longest sample, in tokens.
    pub max_tokens: usize,
    /// The rule that scores samples: higher is better, equal scores tie.
    pub judge: RewardSpec,
}

fn default_samples() -> usize {
    4
}

fn default_measured() -> usize {
    64
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Finished; the report is in the work directory.
    Done { report: PathBuf },
    /// Stopped on request in this step, from which a further run continues.
    Stopped { step: &'static str },
}

/// The models of a finished run.
struct Models {
    base: PathBuf,
    sft: PathBuf,
    reward: PathBuf,
    policy: PathBuf,
}

/// # Errors
/// When an argument is not valid (all are checked before the first step), a file cannot be read, or a recipe fails.
pub fn run(args: &InstructGptArgs, reporter: &mut dyn Reporter) -> Result<Ended> {
    let pipeline = Pipeline { args, work: args.work_dir.clone() };
    pipeline.check()?;
    std::fs::create_dir_all(&pipeline.work).with_context(|| format!("making {}", pipeline.work.display()))?;
    let mut state = PipelineState::open(&pipeline.work.join("state.json"))?;
    let base = state::fingerprint_of_model(Path::new(&args.model))?;

    let given =
        args.comparisons.as_deref().map(|p| Ok::<_, anyhow::Error>((p, state::fingerprint_of_file(p)?))).transpose()?;
    let demonstrations = pipeline.path("demonstrations.jsonl");
    let demonstrated = match &args.demonstrations {
        Some(path) => state::fingerprint(&json!(["given", state::fingerprint_of_file(path)?])),
        None => state::fingerprint(&json!(["best of", given.as_ref().map(|(_, fingerprint)| fingerprint)])),
    };
    pipeline.step(&mut state, reporter, "demonstrations", &demonstrated, |_| {
        let n = data::demonstrations(args.demonstrations.as_deref(), args.comparisons.as_deref(), &demonstrations)?;
        Ok(Some(json!({"demonstrations": n})))
    })?;

    let sft_args = pipeline.recipe_args("sft", &args.model, &[("demonstrations", &demonstrations)]);
    let sft_fingerprint = state::fingerprint(&json!([base, demonstrated, args.sft, args.seed]));
    if !pipeline.train(&mut state, reporter, "sft", &sft_fingerprint, &sft_args)? {
        return Ok(Ended::Stopped { step: "sft" });
    }
    let sft = pipeline.model("sft");

    let comparisons = pipeline.path("comparisons.jsonl");
    let compared = match &given {
        Some((_, fingerprint)) => state::fingerprint(&json!(["given", fingerprint])),
        None => state::fingerprint(&json!([sft_fingerprint, args.collect, args.seed])),
    };
    let stopped =
        pipeline.step(&mut state, reporter, "comparisons", &compared, |reporter| match (&given, &args.collect) {
            (Some((path, _)), _) => Ok(Some(json!({"comparisons": data::copy_comparisons(path, &comparisons)?}))),
            (None, Some(collect)) => data::collect(collect, &sft, args.seed, &comparisons, &|| reporter.should_stop())
                .map(|made| made.map(|(sets, ties)| json!({"comparisons": sets, "prompts_all_equal": ties}))),
            (None, None) => bail!("give comparisons or collect"),
        })?;
    if stopped {
        return Ok(Ended::Stopped { step: "comparisons" });
    }
    let prompts = pipeline.path("prompts.jsonl");
    let prompted = match &args.prompts {
        Some(path) => state::fingerprint(&json!(["given", state::fingerprint_of_file(path)?])),
        None => state::fingerprint(&json!(["of", compared])),
    };
    pipeline.step(&mut state, reporter, "prompts", &prompted, |_| {
        Ok(Some(json!({"prompts": data::prompts(args.prompts.as_deref(), &comparisons, &prompts)?})))
    })?;

    let sft_path = sft.display().to_string();
    let reward_args = pipeline.recipe_args("reward", &sft_path, &[("comparisons", &comparisons)]);
    let reward_fingerprint = state::fingerprint(&json!([sft_fingerprint, compared, args.reward, args.seed]));
    if !pipeline.train(&mut state, reporter, "reward", &reward_fingerprint, &reward_args)? {
        return Ok(Ended::Stopped { step: "reward" });
    }
    let reward = pipeline.model("reward");
    let mut files = vec![("prompts", &prompts), ("reward_model", &reward)];
    if pipeline.ptx() {
        files.push(("ptx_demonstrations", &demonstrations));
    }
    let ppo_args = pipeline.recipe_args("ppo", &sft_path, &files);
    let ppo_fingerprint = state::fingerprint(&json!([reward_fingerprint, prompted, args.ppo, args.seed]));
    if !pipeline.train(&mut state, reporter, "ppo", &ppo_fingerprint, &ppo_args)? {
        return Ok(Ended::Stopped { step: "ppo" });
    }

    let models = Models { base: PathBuf::from(&args.model), sft, reward, policy: pipeline.model("ppo") };
    let measured = state::fingerprint(&json!([ppo_fingerprint, base, args.sample_prompts, args.measured_prompts]));
    let stopped = pipeline.step(&mut state, reporter, "measure", &measured, |reporter| {
        measure::measure(args, &models, &prompts, &|| reporter.should_stop())
    })?;
    if stopped {
        return Ok(Ended::Stopped { step: "measure" });
    }
    let report = report::write(&pipeline.work, args, &state)?;
    Ok(Ended::Done { report })
}

/// Validates the arguments of all steps without writing anything.
///
/// # Errors
/// When an argument is not valid; the error names the field.
pub fn check(args: &InstructGptArgs) -> Result<()> {
    Pipeline { args, work: args.work_dir.clone() }.check()
}

struct Pipeline<'a> {
    args: &'a InstructGptArgs,
    work: PathBuf,
}

impl Pipeline<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    fn model(&self, step: &str) -> PathBuf {
        self.work.join(step).join("model")
    }

    fn ptx(&self) -> bool {
        self.args.ppo.get("ptx_coef").and_then(Value::as_f64).is_some_and(|c| c > 0.0)
    }

    /// All checks run before the first step, since steps may take hours.
    fn check(&self) -> Result<()> {
        let args = self.args;
        ensure!(args.comparisons.is_some() != args.collect.is_some(), "give either comparisons or collect");
        ensure!(
            args.demonstrations.is_some() || args.comparisons.is_some(),
            "demonstrations: needed where the comparisons are collected"
        );
        ensure!((1..=64).contains(&args.sample_prompts), "sample_prompts: must be 1 to 64");
        ensure!((2..=4096).contains(&args.measured_prompts), "measured_prompts: must be 2 to 4096");
        if let Some(collect) = &args.collect {
            ensure!((2..=9).contains(&collect.samples), "collect.samples: must be 2 to 9");
            ensure!(collect.max_tokens >= 1, "collect.max_tokens: must be at least 1");
            crate::train::check_rule(&collect.judge).context("collect.judge")?;
        }
        let file = self.path("x");
        let data: [(&str, &[&str]); 3] = [
            ("sft", &["demonstrations"]),
            ("reward", &["comparisons"]),
            ("ppo", &["prompts", "reward_model", "ptx_demonstrations"]),
        ];
        for (name, fields) in data {
            for field in fields.iter().chain(&["model", "output_dir", "checkpoint_dir", "resume"]) {
                ensure!(!self.overrides(name).contains_key(*field), "{name}.{field}: is set by the pipeline");
            }
            let files: Vec<(&str, &PathBuf)> = fields.iter().map(|f| (*f, &file)).collect();
            let found = recipe(name).with_context(|| format!("no recipe {name}"))?;
            (found.validate)(&self.recipe_args(name, "x", &files)).map_err(|e| anyhow!("{name}.{e}"))?;
        }
        Ok(())
    }

    fn overrides(&self, step: &str) -> &Map<String, Value> {
        match step {
            "sft" => &self.args.sft,
            "reward" => &self.args.reward,
            _ => &self.args.ppo,
        }
    }

    fn recipe_args(&self, step: &str, model: &str, files: &[(&str, &PathBuf)]) -> Value {
        let mut args = self.overrides(step).clone();
        args.entry("seed").or_insert_with(|| json!(self.args.seed));
        args.insert("model".into(), json!(model));
        args.insert("output_dir".into(), json!(self.model(step)));
        args.insert("checkpoint_dir".into(), json!(self.work.join(step).join("checkpoints")));
        args.insert("resume".into(), json!(true));
        for (field, path) in files {
            args.insert((*field).into(), json!(path));
        }
        Value::Object(args)
    }

    /// Runs `work` unless its result for this fingerprint is known. True when a stop was requested (`None`).
    fn step(
        &self,
        state: &mut PipelineState,
        reporter: &mut dyn Reporter,
        name: &'static str,
        fingerprint: &str,
        work: impl FnOnce(&mut dyn Reporter) -> Result<Option<Value>>,
    ) -> Result<bool> {
        if state.is_done(name, fingerprint) {
            reporter.event("log", json!({"message": format!("{name}: done before")}));
            return Ok(false);
        }
        let started = Instant::now();
        let Some(result) = work(&mut *reporter).with_context(|| format!("step {name}"))? else { return Ok(true) };
        state.finish(name, fingerprint, result, started.elapsed().as_secs_f64())?;
        reporter.event("log", json!({"message": format!("{name}: done")}));
        Ok(false)
    }

    /// A recipe as a step; false when a stop was requested.
    fn train(
        &self,
        state: &mut PipelineState,
        reporter: &mut dyn Reporter,
        name: &'static str,
        fingerprint: &str,
        args: &Value,
    ) -> Result<bool> {
        let dir = self.work.join(name);
        if !state.is_done(name, fingerprint) && !state.is_begun(name, fingerprint) {
            // The directory has results of other arguments or other data.
            if dir.exists() {
                std::fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))?;
            }
            std::fs::create_dir_all(&dir)?;
            state.begin(name, fingerprint)?;
        }
        let stopped = self.step(state, reporter, name, fingerprint, |reporter| {
            let found = recipe(name).with_context(|| format!("no recipe {name}"))?;
            let mut recording = RecordingReporter::open(&dir.join("metrics.jsonl"), reporter)?;
            match found.execute(args, &mut recording)? {
                TrainOutcome::Done { metrics, .. } => Ok(Some(metrics)),
                TrainOutcome::Stopped { .. } => Ok(None),
            }
        })?;
        Ok(!stopped)
    }
}
