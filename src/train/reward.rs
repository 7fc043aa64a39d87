//! Reward model from rankings: the K-wise loss of InstructGPT, one score per completion at its end token.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Tensor, Var};
use serde_json::{Value, json};

use super::args::{Common, RewardArgs, parse};
use super::ranked::{RankedSequences, Rankings};
use super::run::{Plan, Run, device, file_hash};
use super::step::{Accumulator, micro_batches};
use super::trainable::{Trainable, normal_init};
use super::{Reporter, TrainOutcome, optim::Params};
use crate::eval::preference::{PairMetrics, pair_metrics};
use crate::model::reward::{SCORE, headless, scores_of};
use crate::model::{self, Decoder, Loaded, PackedBatch, Weights};
use crate::objective::{Stats, reward, whiten::moments};
use crate::prompt::Texts;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: RewardArgs = parse(args)?;
    let common = args.common();
    let mut loaded = model::load(Path::new(&common.model), &device(common.device)?).context("model")?;
    let texts = Texts::new(&loaded)?;
    let max_length = common.max_length.min(loaded.config.max_positions);
    let data = Rankings::read(&args.comparisons, &texts, max_length, args.heldout_fraction)?;

    let backbone = Trainable::new(&headless(&loaded.config), backbone(&loaded), common.lora.as_ref(), common.seed)?
        .with_recompute(common.recompute);
    let head = Var::from_tensor(&head(&loaded, common.seed)?)?;
    loaded.weights.clear();
    let params = backbone.params.clone().into_iter().chain([(SCORE.to_owned(), head.clone())]).collect::<Params>();
    let plan = Plan {
        recipe: "reward",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("comparisons".to_owned(), file_hash(&args.comparisons)?)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    if data.ties > 0 {
        run.warn(format!("{} sets in which all completions tie are left out", data.ties));
    }
    if data.heldout.is_empty() {
        run.warn("no prompt is held out: there is no held-out accuracy".to_owned());
    }
    run.resume::<()>(&params)?;

    let mut heldout = None;
    while run.step < run.total {
        let batch: Vec<&RankedSequences> =
            run.batch(data.train.len(), args.batch_size).into_iter().map(|i| &data.train[i]).collect();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let pairs = pairs(&group, args.margin);
            let ids: Vec<&[u32]> = group.iter().flat_map(|s| &s.sequences).map(|s| s.ids.as_slice()).collect();
            let part = learn(&backbone, &head, &params, &ids, &pairs, batch.len() as f64, &run.common, &mut sum)?;
            stats.merge(&part);
            run.meter.add_tokens(ids.iter().map(|ids| ids.len()).sum());
        }
        let (grad_norm, learning_rate) = run.update(&params, &sum.grads)?;
        run.step += 1;
        let named =
            stats.means().map(|(name, value)| (if name == "accuracy" { "train_accuracy" } else { name }, value));
        run.metrics(named.chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) {
            run.progress("evaluate");
            heldout = evaluate(&backbone.frozen_decoder()?, &head, &data.heldout, run.common.micro_batch_tokens)?;
            if let Some(m) = heldout {
                run.metrics([("heldout_accuracy", m.accuracy), ("heldout_loss", m.loss), ("ece", m.ece)]);
                run.metrics([("heldout_margin", m.margin)]);
            }
        }
        if let Some(outcome) = run.pause(&params, &())? {
            return Ok(outcome);
        }
    }

    let decoder = backbone.frozen_decoder()?;
    let (gain, bias) = match args.normalize {
        true => normalisation(&decoder, &head, &data.train, run.common.micro_batch_tokens)?,
        false => (1.0, 0.0),
    };
    run.progress("saving");
    let sets = json!({"train": data.train.len(), "heldout": data.heldout.len(), "ties": data.ties});
    let metrics = json!({"heldout": heldout, "heldout_accuracy": heldout.map(|m| m.accuracy), "sets": sets});
    let mut weights = backbone.merged()?;
    weights.insert(SCORE.to_owned(), head.as_detached_tensor());
    let about = json!({"reward": {"gain": gain, "bias": bias, "max_length": max_length}, "metrics": metrics});
    super::output::save(&run.common, "reward", "reward", &loaded, &weights, about)?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// The tensors below the head. A reward model computes no logits, so an untied output matrix stays behind.
fn backbone(loaded: &Loaded) -> Weights {
    let head = |name: &str| name == SCORE || name == "lm_head.weight" || name.starts_with("classifier.");
    loaded.weights.iter().filter(|(name, _)| !head(name)).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// The head of a reward model that is trained on, or a fresh one: Normal(0, 1/√(d+1)) (LMHP, Stiennon).
fn head(loaded: &Loaded, seed: u64) -> Result<Tensor> {
    let d = loaded.config.hidden_size;
    match loaded.weights.get(SCORE) {
        Some(head) if head.dims() == [1, d] => Ok(head.clone()),
        Some(head) => bail!("model: {SCORE} has shape {:?}, not [1, {d}]", head.dims()),
        None => {
            let device = loaded.weights.values().next().map_or(candle_core::Device::Cpu, |t| t.device().clone());
            Ok(normal_init((1, d), 1.0 / ((d + 1) as f64).sqrt(), seed, &device)?)
        }
    }
}

/// Sets that go through the model together; a set is never divided.
fn groups<'s>(sets: &[&'s RankedSequences], max_tokens: usize) -> Vec<Vec<&'s RankedSequences>> {
    let lengths: Vec<usize> = sets.iter().map(|s| s.tokens()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| sets[i]).collect()).collect()
}

/// Adds the gradients of the loss over `ids`, the completions of whole sets. A set that is larger than a
/// micro-batch goes through twice: first for its scores, whose gradients the loss gives, then a few
/// completions at a time with those gradients as weights. The sum is that of one pass.
#[expect(clippy::too_many_arguments, reason = "the state of one step, taken apart for the borrow checker")]
fn learn(
    backbone: &Trainable,
    head: &Var,
    params: &Params,
    ids: &[&[u32]],
    pairs: &[reward::Pair],
    total_sets: f64,
    common: &Common,
    sum: &mut Accumulator,
) -> Result<Stats> {
    let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
    let parts = micro_batches(&lengths, common.micro_batch_tokens);
    if parts.len() == 1 {
        let (loss, stats) = reward::loss(&scores(backbone.decoder(), head, ids)?, pairs, total_sets)?;
        sum.add(params, &loss)?;
        return Ok(stats);
    }
    let pick = |part: &[usize]| -> Vec<&[u32]> { part.iter().map(|&i| ids[i]).collect() };
    let mut all = vec![0f32; ids.len()];
    for part in &parts {
        let some: Vec<f32> = scores(backbone.decoder(), head, &pick(part))?.detach().to_vec1()?;
        part.iter().zip(some).for_each(|(&i, score)| all[i] = score);
    }
    let leaf = Var::from_tensor(&Tensor::new(all, head.device())?)?;
    let (loss, stats) = reward::loss(leaf.as_tensor(), pairs, total_sets)?;
    let slopes = loss.backward()?;
    let slopes: Vec<f32> = slopes.get(&leaf).context("the ranking loss has no gradient")?.to_vec1()?;
    for part in &parts {
        let weights: Vec<f32> = part.iter().map(|&i| slopes[i]).collect();
        let weighted = (scores(backbone.decoder(), head, &pick(part))? * Tensor::new(weights, head.device())?)?;
        sum.add(params, &weighted.sum_all()?)?;
    }
    Ok(stats)
}

/// Scores of completions `[n]`, with gradient where the decoder has variables.
fn scores(decoder: &Decoder, head: &Tensor, ids: &[&[u32]]) -> Result<Tensor> {
    let batch = PackedBatch::new(ids);
    Ok(scores_of(&decoder.forward(&batch)?, &batch.last_rows(), head)?)
}

/// The same of whole sets, a micro-batch at a time, as numbers.
fn frozen_scores(decoder: &Decoder, head: &Tensor, sets: &[&RankedSequences], max_tokens: usize) -> Result<Vec<f32>> {
    let ids: Vec<&[u32]> = sets.iter().flat_map(|s| &s.sequences).map(|s| s.ids.as_slice()).collect();
    let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
    let mut all = vec![0f32; ids.len()];
    for part in micro_batches(&lengths, max_tokens) {
        let some: Vec<&[u32]> = part.iter().map(|&i| ids[i]).collect();
        let some: Vec<f32> = scores(decoder, &head.detach(), &some)?.to_vec1()?;
        part.iter().zip(some).for_each(|(&i, score)| all[i] = score);
    }
    Ok(all)
}

fn pairs(sets: &[&RankedSequences], margin: f64) -> Vec<reward::Pair> {
    let mut first = 0;
    let mut all = Vec::new();
    for set in sets {
        all.extend(set.pairs(first, margin));
        first += set.sequences.len();
    }
    all
}

fn evaluate(
    decoder: &Decoder,
    head: &Tensor,
    sets: &[RankedSequences],
    max_tokens: usize,
) -> Result<Option<PairMetrics>> {
    let mut differences = Vec::new();
    for group in groups(&sets.iter().collect::<Vec<_>>(), max_tokens) {
        let scores = frozen_scores(decoder, head, &group, max_tokens)?;
        let difference = |p: reward::Pair| f64::from(scores[p.winner as usize] - scores[p.loser as usize]);
        differences.extend(pairs(&group, 0.0).into_iter().map(difference));
    }
    Ok(pair_metrics(&differences))
}

/// (gain, bias) that bring the completions of the training sets to mean 0 and variance 1.
fn normalisation(decoder: &Decoder, head: &Tensor, sets: &[RankedSequences], max_tokens: usize) -> Result<(f64, f64)> {
    /// Some two hundred scores fix two moments to a few percent; more would only cost forward passes.
    const SETS: usize = 64;
    let mut all = Vec::new();
    for group in groups(&sets.iter().take(SETS).collect::<Vec<_>>(), max_tokens) {
        let scores = frozen_scores(decoder, head, &group, max_tokens)?;
        all.extend(scores.into_iter().map(f64::from));
    }
    let (mean, variance) = moments(&all);
    let gain = 1.0 / (variance + 1e-8).sqrt();
    Ok((gain, -mean * gain))
}
