//! BERT's masked language model (arXiv 1810.04805): the masking of tokens, and the loss on masked tokens.

use candle_core::{Result, Tensor};

use super::Stats;

/// Input ids after masking, and the rows whose original token must be predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    pub ids: Vec<u32>,
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
}

/// Chooses each token that `maskable` allows with probability `rate` (0.15 in the paper); of the chosen,
/// 80 % become `mask_id`, 10 % a uniform random id below `vocab_size`, 10 % stay.
/// `uniform` returns numbers in [0, 1).
pub fn mask_tokens(
    ids: &[u32],
    maskable: impl Fn(usize) -> bool,
    rate: f64,
    mask_id: u32,
    vocab_size: u32,
    mut uniform: impl FnMut() -> f64,
) -> Masked {
    let mut masked = Masked { ids: ids.to_vec(), rows: Vec::new(), targets: Vec::new() };
    for (i, &id) in ids.iter().enumerate() {
        if !maskable(i) || uniform() >= rate {
            continue;
        }
        masked.rows.push(i as u32);
        masked.targets.push(id);
        let kind = uniform();
        if kind < 0.8 {
            masked.ids[i] = mask_id;
        } else if kind < 0.9 {
            masked.ids[i] = ((uniform() * f64::from(vocab_size)) as u32).min(vocab_size.saturating_sub(1));
        }
    }
    masked
}

/// `logprobs [n]` of the original tokens at the masked rows → −Σ log p / `total_tokens` masked tokens of the whole
/// batch.
pub fn loss(logprobs: &Tensor, total_tokens: f64) -> Result<(Tensor, Stats)> {
    super::causal_lm::loss(logprobs, total_tokens)
}
