//! The rows of a batch whose hidden states a caller needs: the last ones of every sequence. Where these are not all, a decoder's last block computes queries and
//! the feed-forward network for these rows only (keys and values are needed of every token).

use std::sync::Arc;

use crate::model::PackedBatch;
use crate::ops::attention::AttentionSpec;
use crate::ops::rope::Row;
use crate::ops::{embedding, pool};

/// The rows for which the last block computes an output.
pub(in crate::model) struct OutputRows {
    /// The rows in the batch, ascending.
    pub rows: Vec<u32>,
    /// Their indices in the tables of rotary positions.
    pub rotary: Vec<Row>,
    /// Attention of these rows to all rows of their sequence.
    pub attention: AttentionSpec,
}

impl OutputRows {
    /// The last `lengths[i]` rows of sequence i; `None` if those are all rows. `rotary` has an entry for each row.
    pub fn new(batch: &PackedBatch, rotary: &[Row], lengths: &[usize], all: &AttentionSpec) -> Option<Self> {
        let (rows, queries) = rows(batch, lengths);
        if rows.len() == batch.len() {
            return None;
        }
        let rotary = rows.iter().map(|r| rotary[*r as usize]).collect();
        Some(Self { rows, rotary, attention: AttentionSpec { queries: Some(Arc::new(queries)), ..all.clone() } })
    }

    /// These rows of x [n, d], as [rows, d] in a buffer of the pool.
    pub fn pick(&self, x: &[f32], d: usize) -> Vec<f32> {
        let mut own = pool::take(self.rows.len() * d);
        embedding::gather(x, &self.rows, d, &mut own);
        own
    }

    /// Adds `own` [rows, d] to these rows of x [n, d].
    pub fn add(&self, own: &[f32], x: &mut [f32], d: usize) {
        for (row, own) in self.rows.iter().zip(own.chunks_exact(d)) {
            let to = &mut x[*row as usize * d..][..d];
            to.iter_mut().zip(own).for_each(|(t, v)| *t += v);
        }
    }
}

/// The last `lengths[i]` rows of every sequence i, and the offset of each sequence among them.
pub(in crate::model) fn rows(batch: &PackedBatch, lengths: &[usize]) -> (Vec<u32>, Vec<usize>) {
    let (mut rows, mut offsets) = (Vec::new(), vec![0]);
    for (span, length) in batch.offsets.windows(2).zip(lengths) {
        rows.extend((span[1] - length..span[1]).map(|r| r as u32));
        offsets.push(rows.len());
    }
    (rows, offsets)
}
