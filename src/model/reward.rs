//! Reward model: a decoder whose last token's hidden state goes through one linear row to a score.

use candle_core::{Result, Tensor};
use serde_json::Value;

use super::{Decoder, Loaded, ModelConfig, PackedBatch, Purpose, Weights};

/// Name of the head, [1, hidden], as in Hugging Face's `…ForSequenceClassification`.
pub const SCORE: &str = "score.weight";

/// Scores conversations. Frozen: built for forward passes only.
pub struct RewardModel {
    decoder: Decoder,
    head: Tensor,
    /// score = gain · raw + bias, from instructd.json; they bring reference completions to mean 0, variance 1.
    pub gain: f64,
    pub bias: f64,
}

impl RewardModel {
    /// # Errors
    /// When the model has no `score.weight` of one row.
    pub fn new(loaded: &Loaded) -> Result<Self> {
        let number = |name: &str, default| {
            let found = loaded.instructd.as_ref().and_then(|v| v.pointer(&format!("/reward/{name}")));
            found.and_then(Value::as_f64).unwrap_or(default)
        };
        Self::from_weights(&loaded.config, &loaded.weights, number("gain", 1.0), number("bias", 0.0))
    }

    pub fn from_weights(config: &ModelConfig, weights: &Weights, gain: f64, bias: f64) -> Result<Self> {
        let Some(head) = weights.get(SCORE) else { candle_core::bail!("not a reward model: it has no {SCORE}") };
        if head.dims() != [1, config.hidden_size] {
            candle_core::bail!("{SCORE} has shape {:?}, not [1, {}]", head.dims(), config.hidden_size);
        }
        let decoder = Decoder::new(&headless(config), weights, Purpose::Score)?;
        Ok(Self { decoder, head: head.detach(), gain, bias })
    }

    /// Scores of whole conversations as ids, each ending with the end token that training used; sequences
    /// are run `max_tokens` at a time.
    pub fn score(&self, conversations: &[Vec<u32>], max_tokens: usize) -> Result<Vec<f64>> {
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
            let batch = PackedBatch::new(now);
            let raw = scores_of(&self.decoder.forward(&batch)?, &batch.last_rows(), &self.head)?;
            scores.extend(raw.to_vec1::<f32>()?.into_iter().map(|s| self.gain * f64::from(s) + self.bias));
            rest = later;
        }
        Ok(scores)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }
}

/// `hidden [N, d]`, the rows to score, `head [1, d]` → scores `[rows]`, with gradient.
pub fn scores_of(hidden: &Tensor, rows: &[u32], head: &Tensor) -> Result<Tensor> {
    let rows = Tensor::new(rows, hidden.device())?;
    hidden.index_select(&rows, 0)?.matmul(&head.t()?)?.squeeze(1)
}

/// The configuration with tied embeddings: a model that never computes logits needs no output matrix.
pub fn headless(config: &ModelConfig) -> ModelConfig {
    ModelConfig { tie_embeddings: true, ..config.clone() }
}
