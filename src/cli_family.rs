//! Bodies of `instructd plan` and `instructd attention`: what a model needs, and what it looks at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;

use crate::cli_models;
use crate::config::Config;
use crate::model::attention_maps::{self, AttentionMaps};
use crate::model::encoder_text::TextEncoder;
use crate::model::plan::{Plan, PlanArgs, plan};
use crate::model::{self, Decoder, ModelConfig, Purpose, presets};

/// Prints every preset, or the plan of one preset or of the model in a directory.
pub fn print_plan(settings: &Config, what: Option<&str>, args: &PlanArgs, json: bool) -> Result<()> {
    let Some(what) = what else {
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
    let config: ModelConfig = match presets::find(what) {
        Some(preset) => preset.config,
        None => {
            let path = cli_models::find(what, settings).context("no preset either: `instructd plan` lists those")?;
            model::describe(&path)?.config
        }
    };
    let plan = plan(&config, args).map_err(|e| anyhow!("--{}: {}", e.field.replace('_', "-"), e.message))?;
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

/// What `instructd attention` is asked.
pub struct AttentionArgs {
    /// Names of pulled models, directories or .gguf files; decoders and encoders.
    pub models: Vec<String>,
    pub text: String,
    pub layer: Option<usize>,
    pub head: Option<usize>,
}

/// Prints one map for each model, one below the other.
pub fn print_attention(config: &Config, args: &AttentionArgs) -> Result<()> {
    let models = if args.models.is_empty() { vec![config.model.clone()] } else { args.models.clone() };
    for name in models {
        let path: PathBuf = cli_models::find(&name, config)?;
        let (tokens, maps) = look(&path, &args.text)?;
        print!("{}", picture(&name, &tokens, &maps, args.layer, args.head)?);
    }
    Ok(())
}

fn look(path: &Path, text: &str) -> Result<(Vec<String>, AttentionMaps)> {
    let loaded = model::load(path, &Device::Cpu)?;
    let tokenizer = loaded.tokenizer.clone().with_context(|| format!("{} has no tokenizer.json", path.display()))?;
    let encoder = loaded.config.is_encoder();
    let ids = if encoder { tokenizer.encode(text, true, false)? } else { tokenizer.encode_open(text, false)? };
    ensure!(!ids.is_empty(), "the text has no tokens");
    ensure!(ids.len() <= loaded.config.max_positions, "the text has {} tokens", ids.len());
    let tokens = match encoder {
        true => ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect(),
        false => tokenizer.pieces(&ids).into_iter().map(|piece| piece.text).collect(),
    };
    let maps = match encoder {
        true => attention_maps::of_encoder(TextEncoder::new(&loaded)?.encoder(), &ids)?,
        false => attention_maps::of_decoder(&Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve)?, &ids)?,
    };
    Ok((tokens, maps))
}

/// Rows attend to columns: darker is more, `·` nearly nothing, and blank is what a decoder may not see.
fn picture(
    name: &str,
    tokens: &[String],
    maps: &AttentionMaps,
    layer: Option<usize>,
    head: Option<usize>,
) -> Result<String> {
    const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
    ensure!(layer.is_none_or(|l| l < maps.layers.len()), "--layer: {name} has {} layers", maps.layers.len());
    ensure!(head.is_none_or(|h| h < maps.n_heads), "--head: {name} has {} heads", maps.n_heads);
    let layers: Vec<usize> = layer.map_or_else(|| (0..maps.layers.len()).collect(), |l| vec![l]);
    let heads: Vec<usize> = head.map_or_else(|| (0..maps.n_heads).collect(), |h| vec![h]);
    let part =
        |what: &str, one: Option<usize>| one.map_or_else(|| format!("mean of {what}s"), |i| format!("{what} {i}"));
    let sight =
        if maps.causal { "masked: each token sees only what came before" } else { "full: every token sees all" };
    let mut out = format!("{name} ({sight}), {}, {}\n", part("layer", layer), part("head", head));
    let width = tokens.iter().map(|t| t.trim().chars().count()).max().unwrap_or(0).min(16);
    for (from, token) in tokens.iter().enumerate() {
        let label: String = token.trim().chars().take(width).collect();
        out.push_str(&" ".repeat(width - label.chars().count()));
        out.push_str(&label);
        out.push_str("  ");
        for to in 0..tokens.len() {
            let mut sum = 0.0;
            for l in &layers {
                sum += heads.iter().map(|h| maps.row(*l, *h, from)[to]).sum::<f32>();
            }
            let p = sum / (layers.len() * heads.len()) as f32;
            let shade = if maps.causal && to > from { ' ' } else { SHADES[((p.sqrt() * 5.0) as usize).min(4)] };
            out.push(shade);
            out.push(shade);
        }
        out.push('\n');
    }
    out.push('\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_positions_are_blank() {
        let hidden = candle_core::Tensor::zeros((2, 1), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
        let maps =
            AttentionMaps { n_heads: 1, n_tokens: 2, causal: true, layers: vec![vec![1.0, 0.0, 0.01, 0.99]], hidden };
        let tokens = ["a".to_owned(), " bc".to_owned()];
        let text = picture("m", &tokens, &maps, Some(0), None).expect("a picture");
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), [" a  ██  ", "bc  ··██", ""]);
        assert!(picture("m", &tokens, &maps, Some(1), None).is_err());
        assert!(picture("m", &tokens, &maps, None, Some(1)).is_err());
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([7, 1234, 1_557_611_200].map(grouped), ["7", "1 234", "1 557 611 200"]);
    }
}
