//! `instructd attention`: which tokens of a text a model attends to.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;

use super::locate;
use super::settings::Settings;
use crate::engine::attention_maps::{self, AttentionMaps};
use crate::model::encoder::text::TextEncoder;
use crate::model::{self, Decoder, Purpose};

#[derive(clap::Args)]
pub struct Args {
    text: String,
    /// A name (builtin, pulled or published), a directory or a .gguf file; decoder or encoder. Default: the configured
    /// model.
    #[arg(long)]
    model: Vec<String>,
    /// Counted from 0; the mean of all when absent.
    #[arg(long)]
    layer: Option<usize>,
    /// Counted from 0; the mean of all when absent.
    #[arg(long)]
    head: Option<usize>,
    #[command(flatten)]
    settings: Settings,
}

/// Prints one map for each model, one below the other.
///
/// # Errors
/// A model that cannot be found or read, a text without tokens, a layer or head that a model does not have.
pub fn run(args: Args) -> Result<()> {
    let Args { text, model, layer, head, settings } = args;
    let config = settings.load()?;
    let models = if model.is_empty() { vec![config.model.clone()] } else { model };
    for name in models {
        let (tokens, maps) = look(&locate::find(&name, &config)?, &text)?;
        print!("{}", picture(&name, &tokens, &maps, layer, head)?);
    }
    Ok(())
}

fn look(path: &Path, text: &str) -> Result<(Vec<String>, AttentionMaps)> {
    let loaded = model::load(path, &Device::Cpu)?;
    let tokenizer = loaded.tokenizer.clone().with_context(|| format!("{} has no tokenizer.json", path.display()))?;
    let encoder = loaded.config.is_encoder();
    let ids = if encoder { tokenizer.encode(text, true, false)? } else { tokenizer.encode_open(text, false)? };
    ensure!(!ids.is_empty(), "the text has no tokens; give some text");
    let context = loaded.config.max_positions;
    ensure!(ids.len() <= context, "the text has {} tokens; the model's context holds {context}", ids.len());
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

/// Draws a map: rows attend to columns; darker is more, `·` is nearly nothing, and blank is masked.
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
}
