//! Next-token loss: the mean of −log p over the target tokens of the whole batch.

use candle_core::{Result, Tensor};

use super::{Stats, sum_f64};

/// `logprobs [n]` of the target tokens (without prompt tokens), `total_tokens` of the whole batch → −Σ log p /
/// `total_tokens`. Stats: `loss` (nats per token).
pub fn loss(logprobs: &Tensor, total_tokens: f64) -> Result<(Tensor, Stats)> {
    let loss = (logprobs.sum_all()?.neg()? / total_tokens)?;
    let mut stats = Stats::default();
    stats.add("loss", -sum_f64(logprobs)?, logprobs.elem_count() as f64);
    Ok((loss, stats))
}
