//! Direct preference optimisation: the rankings teach the policy itself, against its own start.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;
use serde_json::{Value, json};

use super::args::{DpoArgs, parse};
use super::ranked::{RankedSequences, Rankings};
use super::run::{Plan, Run, before, device, file_hash, load_base};
use super::samples::Samples;
use super::sft::backbone_and_output;
use super::step::{Accumulator, Picked, Sequence, micro_batches};
use super::trainable::Trainable;
use super::{Reporter, TrainOutcome};
use crate::model::Decoder;
use crate::objective::logprobs::sequence_sums_tensor;
use crate::objective::{Stats, dpo};
use crate::prompt::Texts;

/// A ranked set with the reference's log-prob of each completion.
struct Item<'s> {
    set: &'s RankedSequences,
    reference: Vec<f32>,
}

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: DpoArgs = parse(args)?;
    before(reporter, "loading");
    let common = args.common();
    let mut loaded = load_base(&common, &device(common.device)?)?;
    before(reporter, "preparing");
    let texts = Texts::new(&loaded)?;
    let length = super::fit::length(common.max_length, loaded.config.max_positions, || {
        super::ranked::lengths(&args.comparisons, &texts)
    })?;
    let max_length = length.tokens;
    let data = Rankings::read(&args.comparisons, &texts, max_length, args.heldout_fraction)?;

    let policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &common)?
        .with_source(&loaded.source);
    let plan = Plan {
        recipe: "dpo",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("comparisons".to_owned(), file_hash(&args.comparisons)?)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    if data.ties > 0 {
        run.warn(super::ranked::ties_left_out(data.ties));
    }
    length.report(&mut run);
    data.fit.report(&mut run);
    run.progress("reference");
    // The policy before any update (and before a resume) is the reference; its numbers are all that is kept.
    let start = policy.reference(&loaded.weights)?;
    loaded.weights.clear();
    let train = with_reference(&start, &data.train, run.common.micro_batch_tokens)?;
    let heldout_items = with_reference(&start, &data.heldout, run.common.micro_batch_tokens)?;
    drop(start);
    run.resume::<()>(&policy.params)?;
    let prompts = data.heldout.iter().chain(&data.train).map(|s| s.prompt.clone()).collect();
    let samples = Samples::new(&texts, prompts, run.common.seed);

    let mut heldout = Stats::default();
    while run.step < run.total {
        let batch: Vec<&Item<'_>> = run.batch(train.len(), args.batch_size).into_iter().map(|i| &train[i]).collect();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let (loss, part) = loss(policy.decoder(), &group, &args, batch.len() as f64)?;
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
                for group in groups(&heldout_items.iter().collect::<Vec<_>>(), run.common.micro_batch_tokens) {
                    heldout.merge(&loss(&now, &group, &args, 1.0)?.1);
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
    let metrics = json!({"heldout_accuracy": heldout.mean("accuracy"), "sets": sets});
    super::output::save_adapter(&run.common, &policy)?;
    super::output::save(&run.common, "policy", "dpo", &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

fn groups<'i, 's>(items: &[&'i Item<'s>], max_tokens: usize) -> Vec<Vec<&'i Item<'s>>> {
    let lengths: Vec<usize> = items.iter().map(|i| i.set.tokens()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| items[i]).collect()).collect()
}

/// Summed log-probs of the completions of `sets`, end to end.
fn sequence_logprobs(decoder: &Decoder, sequences: &[&Sequence]) -> Result<Tensor> {
    let picked = Picked::new(sequences);
    let hidden = picked.hidden(decoder)?;
    Ok(sequence_sums_tensor(&picked.logprobs(decoder, &hidden, 1.0)?.logprobs, &picked.lengths)?)
}

/// Summed log-prob of every completion of `sets`, in order.
pub(super) fn sequence_sums_of(decoder: &Decoder, sets: &[RankedSequences], max_tokens: usize) -> Result<Vec<f32>> {
    Ok(with_reference(decoder, sets, max_tokens)?.into_iter().flat_map(|item| item.reference).collect())
}

fn with_reference<'s>(start: &Decoder, sets: &'s [RankedSequences], max_tokens: usize) -> Result<Vec<Item<'s>>> {
    let lengths: Vec<usize> = sets.iter().map(RankedSequences::tokens).collect();
    let mut references: Vec<Vec<f32>> = vec![Vec::new(); sets.len()];
    for group in micro_batches(&lengths, max_tokens) {
        let sequences: Vec<&Sequence> = group.iter().flat_map(|&i| &sets[i].sequences).collect();
        let mut sums = sequence_logprobs(start, &sequences)?.to_vec1::<f32>()?.into_iter();
        for i in group {
            references[i] = sums.by_ref().take(sets[i].sequences.len()).collect();
        }
    }
    Ok(sets.iter().zip(references).map(|(set, reference)| Item { set, reference }).collect())
}

/// DPO over all pairs of the sets; every set weighs 1.
fn loss(decoder: &Decoder, items: &[&Item<'_>], args: &DpoArgs, total: f64) -> Result<(Tensor, Stats)> {
    let sequences: Vec<&Sequence> = items.iter().flat_map(|i| &i.set.sequences).collect();
    let policy = sequence_logprobs(decoder, &sequences)?;
    let device = policy.device().clone();
    let reference: Vec<f32> = items.iter().flat_map(|i| i.reference.iter().copied()).collect();
    let reference = Tensor::new(reference, &device)?;
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
    let logps = dpo::Logps {
        policy_chosen: &policy.index_select(&chosen, 0)?,
        policy_rejected: &policy.index_select(&rejected, 0)?,
        ref_chosen: &reference.index_select(&chosen, 0)?,
        ref_rejected: &reference.index_select(&rejected, 0)?,
    };
    Ok(dpo::loss(&logps, &Tensor::new(weights, &device)?, args.loss, args.beta, total)?)
}
