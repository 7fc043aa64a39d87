//! Micro-batches by tokens, gradients that are summed over them, and batches of sequences with the rows that a loss
//! needs.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::meter::Stopwatch;
use super::optim::{Grads, OptimizerInBackward, Params};
use super::token_file::TokenIds;
use crate::model::decoder::attached::{Keep, Wanted};
use crate::model::{Decoder, PackedBatch};
use crate::ops::token_logprobs::TokenLogprobs;
use crate::ops::{grad, pool};

/// Splits items of `lengths` tokens into groups of at most `max_tokens` tokens, or of one longer item. The longest
/// items come first, so that the items of a group have similar lengths; the order is deterministic.
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

/// Sums gradients over micro-batches. Losses must be normalised by the counts of the whole batch.
#[derive(Default)]
pub struct Accumulator {
    pub grads: Grads,
    /// The optimizer, if gradients are applied during the backward pass instead of being summed.
    in_backward: Option<Rc<RefCell<OptimizerInBackward>>>,
    /// Time spent in backward passes.
    pub seconds: f64,
}

impl Accumulator {
    /// An accumulator that applies gradients during the backward pass. No parameter may get gradients from two losses.
    pub fn applying(in_backward: OptimizerInBackward) -> Self {
        Self { in_backward: Some(Rc::new(RefCell::new(in_backward))), ..Self::default() }
    }

    pub fn applies(&self) -> bool {
        self.in_backward.is_some()
    }

    /// The optimizer that was passed to `applying`, after the last loss.
    pub fn into_optimizer(self) -> Option<OptimizerInBackward> {
        Some(Rc::try_unwrap(self.in_backward?).ok()?.into_inner())
    }

    /// Runs the backward pass of `loss` and adds its gradients.
    pub fn add(&mut self, params: &Params, loss: &Tensor) -> Result<()> {
        let mut watch = Stopwatch::start();
        let sums = params.iter().filter_map(|(name, var)| Some((var.id(), self.grads.remove(name)?))).collect();
        let sink = self.in_backward.clone().map(|in_backward| -> grad::GradientSink {
            Box::new(move |id, grad| {
                in_backward.borrow_mut().apply(id, &grad)?;
                pool::reclaim(grad);
                Ok(())
            })
        });
        let (store, mut sums) = grad::accumulate(sums, sink, || loss.backward());
        let mut store = store?;
        for (name, var) in params {
            let sum = match (sums.remove(&var.id()), store.remove(var)) {
                // Gradients of operations without a fused backward pass are in candle's store.
                (Some(sum), Some(more)) => (sum + more)?,
                (Some(sum), None) => sum,
                (None, Some(sum)) => sum,
                (None, None) => continue,
            };
            // Gradients may be nodes of a graph, which the sum would keep alive without `detach`.
            match &self.in_backward {
                Some(in_backward) => in_backward.borrow_mut().apply(var.id(), &sum.detach())?,
                None => {
                    self.grads.insert(name.clone(), sum.detach());
                }
            }
        }
        self.seconds += watch.lap();
        Ok(())
    }
}

/// A sequence of tokens of which those from `start` on are predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub ids: TokenIds,
    /// Index of the first predicted token; at least 1.
    pub start: usize,
}

impl Sequence {
    pub fn new(prompt: &[u32], response: &[u32]) -> Self {
        Self { ids: [prompt, response].concat().into(), start: prompt.len() }
    }

    /// Number of predicted tokens.
    pub fn predicted(&self) -> usize {
        self.ids.len() - self.start
    }
}

/// A conversation of which only the tokens of some turns are predicted; it ends with such a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnSequence {
    pub ids: TokenIds,
    /// The ranges of predicted tokens, ascending and not empty. The first begins at 1 or later, and the last is at the end.
    pub predicted: Vec<Range<usize>>,
}

/// Sequences packed for a forward pass, with the rows that predict tokens.
pub struct PredictionBatch {
    pub batch: PackedBatch,
    /// For each predicted token of all sequences, the row of the hidden state before it.
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
    /// Number of predicted tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Number of tokens of each sequence from its first predicted one on.
    spans: Vec<usize>,
    /// Indices of the predicted tokens among those of the spans, if these are not all.
    picked: Option<Vec<u32>>,
}

impl PredictionBatch {
    /// Packs sequences without their last tokens, which predict nothing.
    pub fn new(sequences: &[&Sequence]) -> Self {
        let ids: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..s.ids.len() - 1]).collect();
        let batch = PackedBatch::new(&ids);
        let (rows, targets, lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut packed = Self { rows, targets, lengths, spans: Vec::new(), picked: None, batch };
        for (sequence, &offset) in sequences.iter().zip(&packed.batch.offsets) {
            packed.rows.extend((sequence.start..sequence.ids.len()).map(|t| (offset + t - 1) as u32));
            packed.targets.extend_from_slice(&sequence.ids[sequence.start..]);
            packed.lengths.push(sequence.predicted());
            packed.spans.push(sequence.predicted());
        }
        packed
    }

    /// Packs conversations without their last tokens, which predict nothing.
    pub fn of_turns(conversations: &[&TurnSequence]) -> Self {
        let ids: Vec<&[u32]> = conversations.iter().map(|c| &c.ids[..c.ids.len() - 1]).collect();
        let batch = PackedBatch::new(&ids);
        let (rows, targets, lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut packed = Self { rows, targets, lengths, spans: Vec::new(), picked: None, batch };
        let (mut picked, mut spanned) = (Vec::new(), 0);
        for (conversation, &offset) in conversations.iter().zip(&packed.batch.offsets) {
            let start = conversation.predicted.first().map_or(conversation.ids.len(), |turn| turn.start);
            for turn in &conversation.predicted {
                packed.rows.extend(turn.clone().map(|t| (offset + t - 1) as u32));
                packed.targets.extend_from_slice(&conversation.ids[turn.clone()]);
                picked.extend(turn.clone().map(|t| (spanned + t - start) as u32));
            }
            packed.lengths.push(conversation.predicted.iter().map(Range::len).sum());
            packed.spans.push(conversation.ids.len() - start);
            spanned += conversation.ids.len() - start;
        }
        packed.picked = (picked.len() < spanned).then_some(picked);
        packed
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { batch: &self.batch, rows: &self.rows, targets: Some(&self.targets) }
    }

    /// Hidden states of the predicting rows, `[n, hidden]`.
    pub fn hidden(&self, decoder: &Decoder) -> Result<Tensor> {
        if let Some(device) = decoder.attached() {
            return device.hidden(decoder, self.wanted(), Keep::All);
        }
        self.pick(decoder.forward_last(&self.batch, &self.spans)?)
    }

    /// Hidden states of the predicting rows, `[n, hidden]`, without a gradient even if the decoder has variables.
    pub fn hidden_frozen(&self, decoder: &Decoder) -> Result<Tensor> {
        if let Some(device) = decoder.attached() {
            return device.hidden(decoder, self.wanted(), Keep::Hidden);
        }
        self.pick(decoder.forward_last_frozen(&self.batch, &self.spans)?)
    }

    /// The predicting rows among those of the spans.
    fn pick(&self, hidden: Tensor) -> Result<Tensor> {
        match &self.picked {
            None => Ok(hidden),
            Some(picked) => hidden.index_select(&Tensor::new(picked.as_slice(), hidden.device())?, 0),
        }
    }

    /// Log-probs and entropies of the targets, `[n]`, at `temperature`. The entropies have no gradient.
    pub fn scores(&self, decoder: &Decoder, temperature: f64) -> Result<TokenLogprobs> {
        match decoder.attached() {
            // The hidden states stay on the device.
            Some(device) => device.logprobs(decoder, self.wanted(), temperature as f32, true),
            None => self.logprobs(decoder, &self.hidden(decoder)?, temperature),
        }
    }

    /// The `scores` without a gradient, even if the decoder has variables.
    pub fn scores_frozen(&self, decoder: &Decoder, temperature: f64) -> Result<TokenLogprobs> {
        match decoder.attached() {
            Some(device) => device.logprobs(decoder, self.wanted(), temperature as f32, false),
            None => self.logprobs(decoder, &self.hidden_frozen(decoder)?, temperature),
        }
    }

    /// The `scores`, from the hidden states that `hidden` or `hidden_frozen` has just returned.
    pub fn logprobs(&self, decoder: &Decoder, hidden: &Tensor, temperature: f64) -> Result<TokenLogprobs> {
        if let Some(device) = decoder.attached() {
            return device.logprobs_of(hidden, temperature as f32);
        }
        decoder.token_logprobs(hidden, &self.targets, temperature as f32)
    }

    /// Log-probs and entropies of the targets, `[n]`, at `temperature`, both with a gradient. The backward pass
    /// recomputes the logits.
    pub fn logprobs_and_entropy(&self, decoder: &Decoder, hidden: &Tensor, temperature: f64) -> Result<TokenLogprobs> {
        if decoder.attached().is_some() {
            candle_core::bail!("a device computes no gradient of entropies");
        }
        decoder.token_logprobs_and_entropy(hidden, &self.targets, temperature as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_contain_every_item_once_and_stay_within_the_limit() {
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
    fn rows_precede_their_targets() {
        let (a, b) = (Sequence::new(&[10, 11], &[12, 13]), Sequence::new(&[20], &[21, 22]));
        let packed = PredictionBatch::new(&[&a, &b]);
        assert_eq!(packed.batch.ids, [10, 11, 12, 20, 21], "the last token predicts nothing");
        assert_eq!(packed.rows, [1, 2, 3, 4]);
        assert_eq!(packed.targets, [12, 13, 21, 22]);
        assert_eq!(packed.lengths, [2, 2]);
        assert_eq!((packed.spans, packed.picked), (vec![2, 2], None));
    }

    #[test]
    fn rows_of_turns_precede_their_targets_and_nothing_between_turns_is_picked() {
        let turns = |ids: &[u32], predicted: &[Range<usize>]| TurnSequence {
            ids: ids.to_vec().into(),
            predicted: predicted.to_vec(),
        };
        let a = turns(&[10, 11, 12, 13, 14, 15], &[2..3, 5..6]);
        let b = turns(&[20, 21, 22], std::slice::from_ref(&(1..3)));
        let packed = PredictionBatch::of_turns(&[&a, &b]);
        assert_eq!(packed.batch.ids, [10, 11, 12, 13, 14, 20, 21]);
        assert_eq!((packed.rows, packed.targets), (vec![1, 4, 5, 6], vec![12, 15, 21, 22]));
        assert_eq!((packed.lengths, packed.spans), (vec![2, 2], vec![4, 2]));
        assert_eq!(packed.picked, Some(vec![0, 3, 4, 5]));
        // One turn is a sequence.
        let (one, same) = (PredictionBatch::of_turns(&[&b]), PredictionBatch::new(&[&Sequence::new(&[20], &[21, 22])]));
        assert_eq!((one.rows, one.targets, one.lengths), (same.rows, same.targets, same.lengths));
        assert_eq!((one.spans, one.picked), (same.spans, same.picked));
    }
}
