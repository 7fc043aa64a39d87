//! Log-probs of target tokens from logits, built from differentiable operations, in the dtype of the logits. Training
//! uses the fused operation of `ops`, which is tested against this definition.

use candle_core::{D, Result, Tensor};

/// `logits [n, V]` → log-softmax over the last axis, `[n, V]`.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// `logits [n, V]`, `targets [n]` u32 → log p(target) at `temperature`, `[n]`.
pub fn token_logprobs(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    log_softmax(&(logits / temperature)?)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)
}

/// `logits [n, V]` → entropy of each row's distribution in nats, `[n]`.
pub fn entropy(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let logp = log_softmax(&(logits / temperature)?)?;
    // A token with probability 0 contributes 0, not −inf · 0 = NaN.
    let p = logp.exp()?;
    let term = (&p * &logp)?;
    p.gt(0.0)?.where_cond(&term, &term.zeros_like()?)?.sum(D::Minus1)?.neg()
}

/// Sums of consecutive runs of `values`, one per length. `lengths` must add up to `values.len()`.
pub fn sequence_sums(values: &[f64], lengths: &[usize]) -> Vec<f64> {
    debug_assert_eq!(values.len(), lengths.iter().sum::<usize>());
    let mut rest = values;
    lengths
        .iter()
        .map(|&n| {
            let (head, tail) = rest.split_at(n.min(rest.len()));
            rest = tail;
            head.iter().sum()
        })
        .collect()
}

/// For each entry the index of its run.
fn owners(values: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let owner: Vec<u32> = (0u32..).zip(lengths).flat_map(|(i, &n)| std::iter::repeat_n(i, n)).collect();
    Tensor::new(owner, values.device())
}

/// `values [n]` → sums of consecutive runs, `[lengths.len()]`, with gradient.
pub fn sequence_sums_tensor(values: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let owner = owners(values, lengths)?;
    Tensor::zeros(lengths.len(), values.dtype(), values.device())?.index_add(&owner, &values.contiguous()?, 0)
}

/// `values [n]` → the mean of its run at every entry, `[n]`, with gradient.
pub fn sequence_means_tensor(values: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let shares: Vec<f64> = lengths.iter().map(|&n| 1.0 / n as f64).collect();
    let shares = Tensor::new(shares, values.device())?.to_dtype(values.dtype())?;
    let means = (sequence_sums_tensor(values, lengths)? * shares)?;
    means.index_select(&owners(values, lengths)?, 0)
}

/// One value per sequence → one value per token.
pub fn per_token(values: &[f64], lengths: &[usize]) -> Vec<f64> {
    values.iter().zip(lengths).flat_map(|(&v, &n)| std::iter::repeat_n(v, n)).collect()
}
