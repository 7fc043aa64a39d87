//! Rows of a step whose input embedding is given instead of looked up: soft prompts in serving.

use candle_core::{Result, Tensor};

/// The input embeddings [n, d] of rows `row..row + n`, whose ids are placeholders.
#[derive(Clone, Debug)]
pub struct SoftRows {
    pub row: usize,
    pub embeddings: Tensor,
}

/// `x` [N, d] with the rows of every entry of `soft` (ascending, not overlapping) replaced.
pub(in crate::model) fn replace_rows(x: Tensor, soft: &[SoftRows]) -> Result<Tensor> {
    if soft.is_empty() {
        return Ok(x);
    }
    let (n, mut done) = (x.dim(0)?, 0);
    let mut parts = Vec::with_capacity(2 * soft.len() + 1);
    for s in soft {
        let count = s.embeddings.dim(0)?;
        if s.row < done || s.row + count > n {
            candle_core::bail!("soft rows {}..{} do not fit after row {done} of {n}", s.row, s.row + count);
        }
        if s.row > done {
            parts.push(x.narrow(0, done, s.row - done)?);
        }
        parts.push(s.embeddings.to_device(x.device())?.to_dtype(x.dtype())?);
        done = s.row + count;
    }
    if done < n {
        parts.push(x.narrow(0, done, n - done)?);
    }
    Tensor::cat(&parts, 0)
}
