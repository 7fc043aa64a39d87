//! `instructd plan`: what a model needs.

use anyhow::{Context, Result, anyhow};

use super::locate;
use super::settings::Settings;
use crate::model::{ModelConfig, presets};
use crate::service::plan::{Plan, PlanArgs, plan};

#[derive(clap::Args)]
pub struct Args {
    /// A preset, or a model: a name, a directory or a .gguf file.
    model: Option<String>,
    #[command(flatten)]
    machine: Machine,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
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
    /// The given figures over the default machine, one H100.
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

/// Prints every preset, or the plan of one preset or of a model.
///
/// # Errors
/// A model that cannot be found or read, figures of the machine that are out of range.
pub fn run(args: Args) -> Result<()> {
    let Args { model, machine, json, settings } = args;
    let (config, args) = (settings.load()?, &machine.args());
    let Some(what) = model.as_deref() else {
        println!("{:<14} {:>15}  {:<9} layers  channels  heads  context", "preset", "parameters", "published");
        for p in presets::all() {
            let (c, n) = (&p.config, grouped(presets::parameters(&p.config)));
            println!(
                "{:<14} {n:>15}  {:<9} {:>6}  {:>8}  {:>5}  {:>7}  {}",
                p.name, p.published, c.n_layers, c.hidden_size, c.n_heads, c.max_positions, p.note
            );
        }
        return Ok(());
    };
    let sizes: ModelConfig = match presets::find(what) {
        Some(preset) => preset.config,
        None => {
            let path = locate::find(what, &config)
                .context("it is not a preset either; `instructd plan` without arguments lists the presets")?;
            crate::model::describe(&path)?.config
        }
    };
    let plan = plan(&sizes, args).map_err(|e| anyhow!("--{}: {}", e.field.replace('_', "-"), e.message))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print!("{}", table(what, args, &plan));
    }
    Ok(())
}

fn table(name: &str, args: &PlanArgs, plan: &Plan) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let gib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1u32 << 30));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{name}: {} parameters, {} in the matrices a token passes; {:.3e} FLOP a token at {} tokens\n\
         devices of {} GiB ({:.0} % usable), {} GB/s, {} TFLOP/s; batch {}\n\n\
         serving     weights GiB  cache B/token  cache GiB  total GiB  devices  tokens/s at most",
        grouped(plan.parameters),
        grouped(plan.matrix_parameters),
        plan.flops_per_token,
        plan.context,
        args.memory_gib,
        args.usable * 100.0,
        args.bandwidth_gb_s,
        args.tflops,
        plan.batch
    );
    for s in &plan.serve {
        let bound = if s.tokens_per_second < s.compute_bound { "memory" } else { "arithmetic" };
        let _ = writeln!(
            out,
            "{:<11} {:>11}  {:>13}  {:>9}  {:>9}  {:>7}  {:.0} ({bound})",
            s.dtype.as_str(),
            gib(s.weights_bytes),
            s.kv_bytes_per_token,
            gib(s.kv_bytes),
            gib(s.total_bytes),
            s.devices,
            s.tokens_per_second
        );
    }
    out.push_str("\ntraining    trained          weights  gradients  optimizer  activations  total GiB  devices  tokens/s at most\n");
    for t in &plan.train {
        let _ = writeln!(
            out,
            "{:<11} {:>15}  {:>7}  {:>9}  {:>9}  {:>11}  {:>9}  {:>7}  {:.0}",
            t.kind,
            grouped(t.trained_parameters),
            gib(t.weights_bytes),
            gib(t.gradients_bytes),
            gib(t.optimizer_bytes),
            gib(t.activations_bytes),
            gib(t.total_bytes),
            t.devices,
            t.tokens_per_second
        );
    }
    out
}

/// 1557611200 → "1 557 611 200".
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([7, 1234, 1_557_611_200].map(grouped), ["7", "1 234", "1 557 611 200"]);
    }
}
