//! Kahneman-Tversky optimisation: learns from single completions with a thumb up or down, with the start policy as the
//! reference.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::args::{KtoArgs, parse_for_run};
use super::fit::{self, count};
use super::on_device::{RunDevice, loading_device};
use super::preference::sequence_logprobs;
use super::run::{Run, TrainPlan, file_hash, load_base, report_phase};
use super::samples::Samples;
use super::sft::{backbone_and_output, length};
use super::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use super::thumbed::{Feedback, FeedbackExample};
use super::token_file::TokenFile;
use super::trainable::Trainable;
use super::{Reporter, TrainOutcome};
use crate::data::read_feedback;
use crate::model::Decoder;
use crate::objective::logprobs::sequence_sums_tensor;
use crate::objective::preference::ranked_above;
use crate::objective::{Stats, kto};
use crate::prompt::Texts;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: KtoArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let mut loaded = load_base(&common, &loading_device(&common)?)?;
    report_phase(reporter, "preparing");
    let texts = Texts::new(&loaded)?.with_reasoning(args.reasoning);
    let fitted = fit::length(common.max_length, loaded.config.max_positions, || lengths(&args.feedback, &texts))?;
    let max_length = fitted.tokens;
    let tokens = TokenFile::new(Path::new(&common.output_dir));
    let mut data = Feedback::read(&args.feedback, &texts, max_length, args.heldout_fraction, tokens)?;
    let (liked, others) = data.counts();
    if liked == 0 || others == 0 {
        let reasons = data.fit.reasons();
        bail!(
            "feedback: KTO needs liked and disliked completions to train on, there are {liked} and {others}{reasons}"
        );
    }
    let settings = settings(&args, liked, others);

    let mut policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &common)?
        .with_source(&loaded.source);
    let plan = TrainPlan {
        recipe: "kto",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("feedback".to_owned(), file_hash(&args.feedback)?)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    fitted.report(&mut run);
    data.fit.report(&mut run);
    data.report.report(&mut run, None);
    run.info(format!(
        "{} liked, {} not; weights {:.3} and {:.3}",
        count(liked, "completion is", "completions are"),
        others,
        settings.desirable_weight,
        settings.undesirable_weight
    ));
    let tokens = run.common.micro_batch_tokens;
    run.progress("reference");
    // The reference is the policy before any update and before a resume. Only its log-probs are kept.
    let mut start = policy.reference(&loaded.weights)?;
    loaded.weights.clear();
    let device = RunDevice::open(&run.common)?;
    device.iter().try_for_each(|device| device.score(&mut start))?;
    for items in [&mut data.train, &mut data.heldout] {
        let of =
            |pick: fn(&FeedbackExample) -> &Sequence| sums(&start, &items.iter().map(pick).collect::<Vec<_>>(), tokens);
        let (own, mismatched) = (of(|item| &item.sequence)?, of(|item| &item.mismatched)?);
        for ((item, own), mismatched) in items.iter_mut().zip(own).zip(mismatched) {
            (item.reference, item.mismatched_reference) = (own, mismatched);
        }
    }
    drop(start);
    run.resume::<()>(&policy.params)?;
    device.iter().try_for_each(|device| device.train(&mut run, &mut policy, ""))?;
    let samples = Samples::new(&texts, std::mem::take(&mut data.prompts), run.common.seed);

    let (mut heldout, mut auc) = (Stats::default(), None);
    while run.step < run.total {
        let batch: Vec<&FeedbackExample> =
            run.batch(data.train.len(), args.batch_size).into_iter().map(|i| &data.train[i]).collect();
        // Of the whole batch, so that it is the same for every micro-batch.
        let z0 = reference_point(policy.decoder(), &batch, tokens)?;
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in in_groups(&batch, tokens) {
            let sequences: Vec<&Sequence> = group.iter().map(|item| &item.sequence).collect();
            let sums = sequence_logprobs(policy.decoder(), &sequences)?.0;
            let (loss, part, _) = loss(&sums, &group, z0, &settings, batch.len() as f64)?;
            sum.add(&policy.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(group.iter().map(|i| i.sequence.ids.len()).sum());
        }
        let (grad_norm, learning_rate) = run.update(&policy.params, &sum.grads)?;
        run.step += 1;
        let named =
            stats.means().map(|(name, value)| (if name == "accuracy" { "train_accuracy" } else { name }, value));
        run.metrics(named.chain([("kl", z0), ("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        if let (Some(up), Some(down)) = (stats.mean("chosen_reward"), stats.mean("rejected_reward")) {
            run.metrics([("margin", up - down)]);
        }
        run.progress("train");
        if run.due(run.common.eval_every) || run.checkpoint_due() {
            let now = policy.frozen_decoder()?;
            if run.due(run.common.eval_every) && !data.heldout.is_empty() {
                (heldout, auc) = evaluate(policy.scorer(Some(&now)), &data.heldout, &settings, tokens)?;
                run.metrics(heldout.mean("loss").map(|v| ("heldout_loss", v)));
                run.metrics(auc.map(|v| ("heldout_accuracy", v)));
            }
            samples.write(&mut run, &now, max_length, None)?;
        }
        if let Some(outcome) = run.pause(&policy.params, &())? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let metrics = json!({
        "heldout_accuracy": auc, "heldout_loss": heldout.mean("loss"), "liked": liked, "not_liked": others,
        "train": data.train.len(), "heldout": data.heldout.len(), "desirable_weight": settings.desirable_weight,
        "undesirable_weight": settings.undesirable_weight, "fit": data.fit.json(),
    });
    super::output::save_adapter(&run.common, &policy)?;
    super::output::save(&run.common, "policy", "kto", &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// The settings of the loss. Weights that are not given are such that liked and other completions have equal total
/// weight, by raising that of the rarer side: the lower end of the paper's range for λ_D·n_D / λ_U·n_U.
fn settings(args: &KtoArgs, liked: usize, others: usize) -> kto::Settings {
    let (liked, others) = (liked as f64, others as f64);
    let (desirable_weight, undesirable_weight) = match (args.desirable_weight, args.undesirable_weight) {
        (Some(up), Some(down)) => (up, down),
        (Some(up), None) => (up, up * liked / others),
        (None, Some(down)) => (down * others / liked, down),
        (None, None) => ((others / liked).max(1.0), (liked / others).max(1.0)),
    };
    kto::Settings { beta: args.beta, desirable_weight, undesirable_weight }
}

/// Lengths in tokens of the prompts with their completions in a file, without truncation.
fn lengths(path: &str, texts: &Texts) -> Result<Vec<usize>> {
    let all = read_feedback(Path::new(path)).context("feedback")?;
    all.map(|one| {
        let one = one.context("feedback")?;
        length(&one.prompt, &one.completion, texts)
    })
    .collect()
}

fn in_groups<'i>(items: &[&'i FeedbackExample], tokens: usize) -> Vec<Vec<&'i FeedbackExample>> {
    let lengths: Vec<usize> = items.iter().map(|item| item.sequence.ids.len()).collect();
    let groups = micro_batches(&lengths, tokens);
    groups.into_iter().map(|g| g.into_iter().map(|i| items[i]).collect()).collect()
}

/// The summed log-probs of the predicted tokens of each sequence, in order, without a gradient.
fn sums(decoder: &Decoder, sequences: &[&Sequence], tokens: usize) -> Result<Vec<f64>> {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    let mut all = vec![0.0; sequences.len()];
    for group in micro_batches(&lengths, tokens) {
        let packed = PredictionBatch::new(&group.iter().map(|&i| sequences[i]).collect::<Vec<_>>());
        let logprobs = packed.scores_frozen(decoder, 1.0)?.logprobs.detach();
        let sums: Vec<f32> = sequence_sums_tensor(&logprobs, &packed.lengths)?.to_vec1()?;
        group.into_iter().zip(sums).for_each(|(i, sum)| all[i] = f64::from(sum));
    }
    Ok(all)
}

fn reference_point(decoder: &Decoder, batch: &[&FeedbackExample], tokens: usize) -> Result<f64> {
    let now = sums(decoder, &batch.iter().map(|item| &item.mismatched).collect::<Vec<_>>(), tokens)?;
    let then: Vec<f64> = batch.iter().map(|item| item.mismatched_reference).collect();
    Ok(kto::reference_point(&now, &then))
}

type Loss = (Tensor, Stats, Vec<f64>);

/// The loss, and log π − log π_ref of every completion, from log π of the completions.
fn loss(policy: &Tensor, items: &[&FeedbackExample], z0: f64, settings: &kto::Settings, total: f64) -> Result<Loss> {
    let reference: Vec<f32> = items.iter().map(|item| item.reference as f32).collect();
    let reference = Tensor::new(reference, policy.device())?;
    let liked: Vec<bool> = items.iter().map(|item| item.liked).collect();
    let ratios = (policy.detach() - &reference)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let (loss, stats) = kto::loss(policy, &reference, &liked, z0, settings, total)?;
    Ok((loss, stats, ratios))
}

/// Statistics of held-out completions, and how often log π − log π_ref of a liked completion is larger than that of
/// another one.
fn evaluate(
    now: &Decoder,
    items: &[FeedbackExample],
    settings: &kto::Settings,
    tokens: usize,
) -> Result<(Stats, Option<f64>)> {
    let all: Vec<&FeedbackExample> = items.iter().collect();
    let z0 = reference_point(now, &all, tokens)?;
    let (mut stats, mut liked, mut others) = (Stats::default(), Vec::new(), Vec::new());
    for group in in_groups(&all, tokens) {
        let sequences: Vec<&Sequence> = group.iter().map(|item| &item.sequence).collect();
        let own: Vec<f32> = sums(now, &sequences, tokens)?.into_iter().map(|sum| sum as f32).collect();
        let (_, part, ratios) = loss(&Tensor::new(own, &Device::Cpu)?, &group, z0, settings, 1.0)?;
        stats.merge(&part);
        for (item, ratio) in group.iter().zip(ratios) {
            if item.liked { &mut liked } else { &mut others }.push(ratio);
        }
    }
    Ok((stats, ranked_above(&liked, &others)))
}
