//! Classifiers: a linear head on a decoder's last token (GPT-1, GPT2ForSequenceClassification) or on an
//! encoder's pooled `[CLS]` (BertForSequenceClassification).

use candle_core::{D, Result, Tensor};
use serde_json::{Value, json};

use crate::model::families::Pooler;
use crate::model::heads::Foreign;
use crate::model::heads::reward::headless;
use crate::model::heads::trunk::{Build, Trunk};
use crate::model::{Decoder, Encoder, Loaded, ModelConfig, PackedBatch, Purpose, Weights};
use crate::tokenizer::{EncoderToken, Tokenizer};

/// Names of a decoder's head, [classes, d], and of an encoder's.
pub const SCORE: &str = crate::model::heads::reward::SCORE;
pub const CLASSIFIER: &str = "classifier.weight";
pub const CLASSIFIER_BIAS: &str = "classifier.bias";

/// The model without its head.
pub enum Body<'a> {
    Decoder(&'a Decoder),
    Encoder(&'a Encoder),
}

/// Class scores [n, classes] of `sequences`, differentiable where the model has variables. `head` is [classes, d].
pub fn class_logits(body: &Body<'_>, head: &Tensor, bias: Option<&Tensor>, sequences: &[&[u32]]) -> Result<Tensor> {
    let batch = PackedBatch::new(sequences);
    let features = match body {
        Body::Decoder(decoder) => decoder.hidden_at(&batch, &batch.last_rows())?,
        Body::Encoder(encoder) => pooled(encoder, &batch)?,
    };
    let logits = features.matmul(&head.t()?)?;
    bias.map_or(Ok(logits.clone()), |bias| logits.broadcast_add(bias))
}

fn pooled(encoder: &Encoder, batch: &PackedBatch) -> Result<Tensor> {
    let first = encoder.forward_at(batch, &vec![0; batch.len()], &batch.first_rows())?;
    match encoder.pool(&first)? {
        Some(pooled) => Ok(pooled),
        None => candle_core::bail!("the encoder has no pooler"),
    }
}

/// The token ids of a text for a classifier that is trained here, in training and inference: at most `max_length` tokens.
/// A decoder's text ends with its end token, whose hidden state the head reads; an encoder's is enclosed in `[CLS]` and
/// `[SEP]`.
pub fn classifier_ids(tokenizer: &Tokenizer, config: &ModelConfig, text: &str, max_length: usize) -> Result<Vec<u32>> {
    Ok(classifier_ids_cut(tokenizer, config, text, max_length)?.0)
}

/// `classifier_ids`, and whether the text was truncated.
pub fn classifier_ids_cut(
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    text: &str,
    max_length: usize,
) -> Result<(Vec<u32>, bool)> {
    let mut ids = tokenizer.encode(text, false, false).map_err(candle_core::Error::wrap)?;
    let whole = ids.len();
    if !config.is_encoder() {
        let end = config.eos_ids.first().copied();
        ids.truncate(max_length.saturating_sub(usize::from(end.is_some())));
        let cut = ids.len() < whole;
        ids.extend(end);
        if ids.is_empty() {
            candle_core::bail!("a text has no tokens, and the model no end token");
        }
        return Ok((ids, cut));
    }
    let id = |role: EncoderToken| match tokenizer.role_id(role) {
        Some(id) => Ok(id),
        None => candle_core::bail!("the tokenizer has no {}", role.key()),
    };
    ids.truncate(max_length.saturating_sub(2));
    let cut = ids.len() < whole;
    ids.insert(0, id(EncoderToken::Cls)?);
    ids.push(id(EncoderToken::Sep)?);
    Ok((ids, cut))
}

/// The token ids of a text for a classifier that was trained elsewhere, as transformers gives them to it: with the tokens
/// that the tokenizer adds, without padding tokens at the end, because the head of a decoder reads the last other token.
fn foreign_ids(tokenizer: &Tokenizer, foreign: &Foreign, text: &str, max_length: usize) -> Result<Vec<u32>> {
    let encode = |special| tokenizer.encode(text, special, false).map_err(candle_core::Error::wrap);
    let mut ids = match tokenizer.around_text() {
        Some((before, behind)) => {
            let mut inner = encode(false)?;
            inner.truncate(max_length.saturating_sub(before.len() + behind.len()));
            [before, &inner, behind].concat()
        }
        None => encode(true)?,
    };
    ids.truncate(max_length);
    foreign.cut_padding(&mut ids, 1);
    if ids.is_empty() {
        candle_core::bail!("a text has no tokens");
    }
    Ok(ids)
}

/// The classifier's section of instructd.json.
pub fn about(labels: &[String], max_length: usize) -> Value {
    json!({"classifier": {"labels": labels, "max_length": max_length}})
}

/// A trained classifier, frozen.
pub struct Classifier {
    body: Trunk,
    head: Tensor,
    bias: Option<Tensor>,
    tokenizer: Tokenizer,
    config: ModelConfig,
    /// `None` for classifiers that were trained here, whose texts have the form of training.
    foreign: Option<Foreign>,
    pub labels: Vec<String>,
    pub max_length: usize,
}

impl Classifier {
    /// # Errors
    /// When the model lacks a tokenizer or a head, or when the number of labels in instructd.json differs from the
    /// head's rows. Without instructd.json the labels are those of config.json.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        let config = if loaded.config.is_encoder() { loaded.config.clone() } else { headless(&loaded.config) };
        Self::over(Trunk::build(&config, &loaded.weights, None, Purpose::Serve)?, loaded)
    }

    /// A classifier over a model that is there already, for instance on a device; `loaded` has its head.
    ///
    /// # Errors
    /// Those of [`Classifier::new`].
    pub fn over(body: Trunk, loaded: &Loaded) -> Result<Self> {
        let Some(tokenizer) = loaded.tokenizer.clone() else { candle_core::bail!("the model has no tokenizer.json") };
        let encoder = loaded.config.is_encoder();
        let name = if encoder { CLASSIFIER } else { SCORE };
        let Some(head) = loaded.weights.get(name) else { candle_core::bail!("not a classifier: it has no {name}") };
        let (classes, _) = head.dims2()?;
        let said = loaded.instructd.as_ref().and_then(|v| v.get("classifier"));
        let labels: Vec<String> = match said.and_then(|v| v.get("labels")?.as_array()) {
            Some(names) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            // transformers' table of names by number.
            None => (0..classes)
                .map(|i| loaded.hf_config.get("id2label").and_then(|names| names.get(i.to_string())?.as_str()))
                .enumerate()
                .map(|(i, name)| name.map_or_else(|| format!("LABEL_{i}"), str::to_owned))
                .collect(),
        };
        if labels.len() != classes {
            candle_core::bail!("{name} has {classes} rows, instructd.json names {} labels", labels.len());
        }
        let limit = said.and_then(|v| v.get("max_length")?.as_u64()).map_or(usize::MAX, |n| n as usize);
        Ok(Self {
            body,
            foreign: said.is_none().then(|| Foreign::of(loaded)),
            head: head.detach(),
            bias: loaded.weights.get(CLASSIFIER_BIAS).map(Tensor::detach),
            tokenizer,
            config: loaded.config.clone(),
            labels,
            max_length: limit.min(loaded.config.max_positions),
        })
    }

    /// log p of every label for every text, `[texts][labels]`; at most `max_tokens` tokens are computed at a time.
    pub fn classify<S: AsRef<str>>(&self, texts: &[S], max_tokens: usize) -> Result<Vec<Vec<f32>>> {
        let body = match &self.body {
            Trunk::Decoder(decoder) => Body::Decoder(decoder),
            Trunk::Encoder(encoder) => Body::Encoder(encoder),
        };
        let ids = texts.iter().map(|text| match &self.foreign {
            None => classifier_ids(&self.tokenizer, &self.config, text.as_ref(), self.max_length),
            Some(foreign) => foreign_ids(&self.tokenizer, foreign, text.as_ref(), self.max_length),
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let mut out = Vec::with_capacity(ids.len());
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let n = rest.iter().take_while(|s| {
                tokens += s.len();
                tokens <= max_tokens
            });
            let (now, later) = rest.split_at(n.count().max(1));
            let now: Vec<&[u32]> = now.iter().map(Vec::as_slice).collect();
            let logits = class_logits(&body, &self.head, self.bias.as_ref(), &now)?;
            let normaliser = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
            let all = normaliser.broadcast_sub(&normaliser.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
            out.extend(all.to_vec2::<f32>()?);
            rest = later;
        }
        Ok(out)
    }
}

/// The weights that a classifier is built on, without the heads of other tasks.
pub fn body_weights(loaded: &Loaded) -> Weights {
    let family = loaded.config.family();
    let kept = |name: &str| family.encoder_heads().is_some_and(|heads| heads.is_pooler(name));
    let output = |name: &str| !loaded.config.is_encoder() && name == "lm_head.weight";
    let other = |name: &str| family.is_head(name) && !kept(name) && !output(name);
    loaded.weights.iter().filter(|(name, _)| !other(name)).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// Adds the layer between an encoder's first token and the classes, where the weights have none. `draw` returns its
/// initial matrix.
pub fn add_pooler(config: &ModelConfig, weights: &mut Weights, draw: impl FnOnce() -> Result<Tensor>) -> Result<()> {
    let Some(heads) = config.family().encoder_heads() else { return Ok(()) };
    let (name, biased) = match heads.pooler {
        Pooler::Tanh(name) | Pooler::Relu(name) => (name, true),
        Pooler::MaskedLmHead => (heads.dense, false),
    };
    if weights.contains_key(&format!("{name}.weight")) {
        return Ok(());
    }
    let matrix = draw()?;
    let (d, device) = (config.hidden_size, matrix.device().clone());
    weights.insert(format!("{name}.weight"), matrix);
    if biased {
        weights.insert(format!("{name}.bias"), Tensor::zeros(d, candle_core::DType::F32, &device)?);
    } else {
        weights.insert(format!("{}.weight", heads.norm), Tensor::ones(d, candle_core::DType::F32, &device)?);
    }
    Ok(())
}
