//! BERT pretraining (arXiv 1810.04805): predicts masked tokens from both sides. As in RoBERTa (arXiv 1907.11692) there
//! is no next-sentence task: a sequence is a piece of one document between [CLS] and [SEP].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use serde_json::{Value, json};

use super::args::{MlmArgs, parse_for_run};
use super::bidirectional::TrainableEncoder;
use super::fit::BLOCK;
use super::pretrain::{Cursor, batch_blocks, from_scratch, tokenizer};
use super::run::{Run, TrainPlan, device, report_phase};
use super::step::{Accumulator, micro_batches};
use super::{Reporter, TrainOutcome, rng};
use crate::data::corpus::{Stream, TextFiles};
use crate::model::init::Heads;
use crate::model::{self, Encoder, ModelConfig, PackedBatch, Weights};
use crate::objective::masked_lm::{self, Masked, mask_tokens};
use crate::objective::{Stats, causal_lm};
use crate::tokenizer::train::{Kind, TokenizerPlan};
use crate::tokenizer::{EncoderToken, Tokenizer};

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: MlmArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let files = TextFiles {
        paths: args.texts.iter().map(PathBuf::from).collect(),
        cut: args.document,
        field: args.text_field.clone(),
        dedup: args.dedup,
        heldout_fraction: args.heldout_fraction,
    };
    let device = device(&common)?;
    let loaded = match &args.architecture {
        None => model::load(Path::new(&common.model), &device).context("model")?,
        Some(architecture) => {
            let plan = TokenizerPlan {
                kind: Kind::WordPiece,
                vocab_size: args.vocab_size,
                lowercase: args.lowercase,
                ..TokenizerPlan::default()
            };
            let tokenizer = tokenizer(args.tokenizer.as_deref(), plan, &files)?;
            from_scratch(architecture, tokenizer, Heads::MaskedLm, common.seed, &device)?
        }
    };
    ensure!(loaded.config.is_encoder(), "model: a masked language model needs an encoder (such as BERT)");
    let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
    let masking = Masking::new(tokenizer, loaded.config.vocab_size, args.mask_rate, common.seed)?;
    report_phase(reporter, "preparing");
    let corpus = files.read(tokenizer, None, None)?;
    let length = common.max_length.unwrap_or(BLOCK).min(loaded.config.max_positions) - 2;
    let blocks = corpus.train.n_blocks(length);
    ensure!(blocks > 0, "texts: all documents are held out, none is left to train on");
    let weights: Weights = loaded
        .weights
        .iter()
        .filter(|(name, _)| is_trained(&loaded.config, name))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect();
    let model = TrainableEncoder::new(&loaded.config, &weights)?;
    ensure!(model.encoder().has_mlm_head(), "model: it has no masked-LM head");

    let plan = TrainPlan {
        recipe: "mlm",
        args: &args,
        steps: args.epochs * blocks.div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("texts".to_owned(), corpus.sha256.clone())]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    run.reporter.event("log", json!({"message": "corpus", "counts": corpus.counts}));
    let found = run.resume::<Cursor>(&model.params)?;
    let mut cursor = Cursor::resumed(&run, found, blocks, args.batch_size)?;

    let mut heldout = None;
    while run.step < run.total {
        let pieces: Vec<&[u32]> = batch_blocks(&run, blocks, args.batch_size, args.shuffle)
            .into_iter()
            .flat_map(|b| corpus.train.block(b, length))
            .collect();
        let batch: Vec<Masked> =
            (0u64..).zip(&pieces).map(|(i, piece)| masking.mask(piece, (run.step << 20) + i)).collect();
        let total: usize = batch.iter().map(|m| m.rows.len()).sum();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let (logprobs, tokens) = logprobs(model.encoder(), &group)?;
            let (loss, part) = masked_lm::loss(&logprobs, total as f64)?;
            sum.add(&model.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(tokens);
        }
        let (grad_norm, learning_rate) = run.update(&model.params, &sum.grads)?;
        run.step += 1;
        cursor.advance(run.step, blocks, args.batch_size, total);
        run.metrics(stats.means().chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) {
            heldout = validate(&model.frozen()?, &corpus.heldout, length, &masking, run.common.micro_batch_tokens)?;
            let perplexity = heldout.map(|loss: f64| ("heldout_perplexity", loss.exp()));
            run.metrics(heldout.map(|loss| ("heldout_loss", loss)).into_iter().chain(perplexity));
        }
        if let Some(outcome) = run.pause(&model.params, &cursor)? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let metrics = json!({
        "heldout_loss": heldout, "heldout_perplexity": heldout.map(f64::exp), "guessed_tokens": cursor.tokens,
        "corpus": corpus.counts, "corpus_sha256": corpus.sha256,
    });
    super::output::save(&run.common, "encoder", "mlm", &loaded, &model.weights()?.into(), json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// Whether a tensor belongs to the backbone, the masked-LM head or the pooler. The pooler gets no gradient here, but is
/// kept for classifiers.
fn is_trained(config: &ModelConfig, name: &str) -> bool {
    let family = config.family();
    let head = family.encoder_heads().is_some_and(|heads| heads.is_masked_lm(name) || heads.is_pooler(name));
    head || (name.starts_with(family.base) && !family.is_head(name))
}

/// How tokens are masked.
struct Masking {
    cls: u32,
    sep: u32,
    mask: u32,
    vocab_size: u32,
    rate: f64,
    seed: u64,
}

impl Masking {
    fn new(tokenizer: &Tokenizer, vocab_size: usize, rate: f64, seed: u64) -> Result<Self> {
        let id = |role: EncoderToken| {
            tokenizer.role_id(role).with_context(|| format!("model: its tokenizer has no {}", role.key()))
        };
        Ok(Self {
            cls: id(EncoderToken::Cls)?,
            sep: id(EncoderToken::Sep)?,
            mask: id(EncoderToken::Mask)?,
            vocab_size: vocab_size as u32,
            rate,
            seed,
        })
    }

    /// `[CLS] piece [SEP]` with some tokens of the piece masked, which (seed, draw) determine.
    fn mask(&self, piece: &[u32], draw: u64) -> Masked {
        let mut rng = rng::rng(self.seed, rng::Stream::Mask, draw);
        let ids: Vec<u32> = [self.cls].into_iter().chain(piece.iter().copied()).chain([self.sep]).collect();
        let inside = |i: usize| i > 0 && i < ids.len() - 1;
        mask_tokens(&ids, inside, self.rate, self.mask, self.vocab_size, || rng::uniform(&mut rng))
    }
}

/// Groups of sequences for one pass each, without those in which nothing is masked.
fn groups(batch: &[Masked], max_tokens: usize) -> Vec<Vec<&Masked>> {
    let useful: Vec<&Masked> = batch.iter().filter(|m| !m.rows.is_empty()).collect();
    let lengths: Vec<usize> = useful.iter().map(|m| m.ids.len()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| useful[i]).collect()).collect()
}

/// Log-probs of the masked tokens, and the number of all tokens.
fn logprobs(encoder: &Encoder, group: &[&Masked]) -> Result<(Tensor, usize)> {
    let ids: Vec<&[u32]> = group.iter().map(|m| m.ids.as_slice()).collect();
    let batch = PackedBatch::new(&ids);
    let hidden = encoder.forward(&batch, &vec![0; batch.len()])?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (masked, &offset) in group.iter().zip(&batch.offsets) {
        rows.extend(masked.rows.iter().map(|row| offset as u32 + row));
        targets.extend_from_slice(&masked.targets);
    }
    let picked = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
    Ok((encoder.mlm_logprobs(&picked, &targets)?.logprobs, batch.len()))
}

/// Mean −log p of masked tokens of the held-out documents, with the same masks at every call.
fn validate(
    encoder: &Encoder,
    heldout: &Stream,
    length: usize,
    masking: &Masking,
    max_tokens: usize,
) -> Result<Option<f64>> {
    let pieces = (0..heldout.n_blocks(length)).flat_map(|b| heldout.block(b, length));
    let batch: Vec<Masked> = (0u64..).zip(pieces).map(|(i, piece)| masking.mask(piece, (1 << 63) + i)).collect();
    let mut stats = Stats::default();
    for group in groups(&batch, max_tokens) {
        stats.merge(&causal_lm::loss(&logprobs(encoder, &group)?.0, 1.0)?.1);
    }
    Ok(stats.mean("loss"))
}
