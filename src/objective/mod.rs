//! Objectives: pure functions from tensors or numbers to a loss and its statistics, one per file, without models,
//! optimizers and configuration.
//!
//! Inputs are packed: the response tokens of a batch are concatenated to `[n]`, and `lengths` are the lengths of the
//! sequences, so there is no padding. A loss is a sum divided by a count of the whole batch, so the losses of
//! micro-batches add up to that of the batch. Losses have the dtype of their input (f32 in training, f64 in tests
//! against reference values).

pub mod best_of;
pub mod causal_lm;
pub mod classification;
pub mod dpo;
pub mod entropy;
pub mod gae;
pub mod grpo;
pub mod importance;
pub mod judge;
pub mod kl;
pub mod kto;
pub mod logprobs;
pub mod masked_lm;
pub mod orpo;
pub mod ppo;
pub mod preference;
pub mod reinforce;
pub mod reward;
pub mod rloo;
pub mod robust_dpo;
pub mod simpo;
pub mod whiten;

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

/// Weighted means of named statistics. Those of micro-batches merge to the exact means of the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// name → (weighted sum, weight)
    sums: BTreeMap<&'static str, (f64, f64)>,
}

impl Stats {
    /// Adds `sum` accumulated over `weight` items.
    pub fn add(&mut self, name: &'static str, sum: f64, weight: f64) {
        let entry = self.sums.entry(name).or_insert((0.0, 0.0));
        entry.0 += sum;
        entry.1 += weight;
    }

    pub fn merge(&mut self, other: &Stats) {
        for (name, (sum, weight)) in &other.sums {
            self.add(name, *sum, *weight);
        }
    }

    /// Only the statistics of these names.
    pub fn only(mut self, names: &[&str]) -> Self {
        self.sums.retain(|name, _| names.contains(name));
        self
    }

    /// The mean of a statistic; `None` if nothing was added to it.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.sums.get(name).filter(|(_, weight)| *weight > 0.0).map(|(sum, weight)| sum / weight)
    }

    /// All means in the order of their names.
    pub fn means(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.sums.iter().filter(|(_, (_, weight))| *weight > 0.0).map(|(name, (sum, weight))| (*name, sum / weight))
    }
}

/// log σ(x), exact in value and gradient for every finite x, including 0, where formulas with `min` or `abs` are not.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    // log σ(x) = x − log(e^x + e^0). The shift is constant in the graph and cancels.
    let shift = x.detach().relu()?;
    let sum = ((x - &shift)?.exp()? + shift.neg()?.exp()?)?;
    x - (shift + sum.log()?)?
}

/// The sum of all entries as f64.
pub(crate) fn sum_f64(x: &Tensor) -> Result<f64> {
    x.detach().to_dtype(candle_core::DType::F64)?.sum_all()?.to_scalar::<f64>()
}
