//! The result of an external trainer: a Hugging Face directory or a PEFT adapter. It is loaded, compared with the base
//! model, and measured before it is accepted.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use serde::Serialize;
use serde_json::{Value, json};

use super::layout::TrainerDir;
use crate::data::{PromptInput, read_comparisons, read_demonstrations, read_prompts};
use crate::domain::{Metric, Split};
use crate::generation::score::{Continuation, ContinuationScorer};
use crate::generation::{GenParams, generate};
use crate::model::adapters::peft;
use crate::model::{Decoder, Loaded, Purpose, Weights, load, save_dir};
use crate::prompt::Texts;
use crate::train::Reporter;
use crate::train::args::{DataKind, ExternalArgs};
use crate::train::run::open_device;

/// The KL divergence of the result from the base model, estimated on samples of the result.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Kl {
    /// Nats per sequence: the mean over samples of log p(result) − log p(base).
    pub per_sequence: f64,
    pub per_token: f64,
    pub samples: usize,
    pub tokens: usize,
    /// Whether the prompts were held out from training.
    pub heldout: bool,
}

/// A result that is accepted.
pub(super) struct Accepted {
    pub base: Loaded,
    pub config: crate::model::ModelConfig,
    pub hf_config: Value,
    pub weights: Weights,
    pub kl: Kl,
    /// `model` or `adapter`.
    pub form: &'static str,
}

/// Loads the result in either format.
fn read(dir: &Path, base: &Loaded) -> Result<(crate::model::ModelConfig, Value, Weights, &'static str)> {
    if dir.join("adapter_config.json").is_file() {
        let merged = peft::read(dir, &base.config)?.merge(&base.config, &base.weights)?;
        return Ok((base.config.clone(), base.hf_config.clone(), merged, "adapter"));
    }
    ensure!(
        dir.join("config.json").is_file(),
        "the trainer left neither config.json (a model) nor adapter_config.json (an adapter) in {}",
        dir.display()
    );
    let loaded = load(dir, &Device::Cpu)?;
    Ok((loaded.config, loaded.hf_config, loaded.weights, "model"))
}

/// The first tensor with a value that is not finite.
fn non_finite_tensor(weights: &Weights) -> Result<Option<String>> {
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort();
    for name in names {
        let sum = weights[name].to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        // The sum of finite values may overflow; then every value is checked.
        if !sum.is_finite() {
            let values = weights[name].to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            if values.iter().any(|v| !v.is_finite()) {
                return Ok(Some(name.clone()));
            }
        }
    }
    Ok(None)
}

/// The result must have the shapes of the base model, whose tokenizer is used.
fn same_shapes(base: &Weights, weights: &Weights) -> Result<()> {
    let mut names: Vec<&String> = base.keys().collect();
    names.sort();
    for name in names {
        let Some(found) = weights.get(name) else { bail!("the result has no tensor {name}") };
        let (shape, expected) = (found.dims(), base[name].dims());
        ensure!(shape == expected, "the result's {name} is {shape:?}; the base model has {expected:?}");
    }
    Ok(())
}

/// The prompts for the measurement: held-out ones if there are any, else training prompts; and whether they are held
/// out.
fn prompts(args: &ExternalArgs) -> Result<(Vec<PromptInput>, bool)> {
    if let Some(file) = args.file(DataKind::Comparisons) {
        let (mut heldout, mut train) = (Vec::new(), Vec::new());
        for set in read_comparisons(Path::new(file))? {
            let set = set?;
            if set.side(0.1) == Split::Heldout { heldout.push(set.prompt) } else { train.push(set.prompt) }
        }
        return Ok(if heldout.is_empty() { (train, false) } else { (heldout, true) });
    }
    if let Some(file) = args.file(DataKind::Prompts) {
        let prompts = read_prompts(Path::new(file))?.map(|record| record.map(|r| r.prompt));
        return Ok((prompts.collect::<Result<_, _>>()?, false));
    }
    let file = args.file(DataKind::Demonstrations).context("there is no data to measure on")?;
    let prompts = read_demonstrations(Path::new(file))?.map(|written| written.map(|w| w.prompt));
    Ok((prompts.collect::<Result<_, _>>()?, false))
}

fn on(weights: &Weights, device: &Device) -> Result<Weights> {
    let moved = weights.iter().map(|(name, t)| Ok((name.clone(), t.to_dtype(DType::F32)?.to_device(device)?)));
    Ok(moved.collect::<candle_core::Result<_>>()?)
}

/// Samples from the result and compares their log-probs under both models.
fn measure(args: &ExternalArgs, base: &Loaded, config: &crate::model::ModelConfig, weights: &Weights) -> Result<Kl> {
    let device = open_device(args.device)?;
    let texts = Texts::new(base)?;
    let (found, heldout) = prompts(args)?;
    let room = config.max_positions.saturating_sub(args.kl_tokens);
    let mut seen = std::collections::BTreeSet::new();
    let mut ids = Vec::new();
    for prompt in found {
        if ids.len() == args.kl_prompts {
            break;
        }
        let encoded = texts.prompt(&prompt)?;
        // Prompts that are too long are skipped, and each prompt counts once.
        if encoded.len() <= room && seen.insert(encoded.clone()) {
            ids.push(encoded);
        }
    }
    ensure!(!ids.is_empty(), "no prompt fits before {} tokens (kl_tokens)", args.kl_tokens);
    let after = Decoder::new(config, &on(weights, &device)?, Purpose::Serve)?;
    let params = GenParams {
        max_new_tokens: args.kl_tokens,
        eos_ids: texts.eos_ids().to_vec(),
        seed: args.seed,
        ..GenParams::default()
    };
    let samples = generate(&after, &ids, &params, &|| false)?;
    drop(after);
    let before = Decoder::new(&base.config, &on(&base.weights, &device)?, Purpose::Serve)?;
    let (mut total, mut tokens) = (0.0, 0);
    for (prompt, sample) in ids.iter().zip(&samples) {
        let sequence = Continuation { ids: [prompt.as_slice(), &sample.ids].concat(), from: prompt.len() };
        let scored = ContinuationScorer::new(&before, None, 1)?.score(&[sequence])?;
        let reference = scored.first().context("one sequence was scored")?;
        total += sample.logprobs.iter().zip(reference).map(|(a, b)| f64::from(*a) - f64::from(*b)).sum::<f64>();
        tokens += sample.ids.len();
    }
    let kl = Kl {
        per_sequence: total / samples.len() as f64,
        per_token: total / tokens.max(1) as f64,
        samples: samples.len(),
        tokens,
        heldout,
    };
    ensure!(kl.per_sequence.is_finite(), "the result's log-probs are not finite");
    Ok(kl)
}

/// Loads and measures the result.
///
/// # Errors
/// If it cannot be loaded, has other shapes or values that are not finite, or its KL is larger than `max_kl`.
pub(super) fn accept(args: &ExternalArgs, place: &TrainerDir, reporter: &mut dyn Reporter) -> Result<Accepted> {
    let base = load(Path::new(&args.model), &Device::Cpu).context("the model to start from")?;
    let (config, hf_config, weights, form) = read(&place.result, &base).context("the trainer's result")?;
    same_shapes(&base.weights, &weights)?;
    if let Some(name) = non_finite_tensor(&weights)? {
        bail!("the result's tensor {name} has values that are not finite");
    }
    let kl = measure(args, &base, &config, &weights).context("measuring the result")?;
    let points = [("kl", kl.per_sequence), ("kl_per_token", kl.per_token)];
    reporter.metrics(&points.map(|(name, value)| Metric { step: 0, name: name.to_owned(), value }));
    if let Some(limit) = args.max_kl.filter(|limit| kl.per_sequence > *limit) {
        bail!("the result is {:.2} nats per sequence away from the base model; max_kl allows {limit}", kl.per_sequence);
    }
    Ok(Accepted { base, config, hf_config, weights, kl, form })
}

/// Writes the published model, with the tokenizer and the chat template of the base model.
pub(super) fn save(args: &ExternalArgs, accepted: &Accepted, metrics: &Value) -> Result<()> {
    let about = json!({"kind": "policy", "recipe": "external", "parent": args.model, "seed": args.seed,
        "metrics": metrics});
    let Accepted { base, config, hf_config, weights, .. } = accepted;
    let (dir, template) = (Path::new(&args.output_dir), base.chat_template.as_deref());
    save_dir(dir, config, hf_config, weights, base.tokenizer.as_ref(), template, Some(&about))?;
    Ok(())
}
