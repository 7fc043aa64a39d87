//! Embedding lookup. The backward pass adds to the rows of the gradient in a fixed order.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{f32s, fused, grad, read, storage};

/// The rows `ids` of table `[vocab, hidden]`, `[n, hidden]`.
pub fn embedding(table: &Tensor, ids: &Arc<Vec<u32>>) -> Result<Tensor> {
    embedding_with_padding(table, ids, None)
}

/// The rows `ids` of table `[vocab, hidden]`, `[n, hidden]`. The backward pass adds no gradient to the row `padding`.
pub fn embedding_with_padding(table: &Tensor, ids: &Arc<Vec<u32>>, padding: Option<u32>) -> Result<Tensor> {
    check(table.dim(0)?, ids)?;
    if fused(table) {
        return table.contiguous()?.apply_op1(Embedding { ids: ids.clone(), padding });
    }
    let rows = table.index_select(&Tensor::new(ids.as_slice(), table.device())?, 0)?;
    let Some(padding) = padding.filter(|padding| table.track_op() && ids.contains(padding)) else { return Ok(rows) };
    let trained: Vec<f32> = ids.iter().map(|id| if *id == padding { 0.0 } else { 1.0 }).collect();
    let trained = Tensor::from_vec(trained, (ids.len(), 1), table.device())?.to_dtype(table.dtype())?;
    rows.broadcast_mul(&trained)? + rows.detach().broadcast_mul(&trained.affine(-1.0, 1.0)?)?
}

/// # Errors
/// When an id is not below `vocab`, the number of rows.
pub fn check(vocab: usize, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => candle_core::bail!("id {id} is outside the table of {vocab} rows"),
        None => Ok(()),
    }
}

struct Embedding {
    ids: Arc<Vec<u32>>,
    padding: Option<u32>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = f32s(s, l, "embedding")?;
        let d = l.shape().dims2()?.1;
        let mut y = vec![0f32; self.ids.len() * d];
        gather(table, &self.ids, d, &mut y);
        Ok(storage(y, (self.ids.len(), d)))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        scatter(table, &self.ids, &read(&gy.contiguous()?)?, self.padding)
    }
}

/// Adds the rows of gy `[n, hidden]` to the gradient of `table` at `ids`, except at `padding`. Outside
/// `grad::accumulate`, returns the gradient.
pub fn scatter(table: &Tensor, ids: &[u32], gy: &[f32], padding: Option<u32>) -> Result<Option<Tensor>> {
    let d = table.dim(1)?;
    grad::add(table, |g, add| {
        if !add {
            g.fill(0.0);
        }
        for (id, row) in ids.iter().zip(gy.chunks_exact(d)).filter(|(id, _)| Some(**id) != padding) {
            let to = &mut g[*id as usize * d..(*id as usize + 1) * d];
            for (t, v) in to.iter_mut().zip(row) {
                *t += v;
            }
        }
    })
}

/// Copies the rows `ids` of a table `[vocab, d]` to y `[n, d]`.
pub fn gather(table: &[f32], ids: &[u32], d: usize, y: &mut [f32]) {
    for (row, id) in y.chunks_exact_mut(d).zip(ids) {
        row.copy_from_slice(&table[*id as usize * d..(*id as usize + 1) * d]);
    }
}
