//! The parameters of attention over packed sequences.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

/// Heads, sequences and mask of an attention. Rows `offsets[s]..offsets[s + 1]` of q, k and v belong to sequence s.
#[derive(Clone, Debug, Default)]
pub struct AttentionSpec {
    pub offsets: Arc<Vec<usize>>,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Whether a position attends only to itself and earlier positions (decoder), or to the whole sequence (encoder).
    pub causal: bool,
    /// If only the last positions of each sequence are queries: the offsets of their rows in q and in the result. Only
    /// the functions on slices support it.
    pub queries: Option<Arc<Vec<usize>>>,
    /// A position attends only to keys less than this number of positions away.
    pub window: Option<usize>,
    /// Factor of the scores; `None` means 1/√head_dim.
    pub scale: Option<f32>,
    /// Scores become cap · tanh(score / cap) (Gemma 2, arXiv 2408.00118).
    pub softcap: Option<f32>,
}

impl AttentionSpec {
    /// Rows of sequence `seq` in k and v.
    pub(super) fn keys(&self, seq: usize) -> Range<usize> {
        self.offsets[seq]..self.offsets[seq + 1]
    }

    /// Rows of sequence `seq` in q: its last positions.
    pub(super) fn query_rows(&self, seq: usize) -> Range<usize> {
        let offsets = self.queries.as_ref().unwrap_or(&self.offsets);
        offsets[seq]..offsets[seq + 1]
    }

    pub fn scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }

    /// The keys to which position `p` of a sequence of `len` tokens attends.
    pub fn visible_keys(&self, p: usize, len: usize) -> Range<usize> {
        let end = if self.causal { p + 1 } else { len };
        match self.window {
            None => 0..end,
            Some(window) => (p + 1).saturating_sub(window)..end.min(p + window),
        }
    }

    /// Approximate number of multiply-adds of the scores.
    pub(super) fn work(&self) -> usize {
        let pairs: usize = self.offsets.windows(2).map(|w| (w[1] - w[0]) * (w[1] - w[0])).sum();
        pairs * self.n_heads * self.head_dim
    }
}

/// A function with the signature of `attention`: (q, k, v, spec) → mixed values.
pub type Attend<'a> = dyn FnMut(&Tensor, &Tensor, &Tensor, &AttentionSpec) -> Result<Tensor> + 'a;
