//! Cross-entropy of class scores, and accuracy.

use candle_core::{Result, Tensor};

use super::{Stats, logprobs::log_softmax, sum_f64};

/// `logits [n, classes]`, one class per row, `total` rows of the whole batch → −Σ log p / `total`. Stats:
/// `classification_loss`, `accuracy`.
pub fn loss(logits: &Tensor, classes: &[u32], total: f64) -> Result<(Tensor, Stats)> {
    let index = Tensor::new(classes, logits.device())?.unsqueeze(1)?;
    let picked = log_softmax(logits)?.gather(&index, 1)?.squeeze(1)?;
    let loss = (picked.sum_all()?.neg()? / total)?;
    let mut stats = Stats::default();
    let n = classes.len() as f64;
    stats.add("classification_loss", -sum_f64(&picked)?, n);
    let best: Vec<u32> = logits.detach().argmax(1)?.to_vec1()?;
    stats.add("accuracy", best.iter().zip(classes).filter(|(a, b)| a == b).count() as f64, n);
    Ok((loss, stats))
}
