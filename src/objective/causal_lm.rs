//! Next-token loss: the mean of −log p over the target tokens of the global batch.

use candle_core::{Result, Tensor};

use super::{Stats, sum_f64};

/// `logprobs [n]` of the target tokens (row i predicts token i+1; prompt tokens are simply not rows here),
/// `total_tokens` of the global batch → loss and `loss` (nats per token).
pub fn loss(logprobs: &Tensor, total_tokens: f64) -> Result<(Tensor, Stats)> {
    let loss = (logprobs.sum_all()?.neg()? / total_tokens)?;
    let mut stats = Stats::default();
    stats.add("loss", -sum_f64(logprobs)?, logprobs.elem_count() as f64);
    Ok((loss, stats))
}
