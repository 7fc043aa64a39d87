//! Importance weights of responses that were sampled with other kernels or weights than those of the trainer: the ratio
//! of the trainer's probability to the sampler's, limited by a cap. The formulas are TRL's
//! (`vllm_importance_sampling_mode`).

use serde::{Deserialize, Serialize};

use super::logprobs::sequence_sums;

/// The unit of a ratio, and the handling of ratios above the cap. TRL's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SamplerCorrection {
    /// A whole response; a response beyond the cap is left out of the loss.
    #[default]
    SequenceMask,
    /// A whole response; a ratio beyond the cap counts as the cap.
    SequenceTruncate,
    /// Each token; a token beyond the cap is left out of the loss.
    TokenMask,
    /// Each token; a ratio beyond the cap counts as the cap.
    TokenTruncate,
}

/// Weights of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportanceWeights {
    /// The weight of every token `[n]`.
    pub tokens: Vec<f64>,
    /// Minimum, mean and maximum of the weights; of responses in the modes of whole responses, else of tokens.
    pub least: f64,
    pub mean: f64,
    pub greatest: f64,
    /// The share of ratios above the cap.
    pub beyond: f64,
}

/// The weights of responses of `lengths` tokens, from their tokens' log-probs `[n]` by the trainer and by the sampler:
/// e^(trainer − sampler) of each token, or e^Σ(trainer − sampler) of each response; beyond `cap` it is 0 or `cap`.
pub fn weights(
    trainer: &[f64],
    sampler: &[f64],
    lengths: &[usize],
    correction: SamplerCorrection,
    cap: f64,
) -> ImportanceWeights {
    let differences: Vec<f64> = trainer.iter().zip(sampler).map(|(t, s)| t - s).collect();
    let by_sequence = matches!(correction, SamplerCorrection::SequenceMask | SamplerCorrection::SequenceTruncate);
    let masks = matches!(correction, SamplerCorrection::SequenceMask | SamplerCorrection::TokenMask);
    let logs = if by_sequence { sequence_sums(&differences, lengths) } else { differences };
    let ratios: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
    let beyond = ratios.iter().filter(|ratio| **ratio > cap).count() as f64 / ratios.len().max(1) as f64;
    let capped: Vec<f64> = ratios
        .into_iter()
        .map(|ratio| match (ratio > cap, masks) {
            (false, _) => ratio,
            (true, true) => 0.0,
            (true, false) => cap,
        })
        .collect();
    let mean = capped.iter().sum::<f64>() / capped.len().max(1) as f64;
    let (least, greatest) =
        (capped.iter().copied().fold(f64::INFINITY, f64::min), capped.iter().copied().fold(0.0, f64::max));
    let tokens = match by_sequence {
        true => capped.iter().zip(lengths).flat_map(|(weight, n)| std::iter::repeat_n(*weight, *n)).collect(),
        false => capped,
    };
    ImportanceWeights { tokens, least, mean, greatest, beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_log_probs_weigh_one_exactly() {
        let logprobs = [-1.25, -0.5, -3.0];
        for correction in [
            SamplerCorrection::SequenceMask,
            SamplerCorrection::SequenceTruncate,
            SamplerCorrection::TokenMask,
            SamplerCorrection::TokenTruncate,
        ] {
            let found = weights(&logprobs, &logprobs, &[2, 1], correction, 3.0);
            assert_eq!(found.tokens, [1.0; 3]);
            assert_eq!((found.least, found.mean, found.greatest, found.beyond), (1.0, 1.0, 1.0, 0.0));
        }
    }
}
