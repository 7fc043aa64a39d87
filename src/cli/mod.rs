//! The command line: one file for each subcommand, which holds its arguments and its body.

mod args;
mod attention;
mod backup;
mod datasets;
mod eval;
mod export;
mod export_db;
mod foreground;
mod import_db;
mod instructgpt;
mod locate;
mod migrate;
pub mod models;
mod plan;
mod restore;
mod retention;
mod rubrics;
mod serve;
mod settings;
mod telemetry;
mod tokenizer;
mod train;
mod train_job;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::datasets::Datasets;
use self::models::Models;
use self::rubrics::Rubrics;
use self::settings::Settings;

/// Closes the InstructGPT loop: serve, rank, train a reward model, PPO, serve the better model.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the model, the pages and the API (the default).
    #[command(after_help = "Example:\n  instructd serve --model builtin --listen 127.0.0.1:8000")]
    Serve(serve::Args),
    /// Run training jobs of the database, without serving.
    #[command(after_help = "Example:\n  instructd worker --data-dir data")]
    Worker(Settings),
    /// Run one prepared job; used by the server for its child processes.
    #[command(after_help = "Example:\n  instructd train-job --job-dir data/jobs/01JABC")]
    TrainJob(train_job::Args),
    /// Bring the database's schema up to date.
    #[command(after_help = "Example:\n  instructd migrate --database-url postgres://localhost/instructd")]
    Migrate(Settings),
    /// Copy the database and the models to a new directory, while servers run.
    #[command(after_help = "Example:\n  instructd backup /backups/today --data-dir data")]
    Backup(backup::Args),
    /// Restore a backup into an empty database and data directory.
    #[command(after_help = "Example:\n  instructd restore /backups/today --data-dir new-data")]
    Restore(restore::Args),
    /// Write every table of the database to a new directory.
    #[command(after_help = "Example:\n  instructd export-db tables --data-dir data")]
    ExportDb(export_db::Args),
    /// Fill an empty database, SQLite or Postgres, from export-db's directory.
    #[command(after_help = "Example:\n  instructd import-db tables --database-url postgres://localhost/instructd")]
    ImportDb(import_db::Args),
    /// Pull, list, convert, push and activate models.
    #[command(after_help = "Example:\n  instructd models pull smollm2-135m-instruct")]
    #[command(subcommand)]
    Models(Models),
    /// Push dataset versions to the Hugging Face hub.
    #[command(
        after_help = "Example:\n  HF_TOKEN=hf_… instructd datasets push my-rankings my-name/my-rankings --private"
    )]
    #[command(subcommand)]
    Datasets(Datasets),
    /// List, add and activate rubrics.
    #[command(after_help = "Example:\n  instructd rubrics add rubric.json --activate")]
    #[command(subcommand)]
    Rubrics(Rubrics),
    /// Train a tokenizer on text, JSONL or Parquet files.
    #[command(after_help = "Example:\n  instructd tokenizer corpus.txt --out my-tokenizer --vocab-size 4096")]
    Tokenizer(tokenizer::Args),
    /// Run a recipe in the foreground: pretrain, sft, reward, ppo, …
    #[command(
        after_help = "Example:\n  instructd train sft\n  instructd train reward --model builtin --comparisons rankings.jsonl --set epochs=2 --set lora.rank=4\n  instructd train sft --args sft.json\n\nsft.json: {\"model\": \"builtin\", \"demonstrations\": \"demonstrations.jsonl\", \"output_dir\": \"out\"}\nWithout a model: the active one of the database, the configured one, or builtin. Without data: the database's, or the\nsample's. Recipes: pretrain, mlm, finetune, prompt_tuning, sft, reward, ppo, reinforce, rloo, grpo,\nonline_dpo, raft, dpo, simpo, orpo, kto, external."
    )]
    Train(train::Args),
    /// Demonstrations → SFT → comparisons → reward model → PPO → report; run again to continue.
    #[command(
        after_help = "Example:\n  instructd instructgpt --model builtin\n  instructd instructgpt --comparisons rankings.jsonl --set ppo.iterations=20\n  instructd instructgpt --args pipeline.json\n\npipeline.json: {\"model\": \"builtin\", \"comparisons\": \"comparisons.jsonl\", \"work_dir\": \"work\"}\nWithout rankings: the database's, or the sample's. Arguments of the recipes: sft.…, reward.…, ppo.…; `instructd train\nppo --explain` lists them."
    )]
    Instructgpt(instructgpt::Args),
    /// Evaluate a model on a file.
    #[command(
        after_help = "Example:\n  instructd eval --set kind=perplexity --set text=corpus.txt --model builtin\n  instructd eval --args eval.json\n\neval.json: {\"kind\": \"perplexity\", \"model\": \"builtin\", \"text\": \"corpus.txt\"}\nKinds: perplexity, choice, classifier, reward, scores."
    )]
    Eval(eval::Args),
    /// What a model needs: parameters, memory, speed bounds, devices. Without a name: the presets.
    #[command(after_help = "Example:\n  instructd plan gpt2 --memory-gib 16 --batch 8")]
    Plan(plan::Args),
    /// Show which tokens of a text a model attends to; several models one below the other.
    #[command(after_help = "Example:\n  instructd attention 'The cat sat on the mat' --model builtin --layer 0")]
    Attention(attention::Args),
    /// Remove requests, feedback and files of ended jobs that are past the limits of [retention].
    #[command(after_help = "Example:\n  instructd retention --dry-run --data-dir data")]
    Retention(retention::Args),
    /// Write stored judgments or demonstrations as JSON lines.
    #[command(after_help = "Example:\n  instructd export --format trl --split train --out comparisons.jsonl")]
    Export(export::Args),
}

/// Parses the arguments of the process and runs the subcommand; errors are printed on standard error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = cli.command.unwrap_or(Command::Serve(cli.serve)).run();
    telemetry::finish();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", crate::domain::error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        match self {
            Self::Serve(args) => block_on(serve::run(args))?,
            Self::Worker(settings) => block_on(async { crate::app::worker(settings.load()?).await })?,
            Self::TrainJob(args) => return Ok(train_job::run(&args)),
            Self::Migrate(settings) => block_on(migrate::run(settings))?,
            Self::Backup(args) => block_on(backup::run(args))?,
            Self::Restore(args) => block_on(restore::run(args))?,
            Self::ExportDb(args) => block_on(export_db::run(args))?,
            Self::ImportDb(args) => block_on(import_db::run(args))?,
            Self::Models(models) => models.run()?,
            Self::Datasets(datasets) => block_on(datasets.run())?,
            Self::Rubrics(rubrics) => block_on(rubrics.run())?,
            Self::Tokenizer(args) => tokenizer::run(&args)?,
            Self::Train(args) => train::run(args)?,
            Self::Instructgpt(args) => instructgpt::run(args)?,
            Self::Eval(args) => eval::run(args)?,
            Self::Plan(args) => plan::run(args)?,
            Self::Attention(args) => attention::run(args)?,
            Self::Retention(args) => block_on(retention::run(args))?,
            Self::Export(args) => block_on(export::run(args))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs a future on a new runtime.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}
