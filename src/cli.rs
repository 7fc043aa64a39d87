//! Bodies of the subcommands that are not a server: training in the foreground, models, export.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

use crate::cli_args::{self, Data, Given};
use crate::config::{Config, LogConfig};
use crate::data::Format;
use crate::domain::{Metric, Progress, Split};
use crate::instructgpt::{Ended, InstructGptArgs};
use crate::jobs::remote::HttpRewards;
use crate::model::FileType;
use crate::train::remote::RemoteReward;
use crate::train::{Reporter, TrainOutcome};

/// Logs to standard error; a second call changes nothing.
pub fn start_log(config: &LogConfig) {
    // The HTML parser behind the Markdown filter warns once for each odd table cell: a short text could fill the log.
    let filter = format!("html5ever=error,{}", config.filter);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info,html5ever=error"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people: a file or a collector gets plain lines.
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let _ = if config.json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}

pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

pub async fn migrate(config: Config) -> Result<()> {
    let store = crate::app::open_store(&config).await?;
    println!("{}: the schema is up to date", store.backend());
    store.close().await;
    Ok(())
}

/// Writes stored rankings or demonstrations to a file or to standard output.
pub async fn export(config: Config, format: String, split: Option<String>, out: Option<PathBuf>) -> Result<()> {
    let known: Vec<&str> = Format::ALL.iter().map(|known| known.as_str()).collect();
    let format = Format::parse(&format)
        .ok_or_else(|| anyhow!("--format: {}", crate::domain::unknown_name("format", &format, &known)))?;
    let split = match split {
        None => None,
        Some(name) => {
            let known = || crate::domain::unknown_name("split", &name, &["train", "heldout"]);
            Some(Split::parse(&name).ok_or_else(|| anyhow!("--split: {}", known()))?)
        }
    };
    let store = crate::app::open_store(&config).await?;
    let (services, generated_key) = crate::app::services(config, store.clone()).await?;
    if let Some(key) = generated_key {
        eprintln!("admin key, shown this once: {key}");
    }
    crate::service::live::refresh(&services).await?;
    let selection = crate::service::transfer::Selection { split, ..Default::default() };
    let mut file = crate::service::transfer::write_out(&services, format, selection).await?;
    use std::io::Write as _;
    let mut to: Box<dyn std::io::Write> = match &out {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("writing {}", path.display()))?;
            Box::new(std::io::BufWriter::new(file))
        }
        None => Box::new(std::io::stdout()),
    };
    while let Some(piece) = file.pieces.recv().await {
        to.write_all(&piece?).context("writing the export")?;
    }
    to.flush().context("writing the export")?;
    store.close().await;
    if file.left_out > 0 {
        eprintln!("{} rankings are left out: the format {} cannot hold them", file.left_out, format.as_str());
    }
    Ok(())
}

/// Runs a recipe here and now, with a progress bar; ctrl-c checkpoints and ends. Rewards by HTTP may ask
/// `reward_hosts` only.
pub fn train(config: &Config, recipe: &str, given: &Given, data: &Data, reward_hosts: &[String]) -> Result<()> {
    let found = cli_args::recipe(recipe)?;
    let mut args = given.read()?;
    data.put(&mut args);
    // Cheap mistakes first: no model is brought and no data is written for arguments that are refused.
    (found.validate)(&cli_args::with_placeholders(found, &args))?;
    cli_args::complete(found, &mut args, config)?;
    (found.validate)(&args)?;
    crate::cli_models::put_paths(&mut args, config)?;
    (found.validate)(&args)?;
    crate::ops::par::settle();
    match (found.run)(&args, &mut Foreground::new(reward_hosts, config)?)? {
        TrainOutcome::Done { model_dir, metrics } => {
            println!("{}", serde_json::json!({"model_dir": model_dir, "metrics": metrics}));
            Ok(())
        }
        TrainOutcome::Stopped { checkpoint } => bail!(
            "stopped; {}",
            checkpoint.map_or_else(|| "no checkpoint was written".to_owned(), |c| format!("checkpoint: {c}"))
        ),
    }
}

/// The whole InstructGPT pipeline; ctrl-c stops at the next step, a further run goes on there.
pub fn instructgpt(config: &Config, given: &Given, data: &Data, work_dir: Option<&Path>) -> Result<()> {
    let mut args = given.read()?;
    data.put(&mut args);
    if let Some(dir) = work_dir {
        args["work_dir"] = serde_json::json!(dir);
    }
    // Cheap mistakes first, as for `train`.
    crate::instructgpt::check(&pipeline_args(&cli_args::pipeline_with_placeholders(&args))?)?;
    cli_args::complete_pipeline(&mut args, config)?;
    let args = pipeline_args(&args)?;
    match crate::instructgpt::run(&args, &mut Foreground::new(&[], config)?)? {
        Ended::Done { report } => {
            println!("{}", report.display());
            Ok(())
        }
        Ended::Stopped { step } => bail!("stopped in step {step}; the same command goes on from there"),
    }
}

fn pipeline_args(args: &serde_json::Value) -> Result<InstructGptArgs> {
    serde_path_to_error::deserialize(args).context("the pipeline's arguments")
}

/// A bar for people, warnings and samples above it.
struct Foreground {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    metrics: String,
    remote: Option<Arc<dyn RemoteReward>>,
    trainers: BTreeMap<String, Vec<String>>,
}

impl Foreground {
    fn new(reward_hosts: &[String], config: &Config) -> Result<Self> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta} {msg}")?);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let asks = block_on(async { Ok(tokio::signal::ctrl_c().await?) });
            asked.store(asks.is_ok(), Ordering::Relaxed);
        })?;
        let remote = HttpRewards::new(reward_hosts)?.map(|client| Arc::new(client) as Arc<dyn RemoteReward>);
        Ok(Self { bar, stop, metrics: String::new(), remote, trainers: config.trainers.clone() })
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

    fn trainer(&self, name: &str) -> Option<Vec<String>> {
        self.trainers.get(name).cloned()
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The child's side of a job.
pub fn train_job(job_dir: &Path) -> ExitCode {
    start_log(&LogConfig::default());
    ExitCode::from(crate::jobs::child::main(job_dir, crate::train::recipes()))
}

/// Brings a model into the data directory; the configured one when none is named.
pub fn pull(config: &Config, name: Option<String>, from: Option<PathBuf>) -> Result<()> {
    let name = name.unwrap_or_else(|| config.model.clone());
    crate::models_cli::pull_model(&name, &config.data_dir, from.as_deref()).map(drop)
}

pub fn list(config: &Config, available: bool) {
    crate::models_cli::list_models(&config.data_dir, available);
}

/// Writes a pulled model, a directory or a .gguf file as a Hugging Face directory, or as a GGUF file of a format.
pub fn export_model(
    config: &Config,
    model: &str,
    out: &Path,
    half: bool,
    gguf: Option<&str>,
    peft: bool,
) -> Result<()> {
    let source = crate::cli_models::find(model, config)?;
    if peft {
        return crate::models_cli::export_peft(&source, out);
    }
    if let Some(format) = gguf {
        return crate::models_cli::export_gguf(&source, model, out, format);
    }
    let sha256 = crate::models_cli::export_model(&source, out, if half { FileType::F16 } else { FileType::F32 })?;
    println!("{}  {}", sha256, out.display());
    Ok(())
}

/// Folds a PEFT adapter into its base; the result is a pulled model of the name.
pub fn import_adapter(config: &Config, adapter: &Path, base: &str, name: &str) -> Result<()> {
    anyhow::ensure!(crate::model::pull::is_name(name), "{name:?} is no model name");
    let base = crate::cli_models::find(base, config)?;
    crate::models_cli::import_peft(adapter, &base, &crate::model::pull::models_dir(&config.data_dir).join(name))
}

/// Measures a model on a file and prints the figures as JSON.
pub fn eval(config: &Config, given: &Given) -> Result<()> {
    let mut args = given.read()?;
    let names_model = args.get("model").is_some_and(|v| !v.is_null()) || args.get("systems").is_some();
    if !names_model {
        let (name, path) = crate::cli_models::default_model(config)?;
        eprintln!("model: {name} (none was given)");
        args["model"] = serde_json::json!(path);
    }
    crate::cli_models::put_paths(&mut args, config)?;
    let args = serde_path_to_error::deserialize(&args).context("the evaluation's arguments")?;
    let result = crate::eval::run::run(&args)?;
    if let crate::eval::run::EvalResult::Choice(table) = &result {
        eprint!("{}", table.markdown);
    }
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
