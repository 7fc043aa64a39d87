//! Direct learning from preferences: `dpo` (also cDPO, IPO, rDPO) with the start policy as the reference, and `simpo`
//! and `orpo` without a reference. All learn from the pairs of ranked sets.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use candle_core::Tensor;
use serde_json::{Value, json};

use super::args::{Common, DpoArgs, OrpoArgs, RecipeArgs, SimpoArgs, parse_for_run};
use super::on_device::{RunDevice, loading_device};
use super::ranked::{RankedSequences, Rankings};
use super::run::{Run, TrainPlan, file_hash, load_base, report_phase};
use super::samples::Samples;
use super::sft::backbone_and_output;
use super::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use super::token_file::TokenFile;
use super::trainable::Trainable;
use super::{Reporter, TrainOutcome};
use crate::model::Decoder;
use crate::objective::logprobs::sequence_sums_tensor;
use crate::objective::{Stats, dpo, orpo, simpo};
use crate::prompt::{Reasoning, Texts};

/// The loss of the pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Objective {
    Dpo(dpo::Settings),
    Simpo(simpo::Settings),
    /// With the weight of the odds ratio.
    Orpo(f64),
}

impl Objective {
    fn needs_reference(&self) -> bool {
        matches!(self, Self::Dpo(_))
    }
}

/// The arguments of the data, which these recipes share.
struct Data<'a> {
    comparisons: &'a str,
    epochs: u64,
    batch_size: usize,
    heldout_fraction: f64,
    reasoning: Reasoning,
}

pub fn dpo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: DpoArgs = parse_for_run(args)?;
    let DpoArgs { comparisons, epochs, batch_size, heldout_fraction, reasoning, .. } = &args;
    let (epochs, batch_size, heldout_fraction, reasoning) = (*epochs, *batch_size, *heldout_fraction, *reasoning);
    let objective = |data: &Rankings| {
        let label_smoothing = match (args.smoothing_from_agreement, data.agreement) {
            (false, _) => args.label_smoothing,
            (true, Some(agreement)) => dpo::noise_from_agreement(agreement),
            (true, None) => bail!(
                "smoothing_from_agreement: no two people ranked the same completions, so their agreement is not known; \
                 give label_smoothing instead"
            ),
        };
        Ok(Objective::Dpo(dpo::Settings { kind: args.loss, beta: args.beta, label_smoothing }))
    };
    let data = Data { comparisons, epochs, batch_size, heldout_fraction, reasoning };
    train("dpo", &args, args.common(), &data, objective, reporter)
}

pub fn simpo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: SimpoArgs = parse_for_run(args)?;
    let SimpoArgs { comparisons, epochs, batch_size, heldout_fraction, reasoning, .. } = &args;
    let (epochs, batch_size, heldout_fraction, reasoning) = (*epochs, *batch_size, *heldout_fraction, *reasoning);
    let SimpoArgs { beta, simpo_gamma: gamma, label_smoothing, .. } = args;
    let objective = |_: &Rankings| Ok(Objective::Simpo(simpo::Settings { beta, gamma, label_smoothing }));
    let data = Data { comparisons, epochs, batch_size, heldout_fraction, reasoning };
    train("simpo", &args, args.common(), &data, objective, reporter)
}

pub fn orpo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: OrpoArgs = parse_for_run(args)?;
    let OrpoArgs { comparisons, epochs, batch_size, heldout_fraction, reasoning, .. } = &args;
    let (epochs, batch_size, heldout_fraction, reasoning) = (*epochs, *batch_size, *heldout_fraction, *reasoning);
    let data = Data { comparisons, epochs, batch_size, heldout_fraction, reasoning };
    train("orpo", &args, args.common(), &data, |_| Ok(Objective::Orpo(args.beta)), reporter)
}

/// A ranked set with the reference's log-prob of each completion; without log-probs if the loss has no reference.
struct ReferencedSet<'s> {
    set: &'s RankedSequences,
    reference: Vec<f32>,
}

fn train<A: RecipeArgs>(
    recipe: &'static str,
    args: &A,
    common: Common,
    data_args: &Data<'_>,
    objective: impl FnOnce(&Rankings) -> Result<Objective>,
    reporter: &mut dyn Reporter,
) -> Result<TrainOutcome> {
    report_phase(reporter, "loading");
    let mut loaded = load_base(&common, &loading_device(&common)?)?;
    report_phase(reporter, "preparing");
    let texts = Texts::new(&loaded)?.with_reasoning(data_args.reasoning);
    let length = super::fit::length(common.max_length, loaded.config.max_positions, || {
        super::ranked::lengths(data_args.comparisons, &texts)
    })?;
    let max_length = length.tokens;
    let tokens = TokenFile::new(Path::new(&common.output_dir));
    let mut data = Rankings::read(data_args.comparisons, &texts, max_length, data_args.heldout_fraction, &[], tokens)?;
    let objective = objective(&data)?;

    let mut policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &common)?
        .with_source(&loaded.source);
    let plan = TrainPlan {
        recipe,
        args,
        steps: data_args.epochs * data.train.len().div_ceil(data_args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("comparisons".to_owned(), file_hash(data_args.comparisons)?)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    if data.ties > 0 {
        run.warn(super::ranked::ties_left_out(data.ties));
    }
    length.report(&mut run);
    data.fit.report(&mut run);
    data.report.report(&mut run, data.agreement);
    let tokens = run.common.micro_batch_tokens;
    let device = RunDevice::open(&run.common)?;
    let (mut train, mut heldout_items) = (without_reference(&data.train), without_reference(&data.heldout));
    if objective.needs_reference() {
        run.progress("reference");
        // The reference is the policy before any update and before a resume. Only its log-probs are kept.
        let mut start = policy.reference(&loaded.weights)?;
        loaded.weights.clear();
        device.iter().try_for_each(|device| device.score(&mut start))?;
        train = with_reference(&start, &data.train, tokens)?;
        heldout_items = with_reference(&start, &data.heldout, tokens)?;
    }
    loaded.weights.clear();
    run.resume::<()>(&policy.params)?;
    device.iter().try_for_each(|device| device.train(&mut run, &mut policy, ""))?;
    let samples = Samples::new(&texts, std::mem::take(&mut data.prompts), run.common.seed);
    let smoothing = match objective {
        Objective::Dpo(dpo::Settings { label_smoothing, .. })
        | Objective::Simpo(simpo::Settings { label_smoothing, .. }) => Some(label_smoothing).filter(|e| *e > 0.0),
        Objective::Orpo(_) => None,
    };
    run.metrics(smoothing.map(|epsilon| ("label_smoothing", epsilon)));

    let mut heldout = Stats::default();
    while run.step < run.total {
        let batch: Vec<&ReferencedSet<'_>> =
            run.batch(train.len(), data_args.batch_size).into_iter().map(|i| &train[i]).collect();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, tokens) {
            let packed = PredictionBatch::new(&sequences(&group));
            let logprobs = packed.scores(policy.decoder(), 1.0)?.logprobs;
            let sums = sequence_sums_tensor(&logprobs, &packed.lengths)?;
            let (loss, part) = loss(&sums, &packed.lengths, &group, &objective, batch.len() as f64)?;
            sum.add(&policy.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(group.iter().map(|i| i.set.tokens()).sum());
        }
        let (grad_norm, learning_rate) = run.update(&policy.params, &sum.grads)?;
        run.step += 1;
        let named =
            stats.means().map(|(name, value)| (if name == "accuracy" { "train_accuracy" } else { name }, value));
        run.metrics(named.chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) || run.checkpoint_due() {
            let now = policy.frozen_decoder()?;
            if run.due(run.common.eval_every) {
                heldout = Stats::default();
                for group in groups(&heldout_items.iter().collect::<Vec<_>>(), tokens) {
                    let packed = PredictionBatch::new(&sequences(&group));
                    let logprobs = packed.scores_frozen(policy.scorer(Some(&now)), 1.0)?.logprobs;
                    let sums = sequence_sums_tensor(&logprobs, &packed.lengths)?;
                    heldout.merge(&loss(&sums, &packed.lengths, &group, &objective, 1.0)?.1);
                }
                let accuracy = heldout.mean("accuracy").map(|v| ("heldout_accuracy", v));
                run.metrics(accuracy.into_iter().chain(heldout.mean("loss").map(|v| ("heldout_loss", v))));
            }
            samples.write(&mut run, &now, max_length, None)?;
        }
        if let Some(outcome) = run.pause(&policy.params, &())? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let sets =
        json!({"train": data.train.len(), "heldout": data.heldout.len(), "ties": data.ties, "fit": data.fit.json()});
    let mut metrics = json!({"heldout_accuracy": heldout.mean("accuracy"), "sets": sets});
    if let Some(epsilon) = smoothing {
        metrics["label_smoothing"] = epsilon.into();
        metrics["labeler_agreement"] = data.agreement.into();
    }
    super::output::save_adapter(&run.common, &policy)?;
    super::output::save(&run.common, "policy", recipe, &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

fn groups<'i, 's>(items: &[&'i ReferencedSet<'s>], max_tokens: usize) -> Vec<Vec<&'i ReferencedSet<'s>>> {
    let lengths: Vec<usize> = items.iter().map(|i| i.set.tokens()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| items[i]).collect()).collect()
}

/// The summed log-probs of the predicted tokens of each sequence `[m]`, and their number.
pub(super) fn sequence_logprobs(decoder: &Decoder, sequences: &[&Sequence]) -> Result<(Tensor, Vec<usize>)> {
    let packed = PredictionBatch::new(sequences);
    let sums = sequence_sums_tensor(&packed.scores(decoder, 1.0)?.logprobs, &packed.lengths)?;
    Ok((sums, packed.lengths))
}

/// The summed log-prob of every completion of `sets`, in order.
pub(super) fn sequence_sums_of(decoder: &Decoder, sets: &[RankedSequences], max_tokens: usize) -> Result<Vec<f32>> {
    Ok(with_reference(decoder, sets, max_tokens)?.into_iter().flat_map(|item| item.reference).collect())
}

fn without_reference(sets: &[RankedSequences]) -> Vec<ReferencedSet<'_>> {
    sets.iter().map(|set| ReferencedSet { set, reference: Vec::new() }).collect()
}

fn with_reference<'s>(
    start: &Decoder,
    sets: &'s [RankedSequences],
    max_tokens: usize,
) -> Result<Vec<ReferencedSet<'s>>> {
    let lengths: Vec<usize> = sets.iter().map(RankedSequences::tokens).collect();
    let mut items = without_reference(sets);
    for group in micro_batches(&lengths, max_tokens) {
        let sequences: Vec<&Sequence> = group.iter().flat_map(|&i| &sets[i].sequences).collect();
        let packed = PredictionBatch::new(&sequences);
        let logprobs = packed.scores_frozen(start, 1.0)?.logprobs;
        let mut sums = sequence_sums_tensor(&logprobs, &packed.lengths)?.to_vec1::<f32>()?.into_iter();
        for i in group {
            items[i].reference = sums.by_ref().take(sets[i].sequences.len()).collect();
        }
    }
    Ok(items)
}

/// All completions of the sets.
fn sequences<'s>(items: &[&ReferencedSet<'s>]) -> Vec<&'s Sequence> {
    items.iter().flat_map(|i| &i.set.sequences).collect()
}

/// The loss over all pairs of the sets, from the summed log-probs of their completions `[m]` and the numbers of
/// predicted tokens. Every set has weight 1.
fn loss(
    sums: &Tensor,
    lengths: &[usize],
    items: &[&ReferencedSet<'_>],
    objective: &Objective,
    total: f64,
) -> Result<(Tensor, Stats)> {
    let device = sums.device().clone();
    let (mut chosen, mut rejected, mut weights, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for item in items {
        for pair in item.set.pairs(first, 0.0) {
            chosen.push(pair.winner);
            rejected.push(pair.loser);
            weights.push(pair.weight as f32);
        }
        first += item.set.sequences.len();
    }
    let (chosen, rejected) = (Tensor::new(chosen, &device)?, Tensor::new(rejected, &device)?);
    let weights = Tensor::new(weights, &device)?;
    let pairs = |all: &Tensor| -> candle_core::Result<(Tensor, Tensor)> {
        Ok((all.index_select(&chosen, 0)?, all.index_select(&rejected, 0)?))
    };
    let means = || -> Result<(Tensor, Tensor)> {
        let shares: Vec<f32> = lengths.iter().map(|&n| 1.0 / n as f32).collect();
        Ok(pairs(&(sums * Tensor::new(shares, &device)?)?)?)
    };
    Ok(match objective {
        Objective::Dpo(settings) => {
            let reference: Vec<f32> = items.iter().flat_map(|i| i.reference.iter().copied()).collect();
            let (policy_chosen, policy_rejected) = pairs(sums)?;
            let (ref_chosen, ref_rejected) = pairs(&Tensor::new(reference, &device)?)?;
            let logps = dpo::Logps {
                policy_chosen: &policy_chosen,
                policy_rejected: &policy_rejected,
                ref_chosen: &ref_chosen,
                ref_rejected: &ref_rejected,
            };
            dpo::loss(&logps, &weights, settings, total)?
        }
        Objective::Simpo(settings) => {
            let (chosen, rejected) = means()?;
            simpo::loss(&chosen, &rejected, &weights, settings, total)?
        }
        Objective::Orpo(lambda) => {
            let (chosen, rejected) = means()?;
            orpo::loss(&chosen, &rejected, &weights, *lambda, total)?
        }
    })
}
