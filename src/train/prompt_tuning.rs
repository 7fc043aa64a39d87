//! Prompt tuning (arXiv 2104.08691): trains vectors that precede the input embeddings of a frozen model. The vectors
//! can first be pre-trained on unlabelled text (PPT, arXiv 2109.04332).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{PromptTuningArgs, parse_for_run};
use super::checkpoint::weights_hash;
use super::optim::Params;
use super::run::{Run, TrainPlan, device, file_hash, report_phase};
use super::sft::{Demonstrations, backbone_and_output, groups};
use super::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use super::token_file::TokenFile;
use super::{Reporter, TrainOutcome, rng};
use crate::data::corpus::TextFiles;
use crate::data::dedup::Dedup;
use crate::data::documents::Cut;
use crate::data::{content_hash, read_demonstrations, split_of};
use crate::domain::{Split, hash};
use crate::model::adapters::soft_prompt::{SOFT_PROMPT, SoftPrompt, SoftPromptInfo};
use crate::model::{self, Decoder, Loaded, PackedBatch, Purpose};
use crate::objective::{Stats, causal_lm};
use crate::prompt::Texts;

/// The state in a checkpoint: the base model of the vectors.
#[derive(Serialize, Deserialize)]
struct PromptTuningState {
    base_sha256: String,
}

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: PromptTuningArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let loaded = model::load(Path::new(&common.model), &device(&common)?).context("model")?;
    report_phase(reporter, "preparing");
    let texts = Texts::new(&loaded)?;
    let positions = loaded.config.max_positions.saturating_sub(args.n_tokens);
    ensure!(positions >= 2, "n_tokens: the model has {} positions", loaded.config.max_positions);
    let given = common.max_length.map(|n| n - args.n_tokens);
    let length = super::fit::length(given, positions, || super::sft::lengths_of_file(&args.demonstrations, &texts))?;
    let max_length = length.tokens;
    let tokens = TokenFile::new(Path::new(&common.output_dir));
    let data = Demonstrations::read(&args.demonstrations, &texts, max_length, args.heldout_fraction, tokens)?;
    let choices = Choices::read(&args.demonstrations, &texts, max_length, args.heldout_fraction)?;
    if data.train.is_empty() {
        let (heldout, reasons) = (data.heldout.len(), data.fit.reasons());
        bail!("demonstrations: none is left to train on ({heldout} are held out{reasons})");
    }
    let unlabelled = unlabelled(&args, &loaded, max_length)?;
    let base = backbone_and_output(&loaded);
    // Plain tensors instead of variables, so that they cannot change. They are not packed, because gradients must pass.
    let decoder = Decoder::new(&loaded.config, &base, Purpose::Train)?;
    let soft = Var::from_tensor(&start(&args, &loaded, &decoder)?)?;
    let params = Params::from([(SOFT_PROMPT.to_owned(), soft.clone())]);

    let ppt = if unlabelled.is_empty() { 0 } else { args.pretrain_steps };
    let mut files = BTreeMap::from([("demonstrations".to_owned(), file_hash(&args.demonstrations)?)]);
    for path in args.pretrain_texts.iter().flatten() {
        files.insert(format!("pretrain_texts {}", files.len()), file_hash(path)?);
    }
    let plan = TrainPlan {
        recipe: "prompt_tuning",
        args: &args,
        steps: ppt + args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: files,
        common,
    };
    let base_hash = weights_hash(&base)?;
    let mut run = Run::new(plan, reporter)?;
    length.report(&mut run);
    data.fit.report(&mut run);
    if let Some(state) = run.resume::<PromptTuningState>(&params)? {
        ensure!(state.base_sha256 == base_hash, "the checkpoint's vectors belong to another base model");
    }
    let state = PromptTuningState { base_sha256: base_hash };
    let before = loss(&decoder, &soft.as_detached_tensor(), &data.heldout, run.common.micro_batch_tokens)?;
    let zero_shot = choices.accuracy(&decoder, None, run.common.micro_batch_tokens)?;

    let (mut heldout, mut accuracy) = (None, None);
    while run.step < run.total {
        let pretraining = run.step < ppt;
        let from = if pretraining { &unlabelled } else { &data.train };
        let batch: Vec<&Sequence> =
            run.batch(from.len(), args.batch_size.min(from.len())).into_iter().map(|i| &from[i]).collect();
        let total: usize = batch.iter().map(|s| s.predicted()).sum();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let logprobs = logprobs(&decoder, &soft, &group)?;
            let (loss, part) = causal_lm::loss(&logprobs, total as f64)?;
            sum.add(&params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(group.iter().map(|s| s.ids.len() + args.n_tokens).sum());
        }
        let (grad_norm, learning_rate) = run.update(&params, &sum.grads)?;
        run.step += 1;
        let name = |name: &'static str| if pretraining { "pretrain_loss" } else { name };
        let named = stats.means().map(|(n, v)| (name(n), v)).collect::<Vec<_>>();
        run.metrics(named.into_iter().chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress(if pretraining { "pretrain" } else { "train" });
        if !pretraining && run.due(run.common.eval_every) {
            heldout = loss(&decoder, &soft.as_detached_tensor(), &data.heldout, run.common.micro_batch_tokens)?;
            accuracy = choices.accuracy(&decoder, Some(&soft.as_detached_tensor()), run.common.micro_batch_tokens)?;
            run.metrics(heldout.map(|loss| ("heldout_loss", loss)));
            run.metrics(accuracy.map(|share| ("heldout_accuracy", share)));
        }
        if let Some(outcome) = run.pause(&params, &state)? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let after = weights_hash(&base)?;
    ensure!(after == state.base_sha256, "the base model's weights changed during prompt tuning");
    let info = SoftPromptInfo {
        base_model: run.common.model.clone(),
        base_sha256: files_sha256(&loaded)?,
        n_tokens: args.n_tokens,
        hidden_size: loaded.config.hidden_size,
    };
    let out = Path::new(&run.common.output_dir);
    let metrics = json!({
        "heldout_loss": heldout, "heldout_loss_before": before, "train_demonstrations": data.train.len(),
        "heldout_accuracy": accuracy, "heldout_accuracy_without": zero_shot, "heldout_choices": choices.cases.len(),
        "n_tokens": args.n_tokens, "base_sha256": info.base_sha256,
    });
    SoftPrompt { info, vectors: soft.as_detached_tensor() }.save(out).context("output_dir")?;
    let about = json!({"kind": "prompt_adapter", "recipe": "prompt_tuning", "parent": run.common.model,
                       "seed": run.common.seed, "metrics": metrics});
    std::fs::write(out.join("instructd.json"), serde_json::to_vec_pretty(&about)?).context("output_dir")?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// Held-out prompts whose answer is one of a few, for an accuracy: whether the right answer is the most likely one.
struct Choices {
    /// Each prompt with every answer, and the index of the right one.
    cases: Vec<(Vec<Sequence>, usize)>,
}

impl Choices {
    /// Maximum number of different answers.
    const MAX: usize = 20;

    fn read(path: &str, texts: &Texts, max_length: usize, heldout_fraction: f64) -> Result<Self> {
        let read = || read_demonstrations(Path::new(path)).context("demonstrations");
        let mut answers = BTreeSet::new();
        for written in read()? {
            answers.insert(written.context("demonstrations")?.completion);
            if answers.len() > Self::MAX {
                break;
            }
        }
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let mut cases = Vec::new();
        if !(2..=Self::MAX).contains(&answers.len()) {
            return Ok(Self { cases });
        }
        for written in read()? {
            let written = written.context("demonstrations")?;
            if split_of(&content_hash(&written.prompt.messages()), heldout_fraction) == Split::Train {
                continue;
            }
            let right = answers.partition_point(|answer| *answer < written.completion.as_str());
            let encoded = texts.answers(&written.prompt, &answers, max_length)?;
            if encoded.cut[right] {
                // Also left out of the held-out demonstrations, and counted there.
                continue;
            }
            cases.push((
                encoded.sequences.into_iter().map(|(ids, start)| Sequence { ids: ids.into(), start }).collect(),
                right,
            ));
        }
        Ok(Self { cases })
    }

    /// Share of cases in which the right answer is the most likely one; `None` without cases.
    fn accuracy(&self, decoder: &Decoder, soft: Option<&Tensor>, max_tokens: usize) -> Result<Option<f64>> {
        let all: Vec<&Sequence> = self.cases.iter().flat_map(|(answers, _)| answers).collect();
        let lengths: Vec<usize> = all.iter().map(|s| s.ids.len()).collect();
        let mut sums = vec![0f64; all.len()];
        for part in micro_batches(&lengths, max_tokens) {
            let group: Vec<&Sequence> = part.iter().map(|&i| all[i]).collect();
            let values: Vec<f32> = match soft {
                Some(soft) => logprobs(decoder, soft, &group)?.to_vec1()?,
                None => {
                    let picked = PredictionBatch::new(&group);
                    picked.logprobs(decoder, &picked.hidden(decoder)?, 1.0)?.logprobs.to_vec1()?
                }
            };
            let mut rest = values.as_slice();
            for (&i, sequence) in part.iter().zip(&group) {
                let (own, others) = rest.split_at(sequence.predicted());
                sums[i] = own.iter().map(|l| f64::from(*l)).sum();
                rest = others;
            }
        }
        let mut rest = sums.as_slice();
        let mut hits = 0;
        for (answers, right) in &self.cases {
            let (own, others) = rest.split_at(answers.len());
            let best = (0..own.len()).max_by(|a, b| own[*a].total_cmp(&own[*b]));
            hits += usize::from(best == Some(*right));
            rest = others;
        }
        Ok((!self.cases.is_empty()).then(|| hits as f64 / self.cases.len() as f64))
    }
}

/// Log-probs of the predicted tokens of `group`, with the soft prompt before each sequence.
fn logprobs(decoder: &Decoder, soft: &Tensor, group: &[&Sequence]) -> Result<Tensor> {
    let ids: Vec<&[u32]> = group.iter().map(|s| &*s.ids).collect();
    let (batch, n) = (PackedBatch::new(&ids), soft.dim(0)?);
    let hidden = decoder.forward_soft(soft, &batch)?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (i, (sequence, &offset)) in group.iter().zip(&batch.offsets).enumerate() {
        let first = offset + (i + 1) * n;
        rows.extend((sequence.start..sequence.ids.len()).map(|t| (first + t - 1) as u32));
        targets.extend_from_slice(&sequence.ids[sequence.start..]);
    }
    let picked = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
    Ok(decoder.token_logprobs(&picked, &targets, 1.0)?.logprobs)
}

/// Mean −log p per predicted token, in nats; `None` without sequences.
fn loss(decoder: &Decoder, soft: &Tensor, sequences: &[Sequence], max_tokens: usize) -> Result<Option<f64>> {
    let mut stats = Stats::default();
    for group in groups(&sequences.iter().collect::<Vec<_>>(), max_tokens) {
        stats.merge(&causal_lm::loss(&logprobs(decoder, soft, &group)?, 1.0)?.1);
    }
    Ok(stats.mean("loss"))
}

/// Blocks of unlabelled text, every token of which is predicted.
fn unlabelled(args: &PromptTuningArgs, loaded: &Loaded, max_length: usize) -> Result<Vec<Sequence>> {
    let Some(paths) = &args.pretrain_texts else { return Ok(Vec::new()) };
    let files = TextFiles {
        paths: paths.iter().map(PathBuf::from).collect(),
        cut: Cut::Paragraph,
        field: "text".to_owned(),
        dedup: Dedup::Exact,
        heldout_fraction: 0.0,
    };
    let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
    let corpus = files.read(tokenizer, None, None).context("pretrain_texts")?;
    // The soft prompt predicts the first token.
    let blocks = (0..corpus.train.n_blocks(max_length)).flat_map(|b| corpus.train.block(b, max_length));
    Ok(blocks.map(|ids| Sequence { ids: ids.to_vec().into(), start: 0 }).collect())
}

/// The initial vectors: the embeddings of the given words, or of random ordinary tokens.
fn start(args: &PromptTuningArgs, loaded: &Loaded, decoder: &Decoder) -> Result<Tensor> {
    let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
    let ids: Vec<u32> = match &args.init_text {
        Some(text) => {
            let words = tokenizer.encode(text, false, false)?;
            ensure!(!words.is_empty(), "init_text: it has no tokens");
            words.into_iter().cycle().take(args.n_tokens).collect()
        }
        None => {
            let mut rng = rng::rng(args.seed, rng::Stream::SoftPrompt, 0);
            let vocab = loaded.config.vocab_size.min(tokenizer.vocab_size());
            let mut ids = Vec::new();
            // Bounded, because a vocabulary may consist of special tokens.
            for _ in 0..args.n_tokens * 100 {
                let id = ((rng::uniform(&mut rng) * vocab as f64) as u32).min(vocab.saturating_sub(1) as u32);
                if ids.len() < args.n_tokens && !tokenizer.is_special(id) {
                    ids.push(id);
                }
            }
            ensure!(ids.len() == args.n_tokens, "model: its vocabulary has no ordinary token");
            ids
        }
    };
    Ok(decoder.word_vectors(&ids)?.detach())
}

/// SHA-256 (hex) of the base model's weight files, in the order of their names.
fn files_sha256(loaded: &Loaded) -> Result<String> {
    let mut files: Box<dyn std::io::Read> = Box::new(std::io::empty());
    for path in &loaded.source.weight_files {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        files = Box::new(std::io::Read::chain(files, file));
    }
    Ok(hash::of_reader(&mut files)?.0)
}
