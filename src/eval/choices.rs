//! Decides between given answers by their log-probs: length normalisation, contextual calibration
//! (arXiv 2102.09690), verbalizers, softmax. Pure arithmetic in f64.

use serde::{Deserialize, Serialize};

/// How a text's score is computed from the log-probs of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// The sum over tokens: the probability of the text.
    #[default]
    None,
    /// The mean per token.
    Tokens,
    /// The mean per UTF-8 byte: comparable between tokenizers.
    Bytes,
}

/// log p of one text in its context.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// One for each token that was scored.
    pub logprobs: Vec<f32>,
    /// UTF-8 bytes of the text.
    pub bytes: usize,
}

impl Scored {
    pub fn sum(&self) -> f64 {
        self.logprobs.iter().map(|l| f64::from(*l)).sum()
    }

    pub fn per_token(&self) -> f64 {
        self.sum() / self.logprobs.len().max(1) as f64
    }

    pub fn score(&self, normalize: Normalize) -> f64 {
        match normalize {
            Normalize::None => self.sum(),
            Normalize::Tokens => self.per_token(),
            Normalize::Bytes => self.sum() / self.bytes.max(1) as f64,
        }
    }
}

/// ln Σ exp(x); −∞ for an empty list.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + values.iter().map(|v| (v - most).exp()).sum::<f64>().ln()
}

/// ln of the mean of exp(x): the average probability over content-free inputs.
pub fn log_mean_exp(values: &[f64]) -> f64 {
    log_sum_exp(values) - (values.len() as f64).ln()
}

/// One class with the scores of its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Position in the request.
    pub index: usize,
    /// The offset of calibration; 0 without calibration.
    pub offset: f64,
    /// Log-sum over the words' scores, minus `offset`.
    pub score: f64,
    pub probability: f64,
}

/// Decides between classes, best first; ties keep the order of the request. `words[c]` are the scores of
/// class c's words after the prompt, `content_free[k][c]` the same after the k-th content-free prompt.
pub fn decide(words: &[Vec<f64>], content_free: &[Vec<Vec<f64>>]) -> Vec<Decided> {
    let raw: Vec<f64> = words.iter().map(|w| log_sum_exp(w)).collect();
    let offset = |c: usize| {
        let scores: Vec<f64> = content_free.iter().map(|classes| log_sum_exp(&classes[c])).collect();
        if scores.is_empty() { 0.0 } else { log_mean_exp(&scores) }
    };
    let scores: Vec<(f64, f64)> = raw.iter().enumerate().map(|(c, raw)| (*raw, offset(c))).collect();
    let total = log_sum_exp(&scores.iter().map(|(raw, offset)| raw - offset).collect::<Vec<_>>());
    let one = |(index, (raw, offset)): (usize, &(f64, f64))| {
        let score = raw - offset;
        Decided { index, offset: *offset, score, probability: (score - total).exp() }
    };
    let mut decided: Vec<_> = scores.iter().enumerate().map(one).collect();
    decided.sort_by(|a, b| b.score.total_cmp(&a.score));
    decided
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_takes_the_bias_off() {
        // The model likes class 0 whatever stands there: p = 0.8 after nothing, 0.7 after the case.
        let words = vec![vec![0.7f64.ln()], vec![0.3f64.ln()]];
        let free = vec![vec![vec![0.9f64.ln()], vec![0.1f64.ln()]], vec![vec![0.7f64.ln()], vec![0.3f64.ln()]]];
        let plain = decide(&words, &[]);
        assert_eq!((plain[0].index, plain[1].index), (0, 1));
        assert!((plain[0].probability - 0.7).abs() < 1e-12);
        let calibrated = decide(&words, &free);
        assert_eq!(calibrated[0].index, 1);
        let (good, bad) = (0.3 / 0.2, 0.7 / 0.8);
        assert!((calibrated[0].probability - good / (good + bad)).abs() < 1e-12);
        assert!((calibrated[0].offset - 0.2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn words_of_a_class_add_up() {
        let decided = decide(&[vec![0.2f64.ln(), 0.2f64.ln()], vec![0.3f64.ln()]], &[]);
        assert_eq!(decided[0].index, 0);
        assert!((decided[0].probability - 0.4 / 0.7).abs() < 1e-12);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn scores_by_length() {
        let s = Scored { logprobs: vec![-1.0, -3.0], bytes: 8 };
        assert_eq!([Normalize::None, Normalize::Tokens, Normalize::Bytes].map(|n| s.score(n)), [-4.0, -2.0, -0.5]);
    }
}
