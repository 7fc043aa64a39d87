//! `instructd models list`: the pulled models, and those that can be pulled by name.

use std::path::Path;

use anyhow::Result;

use crate::cli::settings::Settings;
use crate::hub::pull;

#[derive(clap::Args)]
pub struct Args {
    /// Show sizes, licences, languages and the memory that models need.
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Prints one line for each model.
///
/// # Errors
/// A configuration that cannot be read.
pub fn run(args: Args) -> Result<()> {
    list_models(&args.settings.load()?.data_dir, args.available);
    Ok(())
}

/// Prints the pulled models; with `available` also those that can be pulled by name, and what they need.
fn list_models(data_dir: &Path, available: bool) {
    let installed = pull::list(data_dir);
    for model in &installed {
        println!("{}\t{:.1} MB\t{}", model.name, model.bytes as f64 / 1e6, model.path.display());
    }
    let more = || pull::KNOWN.iter().filter(|known| installed.iter().all(|m| m.name != known.name));
    if !available {
        for known in more() {
            println!("{}\tnot pulled\t{}", known.name, known.repo);
        }
        return;
    }
    let here = crate::train::estimate::available_memory();
    println!("name\tparameters\tlicense\tlanguages\tserve\tLoRA\tQLoRA\tfull training\thub");
    for known in more() {
        let needs = known.needs();
        let size = |bytes: u64| {
            let fits = here.is_none_or(|here| bytes <= here);
            format!("{:.1} GB{}", bytes as f64 / 1e9, if fits { "" } else { "*" })
        };
        println!(
            "{}\t{}M\t{}{}\t{}\t{}\t{}\t{}\t{}\t{}",
            known.name,
            known.millions,
            known.license,
            if known.gated { " (requires consent)" } else { "" },
            known.languages.join(" "),
            size(needs.serve),
            size(needs.lora),
            size(needs.lora_q4),
            size(needs.full),
            known.repo
        );
    }
    println!(
        "Memory by the number of parameters: weights in 16 bits; frozen in f32 under LoRA; frozen in 4 bits under QLoRA (frozen_precision q4); with gradients and Adam's \
         moments in f32. Caches and activations need additional memory."
    );
    if let Some(here) = here {
        println!("* more than the {:.1} GB of memory that are free here", here as f64 / 1e9);
    }
}
