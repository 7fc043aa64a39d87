//! The backward pass of a decoder's blocks. Gradients of the weights go straight into the sums of `ops::grad`;
//! activations are freed block by block.

use candle_core::Result;

use super::Activation;
use super::blocks::{Attn, Blocks, Inner, for_each_part, inner};
use super::layer::{Layer, Mlp, Projections};
use super::tails::Tails;
use crate::ops::{activation, attention, embedding, grad, pool, rope};

impl Blocks {
    /// `gy`: the gradient of the result.
    pub(super) fn back(&self, gy: &[f32]) -> Result<()> {
        if !grad::active() {
            candle_core::bail!("the backward pass of a decoder runs inside ops::grad::collecting");
        }
        let trace = self.trace.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some((kept, last)) = trace else { candle_core::bail!("a decoder's backward pass runs once") };
        let decoder = &self.decoder;
        let mut g = pool::take(gy.len());
        decoder.final_norm.back(&last, gy, &mut g, false)?;
        pool::give(last);
        let below = decoder.embeddings_trained();
        let lowest = decoder.layers.len() - kept.len();
        for (i, kept) in kept.into_iter().enumerate().rev() {
            let layer = &decoder.layers[lowest + i];
            let attn = match kept.attn {
                Some(attn) => attn,
                None => self.attn(lowest + i, &kept.x)?,
            };
            let inner = match kept.mlp {
                Some(inner) => inner,
                None => inner(layer, &attn.mid)?,
            };
            back_mlp(layer, &attn.mid, inner, &kept.low, &mut g)?;
            g = self.back_attn(lowest + i, &kept.x, attn, g, i > 0 || below)?;
            pool::give(kept.x);
            grad::complete(layer.tensors())?;
        }
        grad::complete(decoder.final_norm.tensors())?;
        if below {
            embedding::scatter(&decoder.embed, &self.ids, &g)?;
            if let Some(table) = &decoder.positions {
                embedding::scatter(table, &self.rows.positions, &g)?;
            }
            // Tied or not, the output matrix has had its gradient: a pass begins at the loss.
            grad::complete(std::iter::once(&decoder.embed).chain(&decoder.positions))?;
        }
        pool::give(g);
        Ok(())
    }

    /// g: gradient of `mid` → of the block's input; that only where something below is trained.
    fn back_attn(&self, layer: usize, x: &[f32], attn: Attn, g: Vec<f32>, below: bool) -> Result<Vec<f32>> {
        let (tails, layer) = (self.tails(layer), &self.decoder.layers[layer]);
        let d = self.decoder.config.hidden_size;
        let (n, asking) = (self.ids.len(), g.len() / d);
        let mut g_mixed = pool::take(attn.mixed.len());
        layer.out.back(&attn.mixed, &attn.low[3], &g, asking, Some((&mut g_mixed, false)))?;
        let [mut gq, mut gk, mut gv] = [&attn.q, &attn.k, &attn.v].map(|t| pool::take(t.len()));
        let spec = tails.map_or(&self.rows.attention, |t| &t.attention);
        attention::backward(spec, [&attn.q, &attn.k, &attn.v, &g_mixed], [&mut gq, &mut gk, &mut gv]);
        pool::give(g_mixed);
        if let Some(table) = &self.decoder.rope {
            rope::rotate(&mut gq, table, tails.map_or(&self.rows.positions, |t| &t.positions), -1.0);
            rope::rotate(&mut gk, table, &self.rows.positions, -1.0);
        }
        let mut normed = pool::take(x.len());
        layer.attn_norm.run(x, &mut normed)?;
        let mut g_normed = pool::take(x.len());
        let needed = below || layer.attn_norm.trained();
        match &layer.attn {
            Projections::Split { q, k, v } => {
                k.back(&normed, &attn.low[1], &gk, n, needed.then_some((&mut g_normed, false)))?;
                v.back(&normed, &attn.low[2], &gv, n, needed.then_some((&mut g_normed, true)))?;
                match tails {
                    None => q.back(&normed, &attn.low[0], &gq, n, needed.then_some((&mut g_normed, true)))?,
                    Some(tails) => {
                        let own = tails.pick(&normed, d);
                        let mut g_own = pool::take(own.len());
                        q.back(&own, &attn.low[0], &gq, asking, needed.then_some((&mut g_own, false)))?;
                        if needed {
                            tails.add(&g_own, &mut g_normed, d);
                        }
                        pool::give(own);
                        pool::give(g_own);
                    }
                }
            }
            Projections::Joint(all) => {
                if let Some(tails) = tails {
                    let mut every = pool::take(n * gq.len() / asking.max(1));
                    every.fill(0.0);
                    tails.add(&gq, &mut every, gq.len() / asking.max(1));
                    pool::give(std::mem::replace(&mut gq, every));
                }
                let mut joint = pool::take(gq.len() + gk.len() + gv.len());
                for_each_part(&mut joint, [&mut gq, &mut gk, &mut gv], n, |row, part| row.copy_from_slice(part));
                all.back(&normed, &attn.low[0], &joint, n, needed.then_some((&mut g_normed, false)))?;
                pool::give(joint);
            }
        }
        let mut g = spread(g, tails, x.len(), d);
        if needed {
            layer.attn_norm.back(x, &g_normed, &mut g, true)?;
        }
        for buffer in [gq, gk, gv, normed, g_normed] {
            pool::give(buffer);
        }
        Ok(g)
    }
}

/// The gradient of the tails' rows as one of all rows.
fn spread(g: Vec<f32>, tails: Option<&Tails>, len: usize, d: usize) -> Vec<f32> {
    let Some(tails) = tails else { return g };
    let mut every = pool::take(len);
    every.fill(0.0);
    tails.add(&g, &mut every, d);
    pool::give(g);
    every
}

/// g: gradient of the block's output → of `mid`.
fn back_mlp(layer: &Layer, mid: &[f32], mut inner: Inner, low: &[f32], g: &mut [f32]) -> Result<()> {
    let down = layer.mlp.down();
    let n = mid.len() / down.out_features();
    // The gradient of the activation, then the activation itself: one pass over gate and up gives all.
    let mut acted = pool::take(inner.up.len());
    let glow = down.back_input(g, n, Some((&mut acted, false)))?;
    match &layer.mlp {
        Mlp::Gated { .. } => activation::swiglu_grad(&mut inner.gate, &mut inner.up, &mut acted),
        Mlp::JointGated { .. } => candle_core::bail!("joined matrices are for serving only"),
        Mlp::Plain { activation, .. } => {
            activation::gelu_grad(&mut inner.up, &mut acted, *activation == Activation::GeluTanh);
        }
    }
    down.back_weights(&acted, low, g, &glow, n)?;
    pool::give(acted);
    let mut normed = pool::take(mid.len());
    layer.mlp_norm.run(mid, &mut normed)?;
    let mut g_normed = pool::take(mid.len());
    match &layer.mlp {
        Mlp::Gated { gate, up, .. } => {
            gate.back(&normed, &inner.low[0], &inner.gate, n, Some((&mut g_normed, false)))?;
            up.back(&normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, true)))?;
        }
        Mlp::Plain { up, .. } => {
            up.back(&normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, false)))?;
        }
        Mlp::JointGated { .. } => {}
    }
    pool::give(normed);
    layer.mlp_norm.back(mid, &g_normed, g, true)?;
    pool::give(g_normed);
    Ok(())
}
