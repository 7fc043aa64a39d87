//! Supervised fine-tuning: minimises the mean −log p of response tokens, including the end token, given their prompts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::args::{Common, SftArgs, parse_for_run};
use super::data_report::DataReport;
use super::fit::{self, Fit};
use super::on_device::{attach, loading_device};
use super::run::{Run, TrainPlan, file_hash, load_base, report_phase};
use super::samples::{SamplePrompts, Samples};
use super::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use super::token_file::TokenFile;
use super::trainable::Trainable;
use super::{Reporter, TrainOutcome, rng};
use crate::data::{DataError, PromptInput, Written, content_hash, mixture, read_demonstrations, split_of};
use crate::domain::Split;
use crate::model::{self, Decoder};
use crate::objective::{Stats, causal_lm};
use crate::prompt::Texts;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: SftArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let mut loaded = load_base(&common, &loading_device(&common)?)?;
    report_phase(reporter, "preparing");
    let texts = Texts::new(&loaded)?.with_reasoning(args.reasoning);
    let source = match &args.mixture {
        None => Source::File(&args.demonstrations),
        Some(mixture) => Source::Mixture(read_mixture(mixture, &common)?),
    };
    let data_hash = source.hash()?;
    let length = fit::length(common.max_length, loaded.config.max_positions, || source.lengths(&texts))?;
    let max_length = length.tokens;
    let tokens = TokenFile::new(Path::new(&common.output_dir));
    let data = match source {
        Source::File(path) => Demonstrations::read(path, &texts, max_length, args.heldout_fraction, tokens)?,
        Source::Mixture(rows) => {
            Demonstrations::new(rows.demonstrations(), &texts, max_length, args.heldout_fraction, tokens)?
        }
    };
    if data.train.is_empty() {
        let (heldout, reasons) = (data.heldout.len(), data.fit.reasons());
        bail!("demonstrations: none is left to train on ({heldout} are held out{reasons})");
    }

    let mut policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &common)?
        .with_source(&loaded.source);
    loaded.weights.clear();
    let plan = TrainPlan {
        recipe: "sft",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("demonstrations".to_owned(), data_hash)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    length.report(&mut run);
    data.fit.report(&mut run);
    data.report.report(&mut run, None);
    run.resume::<()>(&policy.params)?;
    attach(&mut run, &mut policy)?;
    let samples = Samples::new(&texts, data.prompts, run.common.seed);

    let mut heldout = None;
    while run.step < run.total {
        let batch: Vec<&Sequence> =
            run.batch(data.train.len(), args.batch_size).into_iter().map(|i| &data.train[i]).collect();
        let total: usize = batch.iter().map(|s| s.predicted()).sum();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let packed = PredictionBatch::new(&group);
            let (loss, part) = causal_lm::loss(&packed.scores(policy.decoder(), 1.0)?.logprobs, total as f64)?;
            sum.add(&policy.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(packed.batch.len());
        }
        let (grad_norm, learning_rate) = run.update(&policy.params, &sum.grads)?;
        run.step += 1;
        run.metrics(stats.means().chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) || run.checkpoint_due() {
            let now = policy.frozen_decoder()?;
            if run.due(run.common.eval_every) {
                heldout = nats_per_token(policy.scorer(Some(&now)), &data.heldout, run.common.micro_batch_tokens)?;
                run.metrics(heldout.map(|loss| ("heldout_loss", loss)));
            }
            samples.write(&mut run, &now, max_length, None)?;
        }
        if let Some(outcome) = run.pause(&policy.params, &())? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let metrics = json!({"heldout_loss": heldout, "train_demonstrations": data.train.len(), "fit": data.fit.json()});
    super::output::save_adapter(&run.common, &policy)?;
    super::output::save(&run.common, "policy", "sft", &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// Where demonstrations come from.
enum Source<'a> {
    /// A file, which is read record by record.
    File(&'a str),
    /// The rows that were drawn from the tasks of a mixture.
    Mixture(mixture::Rows),
}

impl Source<'_> {
    /// The hash of the file; of the rows of a mixture, because it names other files.
    fn hash(&self) -> Result<String> {
        match self {
            Self::File(path) => file_hash(path),
            Self::Mixture(rows) => hash_of(rows),
        }
    }

    fn lengths(&self, texts: &Texts) -> Result<Vec<usize>> {
        match self {
            Self::File(path) => lengths_of_file(path, texts),
            Self::Mixture(rows) => lengths(rows.demonstrations(), texts),
        }
    }
}

/// The SHA-256 of the demonstrations as a JSON list.
fn hash_of(rows: &mixture::Rows) -> Result<String> {
    let mut hash = Sha256::new_with_prefix("[");
    for (i, written) in rows.demonstrations().enumerate() {
        hash.update(if i > 0 { "," } else { "" });
        hash.update(serde_json::to_vec(&written?)?);
    }
    hash.update("]");
    Ok(hex::encode(hash.finalize()))
}

/// Length in tokens of a prompt with its answer, without truncation.
pub(super) fn length(prompt: &PromptInput, completion: &str, texts: &Texts) -> Result<usize> {
    let answers = texts.answers(prompt, &[completion], usize::MAX)?;
    Ok(answers.sequences.iter().map(|(ids, _)| ids.len()).sum())
}

fn lengths(all: impl Iterator<Item = Result<Written, DataError>>, texts: &Texts) -> Result<Vec<usize>> {
    let one = |written: Result<Written, DataError>| {
        let written = written.context("demonstrations")?;
        length(&written.prompt, &written.completion, texts)
    };
    all.map(one).collect()
}

/// Lengths in tokens of the prompts with their answers in a file of demonstrations, without truncation.
pub(super) fn lengths_of_file(path: &str, texts: &Texts) -> Result<Vec<usize>> {
    let all = read_demonstrations(Path::new(path)).context("demonstrations")?;
    lengths(all, texts)
}

/// Demonstrations as sequences of which the response is predicted.
pub(super) struct Demonstrations {
    pub train: Vec<Sequence>,
    pub heldout: Vec<Sequence>,
    /// Prompts for samples, held-out ones first.
    pub prompts: Vec<PromptInput>,
    /// Counts of what did not fit. Answers that do not fit with their end token are left out.
    pub fit: Fit,
    /// Counts of what is learned, for the run's log and the model card.
    pub report: DataReport,
}

impl Demonstrations {
    pub(super) fn read(
        path: &str,
        texts: &Texts,
        max_length: usize,
        heldout_fraction: f64,
        tokens: TokenFile,
    ) -> Result<Self> {
        let written = read_demonstrations(Path::new(path)).context("demonstrations")?;
        Self::new(written, texts, max_length, heldout_fraction, tokens)
    }

    fn new(
        written: impl Iterator<Item = Result<Written, DataError>>,
        texts: &Texts,
        max_length: usize,
        heldout_fraction: f64,
        mut tokens: TokenFile,
    ) -> Result<Self> {
        let fit = Fit::new(max_length);
        let (train, heldout, prompts, report) = (Vec::new(), Vec::new(), Vec::new(), DataReport::default());
        let mut found = Self { train, heldout, prompts, fit, report };
        let mut prompts = SamplePrompts::default();
        for written in written {
            let written = written.context("demonstrations")?;
            found.fit.answers += 1;
            if texts.is_only_reasoning(&written.completion) {
                found.fit.answers_only_reasoning += 1;
                continue;
            }
            let mut answers = texts.answers(&written.prompt, &[&written.completion], max_length)?;
            if answers.cut[0] {
                found.fit.answers_left_out += 1;
                continue;
            }
            found.fit.note_prompt(answers.prompt_cut);
            let Some((ids, start)) = answers.sequences.pop() else { continue };
            let mut sequence = Sequence { ids: ids.into(), start };
            // By prompt, so that all answers to a prompt are on the same side of the split.
            let side = split_of(&content_hash(&written.prompt.messages()), heldout_fraction);
            found.report.note_answer(&written.prompt, &written.completion, sequence.predicted(), side);
            tokens.keep(&mut sequence.ids)?;
            prompts.note_other(&written.prompt, side);
            if side == Split::Train { &mut found.train } else { &mut found.heldout }.push(sequence);
        }
        tokens.finish()?;
        found.prompts = prompts.all();
        found.prompts.dedup();
        Ok(found)
    }
}

/// The demonstrations of a mixture. Rows and templates are drawn with the seed.
fn read_mixture(path: &str, common: &Common) -> Result<mixture::Rows> {
    let seed = common.seed;
    let order = |task: usize, n| rng::permutation(n, &mut rng::rng(seed, rng::Stream::Mixture, task as u64));
    let choice = |task: usize, k: usize, n: usize| {
        let draw = rng::derive(seed, rng::Stream::Mixture, ((task as u64 + 1) << 32) + k as u64);
        (draw % n as u64) as usize
    };
    mixture::read(Path::new(path), Path::new(&common.output_dir), order, choice).context("mixture")
}

/// The tensors of the language model: all except the heads of other tasks.
pub(super) fn backbone_and_output(loaded: &model::Loaded) -> model::Weights {
    let other = |name: &str| name == model::heads::reward::SCORE || name.starts_with("classifier.");
    loaded.weights.iter().filter(|(name, _)| !other(name)).map(|(n, t)| (n.clone(), t.clone())).collect()
}

pub(super) fn groups<'s>(sequences: &[&'s Sequence], max_tokens: usize) -> Vec<Vec<&'s Sequence>> {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| sequences[i]).collect()).collect()
}

/// Mean −log p per predicted token, in nats; `None` without sequences. `logprobs` are those of the targets.
pub(super) fn nats_per_token(decoder: &Decoder, sequences: &[Sequence], max_tokens: usize) -> Result<Option<f64>> {
    let mut stats = Stats::default();
    let all: Vec<&Sequence> = sequences.iter().collect();
    for group in groups(&all, max_tokens) {
        let logprobs = PredictionBatch::new(&group).scores_frozen(decoder, 1.0)?.logprobs;
        stats.merge(&causal_lm::loss(&logprobs, 1.0)?.1);
    }
    Ok(stats.mean("loss"))
}
