//! Robust DPO (rDPO, arXiv 2403.00409): an unbiased estimate of DPO's loss for preferences that are flipped with a
//! known probability.

use candle_core::{Result, Tensor};

use super::log_sigmoid;

/// `x [m]` = β·h with gradient, ε below ½ → ((1 − ε)·L(x) − ε·L(−x)) / (1 − 2ε) with L(x) = −log σ(x), `[m]`.
/// Its expectation over flipped labels is L of the true order.
pub fn terms(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let as_given = log_sigmoid(x)?.neg()?;
    let flipped = log_sigmoid(&x.neg()?)?.neg()?;
    ((as_given * (1.0 - epsilon))? - (flipped * epsilon)?)? / (1.0 - 2.0 * epsilon)
}
