//! Reward model: one linear row maps the hidden state that summarises a conversation to a score. With
//! several rows (an ensemble of heads on one trunk) the score is their mean, and their standard deviation measures its
//! uncertainty.

use candle_core::{Result, Tensor};
use serde_json::Value;

use crate::domain::RewardScore;
use crate::model::heads::trunk::{Build, Trunk};
use crate::model::{Loaded, ModelConfig, PackedBatch, Purpose, Weights};

/// Name of the head, [heads, hidden]; with one row as in Hugging Face's `…ForSequenceClassification`.
pub const SCORE: &str = "score.weight";

/// Ends the prompt in an encoder's input.
const SEPARATOR: &str = "[SEP]";

/// A head's raw score becomes `gain · raw + bias`, which scales reference completions to mean 0 and variance 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub gain: f64,
    pub bias: f64,
}

/// Scores conversations. Frozen: built for forward passes only.
pub struct RewardModel {
    trunk: Trunk,
    separator: Option<u32>,
    /// [heads, d]
    head: Tensor,
    scales: Vec<Scale>,
}

impl RewardModel {
    /// # Errors
    /// When the model has no `score.weight`, or the number of scales differs from the number of heads.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        Self::for_purpose(loaded, Purpose::Score)
    }

    /// Builds a reward model with the arithmetic of `purpose` instead of exact f32.
    ///
    /// # Errors
    /// When the model has no `score.weight`, or the number of scales differs from the number of heads.
    pub fn for_purpose(loaded: &Loaded, purpose: Purpose) -> Result<Self> {
        let (head, scales) = head(loaded)?;
        let trunk = Trunk::build(&headless(&loaded.config), &loaded.weights, None, purpose)?;
        Ok(Self { trunk, separator: separator(loaded), head, scales })
    }

    /// Scores of whole conversations as ids, each ending with the end token that training used; at most `max_tokens`
    /// tokens are computed at a time.
    pub fn score(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<f64>> {
        Ok(self.scores(conversations, max_tokens)?.into_iter().map(|score| score.mean).collect())
    }

    /// Scores of whole conversations as ids, each with the standard deviation over the heads; at most `max_tokens`
    /// tokens are computed at a time.
    pub fn scores(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<RewardScore>> {
        let raw = self.raw(conversations, max_tokens)?;
        Ok(raw.iter().map(|heads| combine(heads, &self.scales)).collect())
    }

    /// The scaled scores of all heads, one row per conversation.
    pub fn scores_of_heads(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<Vec<f64>>> {
        let raw = self.raw(conversations, max_tokens)?;
        Ok(raw.iter().map(|heads| scaled(heads, &self.scales)).collect())
    }

    fn raw(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<Vec<f32>>> {
        let mut scores = Vec::with_capacity(conversations.len());
        let mut rest = conversations;
        while !rest.is_empty() {
            let mut tokens = 0;
            let n = rest.iter().take_while(|c| {
                tokens += c.len();
                tokens <= max_tokens
            });
            let (now, later) = rest.split_at(n.count().max(1));
            if now.iter().any(Vec::is_empty) {
                candle_core::bail!("a conversation has no tokens");
            }
            let summaries = self.trunk.summaries(&PackedBatch::new(now), self.separator)?;
            scores.extend(summaries.matmul(&self.head.t()?)?.to_vec2::<f32>()?);
            rest = later;
        }
        Ok(scores)
    }

    /// Number of heads of the ensemble.
    pub fn n_heads(&self) -> usize {
        self.scales.len()
    }
}

fn scaled(heads: &[f32], scales: &[Scale]) -> Vec<f64> {
    heads.iter().zip(scales).map(|(raw, s)| s.gain * f64::from(*raw) + s.bias).collect()
}

/// Mean and standard deviation over the heads of one completion.
pub fn combine(heads: &[f32], scales: &[Scale]) -> RewardScore {
    let scaled = scaled(heads, scales);
    let n = scaled.len() as f64;
    let mean = scaled.iter().sum::<f64>() / n;
    let variance = scaled.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
    RewardScore { mean, std: variance.sqrt(), tokens: 0 }
}

/// Returns the head [heads, d] and the scale of each row.
///
/// # Errors
/// When there is no head, or its shape does not fit the model and the scales.
pub fn head(loaded: &Loaded) -> Result<(Tensor, Vec<Scale>)> {
    let d = loaded.config.hidden_size;
    let Some(head) = loaded.weights.get(SCORE) else { candle_core::bail!("not a reward model: it has no {SCORE}") };
    let [rows, width] = *head.dims() else {
        candle_core::bail!("{SCORE} has shape {:?}, not [heads, {d}]", head.dims())
    };
    if width != d || rows == 0 {
        candle_core::bail!("{SCORE} has shape {:?}, not [heads, {d}]", head.dims());
    }
    // A classifier's head has several rows too; only an ensemble has a scale for each.
    if rows > 1 && loaded.instructd.as_ref().is_none_or(|v| v.pointer("/reward/gain").is_none()) {
        candle_core::bail!("not a reward model: {SCORE} has {rows} rows and instructd.json no scale for them");
    }
    let numbers = |name: &str, default: f64| -> Result<Vec<f64>> {
        let found = loaded.instructd.as_ref().and_then(|v| v.pointer(&format!("/reward/{name}")));
        let list = match found {
            None | Some(Value::Null) => vec![default; rows],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_f64).collect(),
            Some(one) => one.as_f64().into_iter().collect(),
        };
        match list.len() == rows {
            true => Ok(list),
            false => candle_core::bail!("instructd.json gives {} values of reward.{name} for {rows} heads", list.len()),
        }
    };
    let both = numbers("gain", 1.0)?.into_iter().zip(numbers("bias", 0.0)?);
    Ok((head.detach(), both.map(|(gain, bias)| Scale { gain, bias }).collect()))
}

/// The id that ends the prompt in an encoder's input; `None` for decoders and tokenizers without one.
pub fn separator(loaded: &Loaded) -> Option<u32> {
    let encoder = loaded.config.is_encoder();
    let tokenizer = loaded.tokenizer.as_ref().filter(|_| encoder)?;
    tokenizer.token_to_id(SEPARATOR).or_else(|| tokenizer.token_to_id(tokenizer.named_token("sep_token")?))
}

/// The tensors that a score depends on, without the output matrix, poolers and other tasks' heads.
pub fn below(config: &ModelConfig, weights: &Weights) -> Weights {
    let other = |name: &str| config.family().is_head(name) || name.contains(".pooler.");
    weights.iter().filter(|(name, _)| !other(name)).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// The configuration with tied embeddings: a model that never computes logits needs no output matrix.
pub fn headless(config: &ModelConfig) -> ModelConfig {
    ModelConfig { tie_embeddings: true, ..config.clone() }
}
