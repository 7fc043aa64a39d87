//! Shared stepping: micro-batches by tokens, gradients that add up to those of the whole batch, and the
//! picking of the rows that a loss needs.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::meter::Stopwatch;
use super::optim::{Grads, Params, Stepping};
use crate::model::{Decoder, PackedBatch};
use crate::ops::token_logprobs::TokenLogprobs;
use crate::ops::{grad, pool};

/// Splits items of `lengths` tokens into groups of at most `max_tokens` (or of one item), longest first:
/// attention work is even within a group, and the order does not depend on chance.
pub fn micro_batches(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for i in order {
        if groups.is_empty() || tokens + lengths[i] > max_tokens {
            groups.push(Vec::new());
            tokens = 0;
        }
        tokens += lengths[i];
        if let Some(group) = groups.last_mut() {
            group.push(i);
        }
    }
    groups
}

/// Sums gradients over micro-batches. Losses must be normalised by the counts of the global batch.
#[derive(Default)]
pub struct Accumulator {
    pub grads: Grads,
    /// Where gradients are applied at once instead of being summed.
    stepping: Option<Rc<RefCell<Stepping>>>,
    /// Spent in backward passes.
    pub seconds: f64,
}

impl Accumulator {
    /// Applies gradients while they are computed. No parameter may get one from two losses.
    pub fn applying(stepping: Stepping) -> Self {
        Self { stepping: Some(Rc::new(RefCell::new(stepping))), ..Self::default() }
    }

    pub fn applies(&self) -> bool {
        self.stepping.is_some()
    }

    /// What `applying` was given, after the last loss.
    pub fn into_stepping(self) -> Option<Stepping> {
        Some(Rc::try_unwrap(self.stepping?).ok()?.into_inner())
    }

    /// Runs the backward pass of `loss` and adds its gradients. The graph is dropped with `loss`.
    pub fn add(&mut self, params: &Params, loss: &Tensor) -> Result<()> {
        let mut watch = Stopwatch::start();
        let sums = params.iter().filter_map(|(name, var)| Some((var.id(), self.grads.remove(name)?))).collect();
        let sink = self.stepping.clone().map(|stepping| -> grad::GradientSink {
            Box::new(move |id, grad| {
                stepping.borrow_mut().apply(id, &grad)?;
                pool::reclaim(grad);
                Ok(())
            })
        });
        let (store, mut sums) = grad::accumulate(sums, sink, || loss.backward());
        let mut store = store?;
        for (name, var) in params {
            let sum = match (sums.remove(&var.id()), store.remove(var)) {
                // Operations without a fused backward leave theirs in candle's store.
                (Some(sum), Some(more)) => (sum + more)?,
                (Some(sum), None) => sum,
                (None, Some(sum)) => sum,
                (None, None) => continue,
            };
            // Gradients may themselves be graph nodes; without detaching, the sum would keep them alive.
            match &self.stepping {
                Some(stepping) => stepping.borrow_mut().apply(var.id(), &sum.detach())?,
                None => {
                    self.grads.insert(name.clone(), sum.detach());
                }
            }
        }
        self.seconds += watch.lap();
        Ok(())
    }
}

/// A token sequence of which only the tail is predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// Index of the first predicted token; at least 1.
    pub start: usize,
}

impl Sequence {
    pub fn new(prompt: &[u32], response: &[u32]) -> Self {
        Self { ids: [prompt, response].concat(), start: prompt.len() }
    }

    /// Tokens that a loss sees.
    pub fn predicted(&self) -> usize {
        self.ids.len() - self.start
    }
}

/// Sequences packed for a forward pass, with the rows that predict their tails.
pub struct Picked {
    pub batch: PackedBatch,
    /// Row of the hidden state *before* each predicted token, end to end.
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
    /// Predicted tokens of each sequence.
    pub lengths: Vec<usize>,
}

impl Picked {
    /// Nothing is read off the last token of a sequence, so it is not fed.
    pub fn new(sequences: &[&Sequence]) -> Self {
        let ids: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..s.ids.len() - 1]).collect();
        let batch = PackedBatch::new(&ids);
        let mut picked = Self { rows: Vec::new(), targets: Vec::new(), lengths: Vec::new(), batch };
        for (sequence, &offset) in sequences.iter().zip(&picked.batch.offsets) {
            picked.rows.extend((sequence.start..sequence.ids.len()).map(|t| (offset + t - 1) as u32));
            picked.targets.extend_from_slice(&sequence.ids[sequence.start..]);
            picked.lengths.push(sequence.predicted());
        }
        picked
    }

    /// Hidden states of the picked rows `[n, d]`.
    pub fn hidden(&self, decoder: &Decoder) -> Result<Tensor> {
        decoder.forward_tails(&self.batch, &self.lengths)
    }

    /// Hidden states of the picked rows `[n, d]`, without a gradient also where the decoder has variables.
    pub fn hidden_frozen(&self, decoder: &Decoder) -> Result<Tensor> {
        decoder.frozen_tails(&self.batch, &self.lengths)
    }

    /// Log-probs and entropies of the picked targets `[n]` at `temperature`.
    pub fn logprobs(&self, decoder: &Decoder, hidden: &Tensor, temperature: f64) -> Result<TokenLogprobs> {
        decoder.token_logprobs(hidden, &self.targets, temperature as f32)
    }

    /// The same values, with a gradient of the entropies too; the backward pass computes the logits again.
    pub fn logprobs_and_entropy(&self, decoder: &Decoder, hidden: &Tensor, temperature: f64) -> Result<TokenLogprobs> {
        decoder.token_logprobs_and_entropy(hidden, &self.targets, temperature as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_hold_everything_once_within_the_limit() {
        let lengths = [5, 9, 3, 12, 1, 7];
        let groups = micro_batches(&lengths, 10);
        let mut all: Vec<usize> = groups.concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        assert!(groups.iter().all(|g| g.len() == 1 || g.iter().map(|&i| lengths[i]).sum::<usize>() <= 10));
        assert!(groups.contains(&vec![3]));
    }

    /// Off by one at the first response token is the classic error of response masks.
    #[test]
    fn rows_sit_before_their_targets() {
        let (a, b) = (Sequence::new(&[10, 11], &[12, 13]), Sequence::new(&[20], &[21, 22]));
        let picked = Picked::new(&[&a, &b]);
        assert_eq!(picked.batch.ids, [10, 11, 12, 20, 21], "the last token predicts nothing");
        assert_eq!(picked.rows, [1, 2, 3, 4]);
        assert_eq!(picked.targets, [12, 13, 21, 22]);
        assert_eq!(picked.lengths, [2, 2]);
    }
}
