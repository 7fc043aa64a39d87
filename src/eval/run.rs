//! `instructd eval --args FILE`: perplexity of a policy on text, or accuracy of a reward model on rankings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::choice::{self, ChoiceArgs, ChoiceTable};
use super::classify::{self, Classified};
use super::place::{Loader, Place};
use crate::data::{self, corpus};
use crate::domain::{RewardScore, Split};
use crate::model::heads::reward::RewardModel;
use crate::model::{Loaded, PackedBatch};
use crate::objective::preference::{LengthMetrics, PairMetrics, by_length, pair_metrics};
use crate::prompt::Texts;
use crate::train::fit::Fit;
use crate::train::ranked::encode;

/// Arguments of an evaluation.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum EvalArgs {
    /// Next-token loss on a text file, or on JSONL with a `text` per line.
    Perplexity {
        model: PathBuf,
        text: PathBuf,
        #[serde(default = "default_length")]
        max_length: usize,
    },
    /// Accuracy of systems on a labelled file, zero- to few-shot, in one table.
    Choice(Box<ChoiceArgs>),
    /// Accuracy of a classifier on labelled texts (JSONL or CSV).
    Classifier {
        model: PathBuf,
        labelled: PathBuf,
        #[serde(default = "default_text_field")]
        text_field: String,
        #[serde(default = "default_label_field")]
        label_field: String,
        /// Only the first rows.
        limit: Option<usize>,
    },
    /// Pair accuracy on ranked sets (comparisons JSONL).
    Reward {
        model: PathBuf,
        comparisons: PathBuf,
        /// `train` or `heldout` (by prompt); all sets when absent.
        split: Option<Split>,
        #[serde(default = "default_heldout")]
        heldout_fraction: f64,
        #[serde(default = "default_length")]
        max_length: usize,
    },
    /// The reward model's score of each line of a JSONL of `{"prompt", "completion"}`.
    Scores {
        model: PathBuf,
        completions: PathBuf,
        #[serde(default = "default_length")]
        max_length: usize,
    },
}

fn default_text_field() -> String {
    "text".to_owned()
}

fn default_label_field() -> String {
    "label".to_owned()
}

fn default_length() -> usize {
    1024
}

fn default_heldout() -> f64 {
    0.1
}

/// The measured figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EvalResult {
    Perplexity { tokens: usize, bytes: usize, loss: f64, perplexity: f64, bits_per_byte: f64 },
    Reward { sets: usize, metrics: PairMetrics, by_length: LengthMetrics, fit: serde_json::Value },
    Choice(ChoiceTable),
    Classifier(Classified),
    Scores { scores: Vec<RewardScore> },
}

/// Tokens per forward pass.
const BATCH_TOKENS: usize = 2048;

/// Evaluates on the CPU. See [`run_at`].
///
/// # Errors
/// Those of [`run_at`].
pub fn run(args: &EvalArgs) -> Result<EvalResult> {
    run_at(args, Place::default())
}

/// Evaluates with models that are computed at `place`.
///
/// # Errors
/// Files that cannot be read, models of the wrong kind, files without usable data; a device that is missing, or that
/// cannot compute a model.
pub fn run_at(args: &EvalArgs, place: Place) -> Result<EvalResult> {
    let loader = &Loader::new(place)?;
    match args {
        EvalArgs::Perplexity { model, text, max_length } => perplexity(loader, model, text, *max_length),
        EvalArgs::Choice(args) => Ok(EvalResult::Choice(choice::run(args, loader)?)),
        EvalArgs::Classifier { model, labelled, text_field, label_field, limit } => {
            let classifier = loader.classifier(model)?;
            Ok(EvalResult::Classifier(classify::run(&classifier, labelled, text_field, label_field, *limit)?))
        }
        EvalArgs::Reward { model, comparisons, split, heldout_fraction, max_length } => {
            reward(loader.reward(model)?, comparisons, *split, *heldout_fraction, *max_length)
        }
        EvalArgs::Scores { model, completions, max_length } => scores(loader.reward(model)?, completions, *max_length),
    }
}

/// Documents are cut into windows of `max_length` tokens; each window's first token is context only.
fn perplexity(loader: &Loader, path: &Path, text: &Path, max_length: usize) -> Result<EvalResult> {
    let (decoder, loaded) = loader.decoder(path)?;
    let tokenizer = loaded.tokenizer.clone().context("the model has no tokenizer.json")?;
    let length = max_length.min(loaded.config.max_positions);
    ensure!(length >= 2, "max_length must be at least 2");
    let (mut bytes, mut windows) = (0, Vec::new());
    for document in corpus::documents(text)? {
        let ids = tokenizer.encode(&document, false, false)?;
        bytes += document.len();
        // Windows overlap by one token, so that every token but a document's first is predicted once.
        let mut start = 0;
        while start + 1 < ids.len() {
            let end = (start + length).min(ids.len());
            windows.push(ids[start..end].to_vec());
            start = end - 1;
        }
    }
    ensure!(!windows.is_empty(), "{} contains no text of at least two tokens", text.display());
    let (mut total, mut tokens) = (0.0f64, 0usize);
    for batch in windows.chunks((BATCH_TOKENS / length).max(1)) {
        let packed = PackedBatch::new(batch);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (window, offset) in batch.iter().zip(&packed.offsets) {
            rows.extend((0..window.len() - 1).map(|i| (offset + i) as u32));
            targets.extend_from_slice(&window[1..]);
        }
        let logprobs = decoder.logprobs_at(&packed, &rows, &targets)?.to_vec1::<f32>()?;
        total -= logprobs.iter().map(|l| f64::from(*l)).sum::<f64>();
        tokens += targets.len();
    }
    let loss = total / tokens as f64;
    let bits_per_byte = total / std::f64::consts::LN_2 / bytes as f64;
    Ok(EvalResult::Perplexity { tokens, bytes, loss, perplexity: loss.exp(), bits_per_byte })
}

fn reward(
    (model, loaded): (RewardModel, Loaded),
    comparisons: &Path,
    split: Option<Split>,
    heldout: f64,
    max_length: usize,
) -> Result<EvalResult> {
    let texts = Texts::for_scores(&loaded)?;
    let length = max_length.min(loaded.config.max_positions);
    let (mut differences, mut lengths, mut fit) = (Vec::new(), Vec::new(), Fit::new(length));
    let mut sets = 0;
    for set in data::read_comparisons(comparisons)? {
        let set = set?;
        if split.is_some_and(|side| set.side(heldout) != side) {
            continue;
        }
        sets += 1;
        let encoded = encode(&set, &texts, length, &mut fit)?;
        let pairs = encoded.pairs(0, 0.0);
        if pairs.is_empty() {
            fit.equal_sets += usize::from(encoded.equal_pairs() > 0);
            continue;
        }
        let ids: Vec<Vec<u32>> = encoded.sequences.iter().map(|s| s.ids.to_vec()).collect();
        let tokens = |i: u32| encoded.sequences[i as usize].predicted() as f64;
        let scores = model.score(&ids, BATCH_TOKENS)?;
        for pair in pairs {
            differences.push(scores[pair.winner as usize] - scores[pair.loser as usize]);
            lengths.push(tokens(pair.winner) - tokens(pair.loser));
        }
    }
    for message in fit.messages() {
        eprintln!("warning: {message}");
    }
    match pair_metrics(&differences) {
        Some(metrics) => {
            let by_length = by_length(&differences, &lengths);
            Ok(EvalResult::Reward { sets, metrics, by_length, fit: fit.json() })
        }
        None => bail!("{} contains no pair with a preference{}", comparisons.display(), fit.reasons()),
    }
}

/// Scores of written completions, in the order of the file.
fn scores((model, loaded): (RewardModel, Loaded), completions: &Path, max_length: usize) -> Result<EvalResult> {
    let texts = Texts::for_scores(&loaded)?;
    let length = max_length.min(loaded.config.max_positions);
    let written = data::read_demonstrations(completions)?.collect::<Result<Vec<_>, _>>()?;
    let pairs: Vec<_> = written.iter().map(|w| (&w.prompt, w.completion.as_str())).collect();
    let mut fit = Fit::new(length);
    for (prompt, completion) in &pairs {
        let answers = texts.answers(prompt, &[completion], length)?;
        fit.note_prompt(answers.prompt_cut);
        fit.note_answers(&answers.cut);
    }
    for message in fit.messages() {
        eprintln!("warning: {message}");
    }
    Ok(EvalResult::Scores { scores: model.scores(&texts.conversations(&pairs, length)?, BATCH_TOKENS)? })
}
