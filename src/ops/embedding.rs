//! Row lookup with a scatter-add backward that touches each gradient row in a fixed order.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{buffer, f32s, fused, storage, tensor, with_f32s};

/// Rows `ids` of table [vocab, d] → [n, d].
pub fn embedding(table: &Tensor, ids: &Arc<Vec<u32>>) -> Result<Tensor> {
    let vocab = table.dim(0)?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        candle_core::bail!("id {id} is outside the table of {vocab} rows");
    }
    if fused(table) {
        return table.contiguous()?.apply_op1(Embedding { ids: ids.clone() });
    }
    table.index_select(&Tensor::new(ids.as_slice(), table.device())?, 0)
}

struct Embedding {
    ids: Arc<Vec<u32>>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = f32s(s, l, "embedding")?;
        let d = l.shape().dims2()?.1;
        let mut y = Vec::with_capacity(self.ids.len() * d);
        for id in self.ids.iter() {
            y.extend_from_slice(&table[*id as usize * d..(*id as usize + 1) * d]);
        }
        Ok(storage(y, (self.ids.len(), d)))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let d = table.dim(1)?;
        let mut g = buffer(table.elem_count());
        with_f32s(gy, |gy| {
            for (id, row) in self.ids.iter().zip(gy.chunks_exact(d)) {
                let to = &mut g[*id as usize * d..(*id as usize + 1) * d];
                for (t, v) in to.iter_mut().zip(row) {
                    *t += v;
                }
            }
            Ok(())
        })?;
        Ok(Some(tensor(g, table.shape())?))
    }
}
