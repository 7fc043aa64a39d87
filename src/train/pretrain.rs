//! Decoder pretraining from raw text (GPT-1, GPT-2): every token of a document is predicted from those before it.
//! Blocks are packed without padding, and attention is limited to the document.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{PretrainArgs, parse_for_run};
use super::fit::BLOCK;
use super::on_device::{attach, loading_device};
use super::run::{Run, TrainPlan, report_phase};
use super::samples::Samples;
use super::sft::{backbone_and_output, groups};
use super::step::{Accumulator, PredictionBatch, Sequence};
use super::trainable::Trainable;
use super::{Reporter, TrainOutcome, rng};
use crate::data::PromptInput;
use crate::data::corpus::{Counts, Stream, TextFiles};
use crate::domain::Split;
use crate::model::architecture::{Architecture, TokenIds};
use crate::model::init::{Heads, init};
use crate::model::{self, Decoder, Loaded, ModelConfig, Source};
use crate::objective::{Stats, causal_lm};
use crate::prompt::Texts;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::train::{END_OF_TEXT, TokenizerPlan, Training};

/// Number of words of a held-out document that are the prompt of a sample.
const SAMPLE_WORDS: usize = 6;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: PretrainArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let files = TextFiles {
        paths: args.texts.iter().map(PathBuf::from).collect(),
        cut: args.document,
        field: args.text_field.clone(),
        dedup: args.dedup,
        heldout_fraction: args.heldout_fraction,
    };
    let device = loading_device(&common)?;
    let plan = TokenizerPlan { vocab_size: args.vocab_size, chat: args.chat, ..TokenizerPlan::default() };
    let loaded = match &args.architecture {
        None => model::load(Path::new(&common.model), &device).context("model")?,
        Some(architecture) => {
            let tokenizer = tokenizer(args.tokenizer.as_deref(), plan, &files)?;
            from_scratch(architecture, tokenizer, Heads::Backbone, common.seed, &device)?
        }
    };
    let texts = Texts::new(&loaded)?;
    let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
    let (begin, end) = document_ends(&loaded.config, tokenizer);
    let corpus = files.read(tokenizer, begin, end)?;
    let length = common.max_length.unwrap_or(BLOCK).min(loaded.config.max_positions);
    let blocks = corpus.train.n_blocks(length);
    ensure!(blocks > 0, "texts: all documents are held out, none is left to train on");

    let mut policy = Trainable::new(&loaded.config, backbone_and_output(&loaded), None, common.seed)?;
    let plan = TrainPlan {
        recipe: "pretrain",
        args: &args,
        steps: args.epochs * blocks.div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("texts".to_owned(), corpus.sha256.clone())]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    let parameters: usize = policy.params.values().map(|var| var.elem_count()).sum();
    run.reporter.event("log", json!({"message": "corpus", "counts": corpus.counts, "parameters": parameters}));
    let found = run.resume::<Cursor>(&policy.params)?;
    let mut cursor = Cursor::resumed(&run, found, blocks, args.batch_size)?;
    attach(&mut run, &mut policy)?;
    let prompts = sample_prompts(&corpus.heldout, tokenizer)?;
    let samples = Samples::new(&texts, prompts, run.common.seed);

    let mut heldout = None;
    while run.step < run.total {
        let batch: Vec<Sequence> = batch_blocks(&run, blocks, args.batch_size, args.shuffle)
            .into_iter()
            .flat_map(|b| corpus.train.block(b, length))
            // A single token predicts nothing.
            .filter(|piece| piece.len() > 1)
            .map(|piece| Sequence { ids: piece.to_vec().into(), start: 1 })
            .collect();
        let total: usize = batch.iter().map(Sequence::predicted).sum();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch.iter().collect::<Vec<_>>(), run.common.micro_batch_tokens) {
            let packed = PredictionBatch::new(&group);
            let (loss, part) = causal_lm::loss(&packed.scores(policy.decoder(), 1.0)?.logprobs, total as f64)?;
            sum.add(&policy.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(packed.batch.len());
        }
        let (grad_norm, learning_rate) = run.update(&policy.params, &sum.grads)?;
        run.step += 1;
        cursor.advance(run.step, blocks, args.batch_size, total);
        run.metrics(stats.means().chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) {
            let now = policy.frozen_decoder()?;
            let (scorer, tokens) = (policy.scorer(Some(&now)), run.common.micro_batch_tokens);
            heldout = validate(scorer, &corpus.heldout, corpus.counts, length, tokens)?;
            if let Some(h) = heldout {
                run.metrics([("heldout_loss", h.loss), ("heldout_perplexity", h.perplexity)]);
                run.metrics([("bits_per_byte", h.bits_per_byte)]);
            }
            samples.write(&mut run, &now, length, None)?;
        }
        if let Some(outcome) = run.pause(&policy.params, &cursor)? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let metrics = json!({
        "heldout_loss": heldout.map(|h| h.loss), "heldout_perplexity": heldout.map(|h| h.perplexity),
        "bits_per_byte": heldout.map(|h| h.bits_per_byte), "tokens_seen": cursor.tokens,
        "parameters": parameters, "corpus": corpus.counts, "corpus_sha256": corpus.sha256,
    });
    super::output::save(&run.common, "policy", "pretrain", &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// The position of a run in its data. The step determines it, so it serves as a check of a resumed run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    pub epoch: u64,
    /// Number of finished blocks of this epoch.
    pub block: u64,
    /// Number of predicted tokens so far.
    pub tokens: u64,
}

impl Cursor {
    fn at(step: u64, blocks: usize, batch_size: usize) -> (u64, u64) {
        let per_epoch = blocks.div_ceil(batch_size) as u64;
        (step / per_epoch, (step % per_epoch) * batch_size as u64)
    }

    /// The position of a resumed run.
    ///
    /// # Errors
    /// If the checkpoint's position is not that of its step.
    pub fn resumed(run: &Run<'_>, found: Option<Self>, blocks: usize, batch_size: usize) -> Result<Self> {
        let Some(cursor) = found else { return Ok(Self::default()) };
        if (cursor.epoch, cursor.block) != Self::at(run.step, blocks, batch_size) {
            bail!(
                "the checkpoint is at block {} of epoch {}, which is not the position of step {}",
                cursor.block,
                cursor.epoch,
                run.step
            );
        }
        Ok(cursor)
    }

    pub fn advance(&mut self, step: u64, blocks: usize, batch_size: usize, tokens: usize) {
        (self.epoch, self.block) = Self::at(step, blocks, batch_size);
        self.tokens += tokens as u64;
    }
}

/// The blocks of this step.
pub(super) fn batch_blocks(run: &Run<'_>, blocks: usize, batch_size: usize, shuffle: bool) -> Vec<usize> {
    if shuffle {
        return run.batch(blocks, batch_size);
    }
    let (_, first) = Cursor::at(run.step, blocks, batch_size);
    (first as usize..blocks.min(first as usize + batch_size)).collect()
}

/// The tokens before and after every document.
fn document_ends(config: &ModelConfig, tokenizer: &Tokenizer) -> (Option<u32>, Option<u32>) {
    let end = tokenizer.token_to_id(END_OF_TEXT).or(config.eos_ids.first().copied());
    (config.bos_id, end)
}

/// The tokenizer of a new model: read from `path`, or trained on the training documents.
pub(super) fn tokenizer(path: Option<&str>, plan: TokenizerPlan, files: &TextFiles) -> Result<Tokenizer> {
    let Some(path) = path.map(PathBuf::from) else {
        let mut training = Training::new(plan);
        files.each(|document, side| {
            if side == Split::Train {
                training.add(document)?;
            }
            Ok(())
        })?;
        return Ok(training.finish()?);
    };
    let dir = if path.is_dir() { path.clone() } else { path.parent().unwrap_or(Path::new(".")).to_owned() };
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path };
    let text = std::fs::read_to_string(&file).with_context(|| format!("tokenizer: {}", file.display()))?;
    let config = std::fs::read(dir.join("tokenizer_config.json")).ok().and_then(|t| serde_json::from_slice(&t).ok());
    let probe = Tokenizer::from_json(&text, config, &[]).context("tokenizer")?;
    let eos: Vec<u32> = probe.named_token("eos_token").and_then(|name| probe.token_to_id(name)).into_iter().collect();
    Tokenizer::from_json(&text, probe.config().cloned(), &eos).context("tokenizer")
}

/// A new model with initial weights drawn with the seed.
pub(super) fn from_scratch(
    architecture: &Architecture,
    tokenizer: Tokenizer,
    heads: Heads,
    seed: u64,
    device: &Device,
) -> Result<Loaded> {
    let shape = architecture.shape().context("architecture")?;
    let named = |name: &str| tokenizer.named_token(name).and_then(|text| tokenizer.token_to_id(text));
    let ids = TokenIds {
        bos: named("bos_token"),
        eos: tokenizer.eos_ids().first().copied().or_else(|| named("eos_token")),
        pad: named("pad_token"),
    };
    let hf_config = shape.hf_config(tokenizer.vocab_size(), ids);
    let mut config = ModelConfig::from_hf(&hf_config, None).context("architecture")?;
    for id in tokenizer.eos_ids() {
        if !config.eos_ids.contains(id) {
            config.eos_ids.push(*id);
        }
    }
    let normals = |tensor, n| {
        let mut rng = rng::rng(seed, rng::Stream::NewModel, tensor);
        (0..n).map(|_| rng::normal(&mut rng)).collect()
    };
    let weights = init(&config, heads, device, normals)?;
    let chat_template = tokenizer.config().and_then(|c| c.get("chat_template")?.as_str()).map(str::to_owned);
    let source = Source { path: PathBuf::from("(a new model)"), weight_files: Vec::new() };
    Ok(Loaded {
        config,
        weights,
        tokenizer: Some(tokenizer),
        chat_template,
        hf_config,
        instructd: None,
        sentence: model::Sentence::default(),
        source,
    })
}

/// The first words of a few held-out documents.
fn sample_prompts(heldout: &Stream, tokenizer: &Tokenizer) -> Result<Vec<PromptInput>> {
    let mut prompts = Vec::new();
    let mut start = 0;
    for &end in heldout.ends.iter().take(8) {
        let text = tokenizer.decode(&heldout.ids[start..end], true)?;
        let words: Vec<&str> = text.split(' ').take(SAMPLE_WORDS).collect();
        if words.iter().any(|w| !w.is_empty()) {
            prompts.push(PromptInput::Text(words.join(" ").chars().take(80).collect()));
        }
        start = end;
    }
    Ok(prompts)
}

#[derive(Clone, Copy, Debug)]
struct Heldout {
    /// Nats per predicted token.
    loss: f64,
    perplexity: f64,
    bits_per_byte: f64,
}

/// The loss on the held-out documents; `None` if there are none. End tokens add bits but no bytes, so bits per byte are
/// slightly overestimated.
fn validate(
    decoder: &Decoder,
    heldout: &Stream,
    counts: Counts,
    length: usize,
    max_tokens: usize,
) -> Result<Option<Heldout>> {
    let windows: Vec<Sequence> =
        heldout.windows(length).into_iter().map(|w| Sequence { ids: w.to_vec().into(), start: 1 }).collect();
    let predicted: usize = windows.iter().map(Sequence::predicted).sum();
    let Some(loss) = super::sft::nats_per_token(decoder, &windows, max_tokens)? else { return Ok(None) };
    let bits = loss * predicted as f64 / std::f64::consts::LN_2;
    Ok(Some(Heldout { loss, perplexity: loss.exp(), bits_per_byte: bits / counts.heldout_bytes as f64 }))
}
