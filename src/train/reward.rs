//! Reward models from rankings, with the K-wise loss of InstructGPT (arXiv 2203.02155, equation 1). A completion is
//! scored at its end token (decoders) or at [CLS] (BERT-type encoders), by one head or an ensemble of heads on one
//! trunk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, Var};
use serde_json::{Value, json};

use super::args::{NormalizeOn, RewardArgs, parse_for_run};
use super::baselines::{Baseline, Baselines, HeldoutPair, doublings, per_doubling};
use super::fit::Fit;
use super::on_device::{attach, loading_device};
use super::optim::{Group, Params};
use super::ranked::Rankings;
use super::reward_heads::{RewardTrainer, WeightedSet, by_scale, head_shares, scales};
use super::run::{Run, TrainPlan, file_hash, load_base, report_phase};
use super::sft::Demonstrations;
use super::step::{Accumulator, Sequence};
use super::token_file::TokenFile;
use super::trainable::{Trainable, normal_init};
use super::{Reporter, TrainOutcome};
use crate::data::read_comparisons;
use crate::domain::{ByRating, RANKING};
use crate::model::heads::reward::{self, Part, SCORE, Scale, Scoring, below, headless, separator};
use crate::model::{Loaded, Trunk};
use crate::objective::Stats;
use crate::objective::preference::{LengthMetrics, PairMetrics, by_length, pair_metrics};
use crate::prompt::Texts;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: RewardArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let mut loaded = load_base(&common, &loading_device(&common)?)?;
    report_phase(reporter, "preparing");
    let texts = Texts::new(&loaded)?.with_reasoning(args.reasoning);
    let length = super::fit::length(common.max_length, loaded.config.max_positions, || {
        super::ranked::lengths(&args.comparisons, &texts)
    })?;
    let max_length = length.tokens;
    let parts = parts(&args);
    let by = by_dimension(&args)?;
    let tokens = TokenFile::new(Path::new(&common.output_dir));
    let data = Rankings::read(&args.comparisons, &texts, max_length, args.heldout_fraction, &by, tokens)?;
    for (index, by) in by.iter().enumerate() {
        if data.train.iter().all(|set| set.pairs_by(index, 0).is_empty()) {
            let (dimension, rubric) = (&by.dimension, &by.rubric);
            bail!("dimensions: no set to train on has different ratings on {dimension:?} of the rubric {rubric:?}");
        }
    }
    let (reference, reference_hash, reference_fit) = reference(&args, &texts, max_length)?;

    let mut backbone =
        Trainable::<Trunk>::for_run(&headless(&loaded.config), below(&loaded.config, &loaded.weights), &common)?
            .with_source(&loaded.source);
    let heads = args.heads.max(parts.len());
    let head = Var::from_tensor(&head(&loaded, heads, &parts, common.seed)?)?;
    loaded.weights.clear();
    let length_slopes = match args.length_control {
        true => Some(length_slopes(&data, heads, !by.is_empty(), head.device())?),
        false => None,
    };
    let own = [(SCORE.to_owned(), head.clone())].into_iter();
    let own = own.chain(length_slopes.iter().map(|slopes| (LENGTH.to_owned(), slopes.clone())));
    let params = backbone.params.clone().into_iter().chain(own).collect::<Params>();
    let trainer = RewardTrainer {
        separator: separator(&loaded),
        max_tokens: common.micro_batch_tokens,
        head: &head,
        by_dimension: !parts.is_empty(),
        length_slopes: length_slopes.as_ref(),
    };
    let baselines = Baselines::fit(&data.train);
    let mut hashes = BTreeMap::from([("comparisons".to_owned(), file_hash(&args.comparisons)?)]);
    hashes.extend(reference_hash);
    let plan = TrainPlan {
        recipe: "reward",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: hashes,
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    if length_slopes.is_some() {
        let lr_scale = LENGTH_RATE / run.common.learning_rate;
        run.optimizer.groups.insert(0, Group { contains: LENGTH.to_owned(), min_rank: 0, lr_scale, weight_decay: 0.0 });
    }
    if data.ties > 0 {
        run.warn(super::ranked::ties_left_out(data.ties));
    }
    length.report(&mut run);
    data.fit.report(&mut run);
    data.report.report(&mut run, data.agreement);
    for message in reference_fit.messages() {
        run.warn(format!("reference_demonstrations: {message}"));
    }
    if data.heldout.is_empty() {
        run.warn("no prompt is held out: there is no held-out accuracy".to_owned());
    }
    run.resume::<()>(&params)?;
    attach(&mut run, &mut backbone)?;

    let mut heldout = None;
    while run.step < run.total {
        let batch: Vec<WeightedSet<'_>> = run
            .batch(data.train.len(), args.batch_size)
            .into_iter()
            .map(|i| {
                let shares = match parts.is_empty() {
                    true => head_shares(args.heads, run.common.seed, i as u64),
                    false => vec![1.0; heads],
                };
                WeightedSet { set: &data.train[i], shares }
            })
            .collect();
        let total_sets = trainer.total_sets(&batch)?;
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in trainer.groups(&batch) {
            stats.merge(&trainer.learn(backbone.model(), &params, &group, args.margin, &total_sets, &mut sum)?);
            run.meter.add_tokens(group.iter().map(|item| item.set.tokens()).sum());
        }
        let (grad_norm, learning_rate) = run.update(&params, &sum.grads)?;
        run.step += 1;
        let named =
            stats.means().map(|(name, value)| (if name == "accuracy" { "train_accuracy" } else { name }, value));
        run.metrics(named.chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) {
            run.progress("evaluate");
            let copy = backbone.host_copy()?;
            heldout = evaluate(&trainer, backbone.scorer(copy.as_ref()), &data, &by, &baselines)?;
            if let Some(h) = &heldout {
                report(&mut run, h);
            }
        }
        if let Some(outcome) = run.pause(&params, &())? {
            return Ok(outcome);
        }
    }

    let copy = backbone.host_copy()?;
    let trunk = backbone.scorer(copy.as_ref());
    let scoring = match args.normalize {
        true => {
            let reference: Vec<&Sequence> = match &reference {
                Some(sequences) => sequences.iter().collect(),
                None => data.train.iter().take(REFERENCE_SETS).flat_map(|set| &set.sequences).collect(),
            };
            scales(&trainer.raw(trunk, &reference)?, parts)
        }
        false => Scoring { scales: vec![Scale { gain: 1.0, bias: 0.0 }; args.heads], parts },
    };
    for baseline in heldout.iter().flat_map(|h| &h.baselines).filter(|baseline| baseline.low <= 0.0) {
        run.find(not_better(baseline, heldout.as_ref().map_or(0, |h| h.pairs.pairs)));
    }
    run.progress("saving");
    let sets =
        json!({"train": data.train.len(), "heldout": data.heldout.len(), "ties": data.ties, "fit": data.fit.json()});
    let mut metrics = json!({
        "heldout": heldout.as_ref().map(|h| h.pairs),
        "heldout_accuracy": heldout.as_ref().map(|h| h.pairs.accuracy),
        "by_length": heldout.as_ref().map(|h| h.lengths),
        "labeler_agreement": data.agreement,
        "heads": heads,
        "sets": sets,
    });
    if let Some(found) = &heldout {
        metrics["baselines"] = json!(found.baselines);
    }
    if let Some(slopes) = &length_slopes {
        metrics["length_slopes"] = json!(slopes.to_vec1::<f32>()?);
    }
    if let Some(found) = heldout.as_ref().filter(|_| !by.is_empty()) {
        metrics["dimensions"] = json!(found.dimensions);
    }
    let mut weights = backbone.published()?;
    weights.insert(SCORE.to_owned(), head.as_detached_tensor());
    let (gain, bias) = (by_scale(&scoring.scales, |s| s.gain), by_scale(&scoring.scales, |s| s.bias));
    let data = json!({"comparisons": file_hash(&args.comparisons)?});
    let mut reward = json!({"gain": gain, "bias": bias, "max_length": max_length});
    if !args.reasoning.is_kept() {
        reward["reasoning"] = json!(args.reasoning);
    }
    if let Some(first) = by.first() {
        reward["parts"] = json!(scoring.parts);
        reward["rubric"] = json!(first.rubric);
    }
    let about = json!({"data": data, "reward": reward, "metrics": metrics});
    super::output::save(&run.common, "reward", "reward", &loaded, &weights, about)?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// The parameter with the slopes of the length. It is no part of the published model.
const LENGTH: &str = "length_slopes";
/// Its learning rate. The slopes follow what the scores leave to the length within tens of steps, faster than the trunk
/// can learn the length.
const LENGTH_RATE: f64 = 0.1;

/// For each head, what the length alone explains: the log-odds of being preferred per doubling, `[heads]`.
fn length_slopes(data: &Rankings, heads: usize, by_dimension: bool, device: &Device) -> Result<Var> {
    let slope = |h: usize| per_doubling(&data.train, h.checked_sub(1).filter(|_| by_dimension)) as f32;
    Ok(Var::from_tensor(&Tensor::new((0..heads).map(slope).collect::<Vec<f32>>(), device)?)?)
}

/// The heads with their weights, that of the ranking first; empty without `dimensions`.
fn parts(args: &RewardArgs) -> Vec<Part> {
    let Some(weights) = &args.dimensions else { return Vec::new() };
    let ranking = (RANKING, weights.get(RANKING).copied().unwrap_or(1.0));
    let others = weights.iter().map(|(name, weight)| (name.as_str(), *weight)).filter(|(name, _)| *name != RANKING);
    std::iter::once(ranking).chain(others).map(|(name, weight)| Part { name: name.to_owned(), weight }).collect()
}

/// The rankings by dimension from which heads other than that of the ranking learn. A higher rating is better for a
/// head; its weight says what that means for the score.
///
/// # Errors
/// When the arguments name no rubric and the file has ratings by none or several.
fn by_dimension(args: &RewardArgs) -> Result<Vec<ByRating>> {
    let Some(weights) = &args.dimensions else { return Ok(Vec::new()) };
    let rubric = match &args.rubric {
        Some(rubric) => rubric.clone(),
        None => {
            let mut found = BTreeSet::new();
            for line in read_comparisons(Path::new(&args.comparisons)).context("comparisons")? {
                let line = line.context("comparisons")?;
                if line.completions.iter().any(|c| !c.ratings.is_empty()) {
                    found.extend(line.rubric);
                }
            }
            match found.len() {
                0 => bail!("dimensions: no comparison has ratings by a rubric"),
                1 => found.into_iter().next().unwrap_or_default(),
                n => {
                    let known: Vec<String> = found.into_iter().collect();
                    bail!("rubric: the comparisons have ratings by {n} rubrics ({}); name one", known.join(", "))
                }
            }
        }
    };
    let names = weights.keys().filter(|name| *name != RANKING);
    let by =
        |dimension: &String| ByRating { rubric: rubric.clone(), dimension: dimension.clone(), lower_is_better: false };
    Ok(names.map(by).collect())
}

/// About two hundred scores determine mean and variance to a few percent.
const REFERENCE_SETS: usize = 64;
const REFERENCE_DEMONSTRATIONS: usize = 256;

type Reference = (Option<Vec<Sequence>>, Option<(String, String)>, Fit);

/// The demonstrations whose scores are normalised to mean 0 and variance 1, the hash of their file, and what did not
/// fit.
fn reference(args: &RewardArgs, texts: &Texts, max_length: usize) -> Result<Reference> {
    let Some(path) =
        args.reference_demonstrations.as_ref().filter(|_| args.normalize_on == NormalizeOn::Demonstrations)
    else {
        return Ok((None, None, Fit::default()));
    };
    let tokens = TokenFile::new(Path::new(&args.output_dir));
    let Demonstrations { train: mut found, fit, .. } =
        Demonstrations::read(path, texts, max_length, 0.0, tokens).context("reference_demonstrations")?;
    if found.len() < 2 {
        bail!("reference_demonstrations: a mean and a variance need at least two, there are {}", found.len());
    }
    found.truncate(REFERENCE_DEMONSTRATIONS);
    Ok((Some(found), Some(("reference_demonstrations".to_owned(), file_hash(path)?)), fit))
}

/// The heads of the starting reward model, or new ones from Normal(0, 1/√(d+1)), as in arXiv 1909.08593 and 2009.01325.
fn head(loaded: &Loaded, heads: usize, parts: &[Part], seed: u64) -> Result<Tensor> {
    let d = loaded.config.hidden_size;
    if loaded.weights.contains_key(SCORE) {
        let names = |parts: &[Part]| parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>();
        let (before, now) = (names(&reward::head(loaded)?.1.parts), names(parts));
        if before != now {
            bail!("dimensions: the model has heads for {before:?}, not for {now:?}; start from another model");
        }
    }
    match loaded.weights.get(SCORE) {
        Some(head) if head.dims() == [heads, d] => Ok(head.clone()),
        Some(head) => bail!("heads: the model's {SCORE} has shape {:?}, not [{heads}, {d}]", head.dims()),
        None => {
            let device = loaded.weights.values().next().map_or(candle_core::Device::Cpu, |t| t.device().clone());
            Ok(normal_init((heads, d), 1.0 / ((d + 1) as f64).sqrt(), seed, &device)?)
        }
    }
}

struct Heldout {
    pairs: PairMetrics,
    lengths: LengthMetrics,
    /// Mean over pairs of the standard deviation of the heads' score differences; 0 for heads of dimensions.
    spread: f64,
    /// Of each dimension, the pairs of different ratings, by its head.
    dimensions: BTreeMap<String, PairMetrics>,
    baselines: Vec<Baseline>,
}

/// A sentence on a baseline that the model is not shown to exceed.
fn not_better(baseline: &Baseline, pairs: usize) -> String {
    let Baseline { name, accuracy, gain, low, high } = baseline;
    let what = match name.as_str() {
        "words" => "a bag of words",
        "shorter" => "preferring the shorter answer",
        _ => "preferring the longer answer",
    };
    format!(
        "On the {pairs} held-out pairs the model is not shown to be better than {what}, whose accuracy is {accuracy:.3} \
         (the model's less it: {gain:+.3}, 95 % interval {low:+.3} to {high:+.3})."
    )
}

/// Metrics of the held-out pairs, by the mean of an ensemble's heads, or by the ranking's head.
fn evaluate(
    trainer: &RewardTrainer<'_>,
    trunk: &Trunk,
    data: &Rankings,
    by: &[ByRating],
    baselines: &Baselines,
) -> Result<Option<Heldout>> {
    let (mut differences, mut lengths, mut spread) = (Vec::new(), Vec::new(), 0.0);
    let (mut compared, mut set) = (Vec::new(), 0);
    let mut of_dimensions = vec![Vec::new(); by.len()];
    let items: Vec<WeightedSet<'_>> = data.heldout.iter().map(|set| WeightedSet { set, shares: Vec::new() }).collect();
    for group in trainer.groups(&items) {
        let sequences: Vec<&Sequence> = group.iter().flat_map(|item| &item.set.sequences).collect();
        let raw = trainer.raw(trunk, &sequences)?;
        let mut first = 0;
        for item in &group {
            for pair in item.set.pairs(first, 0.0) {
                let (w, l) = (pair.winner as usize, pair.loser as usize);
                let members = if trainer.by_dimension { 1 } else { raw[w].len() };
                let by_head = raw[w].iter().zip(&raw[l]).take(members).map(|(a, b)| f64::from(a - b));
                let by_head: Vec<f64> = by_head.collect();
                let (mean, variance) = crate::objective::whiten::moments(&by_head);
                differences.push(mean);
                spread += variance.sqrt();
                let (winner, loser) = (sequences[w], sequences[l]);
                lengths.push(winner.predicted() as f64 - loser.predicted() as f64);
                let words = baselines.words_ahead(winner, loser);
                compared.push(HeldoutPair { set, model: mean, doublings: doublings(winner, loser), words });
            }
            set += 1;
            for (d, found) in of_dimensions.iter_mut().enumerate() {
                let pairs = item.set.pairs_by(d, first).into_iter();
                found.extend(pairs.map(|p| f64::from(raw[p.winner as usize][d + 1] - raw[p.loser as usize][d + 1])));
            }
            first += item.set.sequences.len();
        }
    }
    let named = by.iter().zip(&of_dimensions);
    let dimensions = named.filter_map(|(by, found)| Some((by.dimension.clone(), pair_metrics(found)?))).collect();
    Ok(pair_metrics(&differences).map(|pairs| Heldout {
        pairs,
        lengths: by_length(&differences, &lengths),
        spread: spread / pairs.pairs as f64,
        dimensions,
        baselines: baselines.compare(&compared),
    }))
}

fn report(run: &mut Run<'_>, heldout: &Heldout) {
    let m = heldout.pairs;
    run.metrics([("heldout_accuracy", m.accuracy), ("heldout_loss", m.loss), ("ece", m.ece)]);
    run.metrics([("heldout_pairs", m.pairs as f64)]);
    run.metrics([("heldout_margin", m.margin), ("heads_spread", heldout.spread)]);
    for (dimension, metrics) in &heldout.dimensions {
        run.metrics([(format!("heldout_accuracy_{dimension}").as_str(), metrics.accuracy)]);
    }
    for baseline in &heldout.baselines {
        let by = if baseline.name == "words" { "words" } else { "length" };
        run.metrics([(format!("heldout_accuracy_of_{by}").as_str(), baseline.accuracy)]);
    }
    let lengths = heldout.lengths;
    let named = [
        ("heldout_accuracy_longer", lengths.longer),
        ("heldout_accuracy_same_length", lengths.same),
        ("heldout_accuracy_shorter", lengths.shorter),
    ];
    run.metrics(named.into_iter().filter(|(_, share)| share.pairs > 0).map(|(name, share)| (name, share.accuracy)));
}
