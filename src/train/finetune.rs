//! Fine-tuning of a classifier, as in GPT-1 (task loss + λ · language-model loss) and in BERT (on the pooled [CLS]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Tensor, Var};
use serde_json::{Value, json};

use super::args::{FinetuneArgs, parse_for_run};
use super::bidirectional::TrainableEncoder;
use super::fit::{Fit, count};
use super::optim::Params;
use super::run::{Run, TrainPlan, device, file_hash, load_base, report_phase};
use super::step::{Accumulator, micro_batches};
use super::trainable::{Trainable, normal_init};
use super::{Reporter, TrainOutcome};
use crate::data::labelled::{self, Labelled};
use crate::data::split_of;
use crate::domain::{Split, hash};
use crate::model::heads::classifier::{
    Body, CLASSIFIER, CLASSIFIER_BIAS, SCORE, about, add_pooler, body_weights, class_logits, classifier_ids_cut,
};
use crate::model::merged::Merged;
use crate::model::{Decoder, Encoder, Loaded, PackedBatch};
use crate::objective::{Stats, causal_lm, classification};

/// Standard deviation of new heads, as in GPT-2 and BERT.
const HEAD_STD: f64 = 0.02;

pub fn run(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: FinetuneArgs = parse_for_run(args)?;
    report_phase(reporter, "loading");
    let common = args.common();
    let loaded = load_base(&common, &device(&common)?)?;
    report_phase(reporter, "preparing");
    let length = super::fit::length(common.max_length, loaded.config.max_positions, || lengths(&args, &loaded))?;
    let max_length = length.tokens;
    let data = Data::read(&args, &loaded, max_length)?;
    let body = ClassifierTrainer::new(&args, &loaded, data.labels.len())?;
    let plan = TrainPlan {
        recipe: "finetune",
        args: &args,
        steps: args.epochs * data.train.len().div_ceil(args.batch_size) as u64,
        updates_per_step: 1,
        data: BTreeMap::from([("labelled".to_owned(), file_hash(&args.labelled)?)]),
        common,
    };
    let mut run = Run::new(plan, reporter)?;
    length.report(&mut run);
    if data.fit.answers_cut > 0 {
        let (cut, texts) = (data.fit.answers_cut, count(data.fit.answers, "text", "texts"));
        run.warn(format!("max_length: {cut} of {texts} lost the end to fit into {max_length} tokens"));
        run.metrics([("texts_cut", cut as f64)]);
    }
    if data.heldout.is_empty() {
        run.warn("no text is held out: there is no held-out accuracy".to_owned());
    }
    run.resume::<()>(&body.params)?;

    let mut heldout = None;
    while run.step < run.total {
        let batch: Vec<&Example> =
            run.batch(data.train.len(), args.batch_size).into_iter().map(|i| &data.train[i]).collect();
        let (mut sum, mut stats) = (Accumulator::default(), Stats::default());
        let predicted: usize = batch.iter().map(|e| e.ids.len() - 1).sum();
        for group in groups(&batch, run.common.micro_batch_tokens) {
            let (loss, part) = body.loss(&group, batch.len() as f64, predicted as f64, args.lm_coef)?;
            sum.add(&body.params, &loss)?;
            stats.merge(&part);
            run.meter.add_tokens(group.iter().map(|e| e.ids.len()).sum());
        }
        let (grad_norm, learning_rate) = run.update(&body.params, &sum.grads)?;
        run.step += 1;
        let named = stats.means().map(|(name, v)| (if name == "accuracy" { "train_accuracy" } else { name }, v));
        run.metrics(named.chain([("grad_norm", grad_norm), ("learning_rate", learning_rate)]));
        run.progress("train");
        if run.due(run.common.eval_every) {
            run.progress("evaluate");
            let stats = body.evaluate(&data.heldout, run.common.micro_batch_tokens)?;
            heldout = stats.mean("accuracy").zip(stats.mean("classification_loss"));
            run.metrics(heldout.into_iter().flat_map(|(a, l)| [("heldout_accuracy", a), ("heldout_loss", l)]));
        }
        if let Some(outcome) = run.pause(&body.params, &())? {
            return Ok(outcome);
        }
    }

    run.progress("saving");
    let metrics = json!({
        "heldout_accuracy": heldout.map(|h| h.0), "heldout_loss": heldout.map(|h| h.1), "labels": data.labels,
        "texts": {"train": data.train.len(), "heldout": data.heldout.len(), "cut": data.fit.answers_cut},
        "max_length": max_length,
    });
    let mut more = about(&data.labels, max_length);
    more["metrics"] = metrics.clone();
    super::output::save(&run.common, "classifier", "finetune", &loaded, &body.weights()?, more)?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// Lengths of the texts in tokens, without truncation.
fn lengths(args: &FinetuneArgs, loaded: &Loaded) -> Result<Vec<usize>> {
    let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
    let rows = labelled::read(Path::new(&args.labelled), &args.text_field, &args.label_field).context("labelled")?;
    let mut lengths = Vec::with_capacity(rows.len());
    for row in &rows {
        lengths.push(classifier_ids_cut(tokenizer, &loaded.config, &row.text, usize::MAX)?.0.len());
    }
    Ok(lengths)
}

struct Example {
    ids: Vec<u32>,
    class: u32,
}

struct Data {
    /// Labels in alphabetical order; the index is the class.
    labels: Vec<String>,
    train: Vec<Example>,
    heldout: Vec<Example>,
    /// Counts of truncated texts.
    fit: Fit,
}

impl Data {
    fn read(args: &FinetuneArgs, loaded: &Loaded, max_length: usize) -> Result<Self> {
        let tokenizer = loaded.tokenizer.as_ref().context("model: it has no tokenizer.json")?;
        let rows =
            labelled::read(Path::new(&args.labelled), &args.text_field, &args.label_field).context("labelled")?;
        let names: BTreeSet<&str> = rows.iter().map(|row| row.label.as_str()).collect();
        let labels: Vec<String> = names.into_iter().map(str::to_owned).collect();
        ensure!(labels.len() >= 2, "labelled: there is only the label {:?}", labels[0]);
        if labels.len() > 1000 {
            bail!("labelled: {} different labels; is `{}` the right field?", labels.len(), args.label_field);
        }
        let fit = Fit::new(max_length);
        let mut data = Self { labels, train: Vec::new(), heldout: Vec::new(), fit };
        for Labelled { text, label } in &rows {
            let (ids, cut) = classifier_ids_cut(tokenizer, &loaded.config, text, max_length)?;
            data.fit.answers += 1;
            data.fit.answers_cut += usize::from(cut);
            let class = data.labels.partition_point(|known| known < label) as u32;
            // By text, so that equal texts are on the same side of the split.
            match split_of(&hash::of_bytes(text), args.heldout_fraction) {
                Split::Train => data.train.push(Example { ids, class }),
                Split::Heldout => data.heldout.push(Example { ids, class }),
            }
        }
        ensure!(!data.train.is_empty(), "labelled: all texts are held out, none is left to train on");
        Ok(data)
    }
}

fn groups<'e>(examples: &[&'e Example], max_tokens: usize) -> Vec<Vec<&'e Example>> {
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    micro_batches(&lengths, max_tokens).into_iter().map(|g| g.into_iter().map(|i| examples[i]).collect()).collect()
}

/// The model under the head.
enum Kind {
    Decoder(Box<Trainable>),
    Encoder(Box<TrainableEncoder>),
}

/// A model with a classification head under training.
struct ClassifierTrainer {
    kind: Kind,
    head: Var,
    bias: Option<Var>,
    /// All trained parameters.
    params: Params,
}

impl ClassifierTrainer {
    fn new(args: &FinetuneArgs, loaded: &Loaded, classes: usize) -> Result<Self> {
        let (common, d) = (args.common(), loaded.config.hidden_size);
        let device = loaded.weights.values().next().map_or(candle_core::Device::Cpu, |t| t.device().clone());
        let fresh = || normal_init((classes, d), HEAD_STD, common.seed, &device);
        let encoder = loaded.config.is_encoder();
        let name = if encoder { CLASSIFIER } else { SCORE };
        // A classifier with the same number of classes continues from its head.
        let head = match loaded.weights.get(name).filter(|head| head.dims() == [classes, d]) {
            Some(head) => head.clone(),
            None => fresh()?,
        };
        let head = Var::from_tensor(&head)?;
        let mut heads = Params::from([(name.to_owned(), head.clone())]);
        if !encoder {
            let body: Trainable =
                Trainable::for_run(&loaded.config, body_weights(loaded), &common)?.with_source(&loaded.source);
            let params = body.params.clone().into_iter().chain(heads).collect();
            return Ok(Self { kind: Kind::Decoder(Box::new(body)), head, bias: None, params });
        }
        let whole = common.lora.is_none() && common.freeze_layers == 0 && !common.freeze_embeddings;
        ensure!(
            whole,
            "lora, freeze_layers, freeze_embeddings: encoders are fine-tuned as a whole; leave these arguments out"
        );
        let mut weights = body_weights(loaded);
        add_pooler(&loaded.config, &mut weights, || normal_init((d, d), HEAD_STD, common.seed ^ 1, &device))?;
        let bias = match loaded.weights.get(CLASSIFIER_BIAS).filter(|b| b.dims() == [classes]) {
            Some(bias) => bias.clone(),
            None => Tensor::zeros(classes, candle_core::DType::F32, &device)?,
        };
        let bias = Var::from_tensor(&bias)?;
        heads.insert(CLASSIFIER_BIAS.to_owned(), bias.clone());
        let body = TrainableEncoder::new(&loaded.config, &weights)?;
        let params = body.params.clone().into_iter().chain(heads).collect();
        Ok(Self { kind: Kind::Encoder(Box::new(body)), head, bias: Some(bias), params })
    }

    /// The loss of a part of a batch that has `examples` examples and `predicted` predicted tokens.
    fn loss(&self, group: &[&Example], examples: f64, predicted: f64, lm_coef: f64) -> Result<(Tensor, Stats)> {
        let ids: Vec<&[u32]> = group.iter().map(|e| e.ids.as_slice()).collect();
        let classes: Vec<u32> = group.iter().map(|e| e.class).collect();
        let decoder = match &self.kind {
            Kind::Decoder(body) => body.decoder(),
            Kind::Encoder(body) => {
                let bias = self.bias.as_ref().map(|b| b.as_tensor());
                let logits = class_logits(&Body::Encoder(body.encoder()), &self.head, bias, &ids)?;
                return Ok(classification::loss(&logits, &classes, examples)?);
            }
        };
        let batch = PackedBatch::new(&ids);
        let hidden = decoder.forward(&batch)?;
        let pick = |rows: Vec<u32>| hidden.index_select(&Tensor::new(rows, hidden.device())?, 0);
        let logits = pick(batch.last_rows())?.matmul(&self.head.t()?)?;
        let (mut loss, mut stats) = classification::loss(&logits, &classes, examples)?;
        if lm_coef > 0.0 && predicted > 0.0 {
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (ids, &offset) in ids.iter().zip(&batch.offsets) {
                rows.extend((1..ids.len()).map(|t| (offset + t - 1) as u32));
                targets.extend_from_slice(&ids[1..]);
            }
            let logprobs = decoder.token_logprobs(&pick(rows)?, &targets, 1.0)?.logprobs;
            let (lm, part) = causal_lm::loss(&logprobs, predicted)?;
            loss = (loss + (lm * lm_coef)?)?;
            stats.add("lm_loss", part.mean("loss").unwrap_or_default() * targets.len() as f64, targets.len() as f64);
        }
        Ok((loss, stats))
    }

    fn evaluate(&self, examples: &[Example], max_tokens: usize) -> Result<Stats> {
        enum Now {
            Decoder(Decoder),
            Encoder(Encoder),
        }
        let now = match &self.kind {
            Kind::Decoder(body) => Now::Decoder(body.frozen_decoder()?),
            Kind::Encoder(body) => Now::Encoder(body.frozen()?),
        };
        let body = match &now {
            Now::Decoder(decoder) => Body::Decoder(decoder),
            Now::Encoder(encoder) => Body::Encoder(encoder),
        };
        let (head, bias) = (self.head.as_detached_tensor(), self.bias.as_ref().map(|b| b.as_detached_tensor()));
        let mut stats = Stats::default();
        for group in groups(&examples.iter().collect::<Vec<_>>(), max_tokens) {
            let ids: Vec<&[u32]> = group.iter().map(|e| e.ids.as_slice()).collect();
            let classes: Vec<u32> = group.iter().map(|e| e.class).collect();
            let logits = class_logits(&body, &head, bias.as_ref(), &ids)?;
            stats.merge(&classification::loss(&logits, &classes, 1.0)?.1);
        }
        Ok(stats)
    }

    /// The weights of model and head, for the result.
    fn weights(&self) -> Result<Merged> {
        let mut weights = match &self.kind {
            Kind::Decoder(body) => body.published()?,
            Kind::Encoder(body) => body.weights()?.into(),
        };
        let name = if self.bias.is_some() { CLASSIFIER } else { SCORE };
        weights.insert(name.to_owned(), self.head.as_detached_tensor());
        if let Some(bias) = &self.bias {
            weights.insert(CLASSIFIER_BIAS.to_owned(), bias.as_detached_tensor());
        }
        Ok(weights)
    }
}
