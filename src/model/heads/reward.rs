//! Reward model: one linear row maps the hidden state that summarises a conversation to a score. Several rows are
//! either an ensemble, whose mean is the score and whose standard deviation measures its uncertainty, or a head for the
//! ranking and one for each of a rubric's dimensions, whose weighted sum is the score.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::RewardScore;
use crate::model::heads::trunk::{Build, Trunk};
use crate::model::{Decoder, Loaded, ModelConfig, PackedBatch, Purpose, Weights};
use crate::tokenizer::EncoderToken;

/// Name of the head, [heads, hidden]; with one row as in Hugging Face's `…ForSequenceClassification`.
pub const SCORE: &str = "score.weight";

/// A head's raw score becomes `gain · raw + bias`, which scales reference completions to mean 0 and variance 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub gain: f64,
    pub bias: f64,
}

/// One head of a model with a head for each of several dimensions, as in instructd.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// [`RANKING`](crate::domain::RANKING), or the key of a dimension.
    pub name: String,
    /// Factor of the head's scaled score in the model's score.
    pub weight: f64,
}

/// How the raw scores of a model's heads become its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    /// One for each head.
    pub scales: Vec<Scale>,
    /// One for each head; empty for an ensemble.
    pub parts: Vec<Part>,
}

/// Scores conversations. Frozen: built for forward passes only.
pub struct RewardModel {
    trunk: Trunk,
    separator: Option<u32>,
    /// [heads, d]
    head: Tensor,
    scoring: Scoring,
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
        let (head, scoring) = head(loaded)?;
        let trunk = Trunk::build(&headless(&loaded.config), &loaded.weights, None, purpose)?;
        Ok(Self { trunk, separator: separator(loaded), head, scoring })
    }

    /// A reward model over a backbone that is there already, for instance on a device; `loaded` has its head.
    ///
    /// # Errors
    /// When the model has no `score.weight`, or the number of scales differs from the number of heads.
    pub fn over(trunk: Trunk, loaded: &Loaded) -> Result<Self> {
        let (head, scoring) = head(loaded)?;
        Ok(Self { trunk, separator: separator(loaded), head, scoring })
    }

    /// Its decoder; `None` for encoders.
    pub fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        self.trunk.decoder_mut()
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
        Ok(raw.iter().map(|heads| self.scoring.combine(heads)).collect())
    }

    /// The scaled scores of all heads, one row per conversation.
    pub fn scores_of_heads(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<Vec<f64>>> {
        let raw = self.raw(conversations, max_tokens)?;
        Ok(raw.iter().map(|heads| self.scoring.scaled(heads)).collect())
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
            let summaries = self.trunk.frozen_summaries(&PackedBatch::new(now), self.separator)?;
            scores.extend(summaries.matmul(&self.head.t()?)?.to_vec2::<f32>()?);
            rest = later;
        }
        Ok(scores)
    }

    /// Number of heads of the ensemble; 1 for a model with heads for a rubric's dimensions.
    pub fn n_members(&self) -> usize {
        if self.scoring.parts.is_empty() { self.scoring.scales.len() } else { 1 }
    }

    /// The heads for the ranking and for a rubric's dimensions; empty for other models.
    pub fn parts(&self) -> &[Part] {
        &self.scoring.parts
    }

    /// Replaces the weights of the heads. A head that `weights` does not name gets 0.
    ///
    /// # Errors
    /// When a name is not that of a head.
    pub fn set_weights(&mut self, weights: &BTreeMap<String, f64>) -> std::result::Result<(), String> {
        let known: Vec<&str> = self.scoring.parts.iter().map(|part| part.name.as_str()).collect();
        if let Some(other) = weights.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(match known.is_empty() {
                true => "the reward model has no heads for dimensions".to_owned(),
                false => format!("the reward model has no head {other:?}; it has {}", known.join(", ")),
            });
        }
        let of = |name: &str| weights.get(name).copied().unwrap_or(0.0);
        self.scoring.parts.iter_mut().for_each(|part| part.weight = of(&part.name));
        Ok(())
    }
}

impl Scoring {
    /// The scaled score of each head.
    pub fn scaled(&self, raw: &[f32]) -> Vec<f64> {
        raw.iter().zip(&self.scales).map(|(raw, s)| s.gain * f64::from(*raw) + s.bias).collect()
    }

    /// The score as a linear function of the heads' raw scores: a factor for each of them, and a constant.
    pub fn linear(&self) -> (Vec<f64>, f64) {
        let weight = |i: usize| self.parts.get(i).map_or(1.0 / self.scales.len() as f64, |part| part.weight);
        let weighted = self.scales.iter().enumerate().map(|(i, scale)| (weight(i), scale));
        let gains = weighted.clone().map(|(weight, scale)| weight * scale.gain).collect();
        (gains, weighted.map(|(weight, scale)| weight * scale.bias).sum())
    }

    /// The score of one completion from the raw scores of all heads.
    pub fn combine(&self, raw: &[f32]) -> RewardScore {
        let scaled = self.scaled(raw);
        if !self.parts.is_empty() {
            let mean = self.parts.iter().zip(&scaled).map(|(part, score)| part.weight * score).sum();
            let parts = self.parts.iter().map(|part| part.name.clone()).zip(scaled).collect();
            return RewardScore { mean, std: 0.0, parts, tokens: 0 };
        }
        let n = scaled.len() as f64;
        let mean = scaled.iter().sum::<f64>() / n;
        let variance = scaled.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        RewardScore { mean, std: variance.sqrt(), parts: BTreeMap::new(), tokens: 0 }
    }
}

/// Returns the head [heads, d] and how its rows become a score.
///
/// # Errors
/// When there is no head, or its shape does not fit the model, the scales and the parts.
pub fn head(loaded: &Loaded) -> Result<(Tensor, Scoring)> {
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
    let parts: Vec<Part> = match loaded.instructd.as_ref().and_then(|v| v.pointer("/reward/parts")) {
        None | Some(Value::Null) => Vec::new(),
        Some(found) => serde_json::from_value(found.clone())
            .map_err(|e| candle_core::Error::Msg(format!("instructd.json: reward.parts: {e}")))?,
    };
    if !parts.is_empty() && parts.len() != rows {
        candle_core::bail!("instructd.json gives {} names in reward.parts for {rows} heads", parts.len());
    }
    Ok((head.detach(), Scoring { scales: both.map(|(gain, bias)| Scale { gain, bias }).collect(), parts }))
}

/// The id that ends the prompt in an encoder's input; `None` for decoders and tokenizers without one.
pub fn separator(loaded: &Loaded) -> Option<u32> {
    let encoder = loaded.config.is_encoder();
    let tokenizer = loaded.tokenizer.as_ref().filter(|_| encoder)?;
    tokenizer.role_id(EncoderToken::Sep)
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
