//! The backward pass of a decoder's blocks. Gradients of the weights are added directly to the sums of `ops::grad`;
//! activations are freed block by block.

use candle_core::Result;

use crate::model::Decoder;
use crate::model::decoder::blocks::{Attn, Blocks, Inner, for_each_part, for_each_qkv, normed, scale};
use crate::model::decoder::tails::Tails;
use crate::model::layers::Norm;
use crate::model::layers::block::{Layer, Mlp, Projections};
use crate::ops::{activation, add_assign, attention, embedding, grad, pool, rope};

impl Blocks {
    /// Runs the backward pass; `gy` is the gradient of the result.
    pub(in crate::model) fn back(&self, gy: &[f32]) -> Result<()> {
        if !grad::is_accumulating() {
            candle_core::bail!("the backward pass of a decoder runs inside ops::grad::accumulate");
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
                None => self.inner(lowest + i, &kept.x, &attn.mid)?,
            };
            let apart = self.with_source(lowest + i, &kept.x, &attn.mid, |source| {
                back_mlp(decoder, layer, source, inner, [&kept.given, &kept.low], &mut g)
            })?;
            pool::give(kept.given);
            g = self.back_attn(lowest + i, &kept.x, attn, g, apart, i > 0 || below)?;
            pool::give(kept.x);
            grad::complete(layer.tensors())?;
        }
        grad::complete(decoder.final_norm.tensors())?;
        if below {
            // Positions are added after the embeddings are scaled.
            if let Some(table) = &decoder.positions {
                embedding::scatter(table, &self.rows.positions, &g, None)?;
            }
            scale(&mut g, decoder.config.switches.embedding_scale);
            embedding::scatter(&decoder.embed, &self.ids, &g, decoder.config.frozen_padding())?;
            // The output matrix, tied or not, already has its gradient, because the backward pass begins at the loss.
            grad::complete(std::iter::once(&decoder.embed).chain(&decoder.positions))?;
        }
        pool::give(g);
        Ok(())
    }

    /// Gradient g of `mid` → gradient of the block's input, computed only where a lower layer is trained. `apart`: the
    /// gradient that reached the input by other paths than `mid`.
    fn back_attn(
        &self,
        layer: usize,
        x: &[f32],
        attn: Attn,
        mut g: Vec<f32>,
        apart: Option<Vec<f32>>,
        below: bool,
    ) -> Result<Vec<f32>> {
        let (tails, layer, decoder) = (self.tails(layer), &self.decoder.layers[layer], &self.decoder);
        let d = decoder.config.hidden_size;
        let (n, asking) = (self.ids.len(), g.len() / d);
        let mut g_mixed = pool::take(attn.mixed.len());
        let own = back_part(decoder, layer.attn_post.as_ref(), &attn.given, &g)?;
        let g_out = own.as_deref().unwrap_or(&g);
        layer.out.back(&attn.mixed, &attn.low[3], g_out, asking, Some((&mut g_mixed, false)))?;
        pool::give(own.unwrap_or_default());
        if let Some(apart) = apart {
            add_assign(&mut g, &apart);
            pool::give(apart);
        }
        let [mut gq, mut gk, mut gv] = [&attn.q, &attn.k, &attn.v].map(|t| pool::take(t.len()));
        let spec = layer.attention(tails.map_or(&self.rows.attention, |t| &t.attention));
        attention::backward(&spec, [&attn.q, &attn.k, &attn.v, &g_mixed], [&mut gq, &mut gk, &mut gv]);
        pool::give(g_mixed);
        if let Some(table) = &layer.rope {
            rope::rotate(&mut gq, table, tails.map_or(&self.rows.rotary, |t| &t.rotary), -1.0);
            rope::rotate(&mut gk, table, &self.rows.rotary, -1.0);
        }
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            for (norm, raw, g) in [(q_norm, &attn.raw_q, &mut gq), (k_norm, &attn.raw_k, &mut gk)] {
                let mut inner = pool::take(g.len());
                norm.back(raw, g, &mut inner, false)?;
                pool::give(std::mem::replace(g, inner));
            }
        }
        let own = normed(layer.attn_norm.as_ref(), x)?;
        let normed = own.as_deref().unwrap_or(x);
        let mut g_normed = pool::take(x.len());
        let needed = below || layer.attn_norm.as_ref().is_some_and(Norm::trained);
        match &layer.attn {
            Projections::Split { q, k, v } => {
                k.back(normed, &attn.low[1], &gk, n, needed.then_some((&mut g_normed, false)))?;
                v.back(normed, &attn.low[2], &gv, n, needed.then_some((&mut g_normed, true)))?;
                match tails {
                    None => q.back(normed, &attn.low[0], &gq, n, needed.then_some((&mut g_normed, true)))?,
                    Some(tails) => {
                        let own = tails.pick(normed, d);
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
            Projections::Joint { all, by_head } => {
                if let Some(tails) = tails {
                    let mut every = pool::take(n * gq.len() / asking.max(1));
                    every.fill(0.0);
                    tails.add(&gq, &mut every, gq.len() / asking.max(1));
                    pool::give(std::mem::replace(&mut gq, every));
                }
                let mut joint = pool::take(gq.len() + gk.len() + gv.len());
                let by_head = by_head.then_some(decoder.config.head_dim);
                let parts = [gq.as_mut_slice(), &mut gk, &mut gv];
                for_each_qkv(&mut joint, parts, n, by_head, |row, part| row.copy_from_slice(part));
                all.back(normed, &attn.low[0], &joint, n, needed.then_some((&mut g_normed, false)))?;
                pool::give(joint);
            }
        }
        let mut g = spread(g, tails, x.len(), d);
        match &layer.attn_norm {
            Some(norm) if needed => norm.back(x, &g_normed, &mut g, true)?,
            None if needed => add_assign(&mut g, &g_normed),
            _ => {}
        }
        for buffer in [gq, gk, gv, own.unwrap_or_default(), g_normed] {
            pool::give(buffer);
        }
        Ok(g)
    }
}

/// The gradient of the tails' rows, expanded to all rows.
fn spread(g: Vec<f32>, tails: Option<&Tails>, len: usize, d: usize) -> Vec<f32> {
    let Some(tails) = tails else { return g };
    let mut every = pool::take(len);
    every.fill(0.0);
    tails.add(&g, &mut every, d);
    pool::give(g);
    every
}

/// The gradient of a part's output before its norm and factor, from the gradient `g` of the values that were added;
/// `None` when both are equal.
fn back_part(decoder: &Decoder, post: Option<&Norm>, given: &[f32], g: &[f32]) -> Result<Option<Vec<f32>>> {
    let factor = decoder.config.switches.residual_scale;
    if post.is_none() && factor == 1.0 {
        return Ok(None);
    }
    let mut scaled = pool::take(g.len());
    scaled.copy_from_slice(g);
    scale(&mut scaled, factor);
    let Some(post) = post else { return Ok(Some(scaled)) };
    let mut inner = pool::take(g.len());
    post.back(given, &scaled, &mut inner, false)?;
    pool::give(scaled);
    Ok(Some(inner))
}

/// Gradient g of the block's output → gradient of `mid`. Where the feed-forward network has another input than `mid`,
/// returns the gradient of that input and leaves g unchanged. `kept`: its output before the norm, and the inner values
/// of down's adapter.
fn back_mlp(
    decoder: &Decoder,
    layer: &Layer,
    source: &[f32],
    mut inner: Inner,
    [given, low]: [&[f32]; 2],
    g: &mut [f32],
) -> Result<Option<Vec<f32>>> {
    let down = layer.mlp.down();
    let n = source.len() / down.out_features();
    let own = back_part(decoder, layer.mlp_post.as_ref(), given, g)?;
    let g_out = own.as_deref().unwrap_or(g);
    // The gradient of the activation, then the activation itself: one pass over gate and up gives all.
    let mut acted = pool::take(inner.up.len());
    let glow = down.back_input(g_out, n, Some((&mut acted, false)))?;
    match &layer.mlp {
        Mlp::Gated { activation, .. } | Mlp::JointGated { activation, .. } => {
            activation::gated_grad(*activation, &mut inner.gate, &mut inner.up, &mut acted);
        }
        Mlp::Plain { activation, .. } => activation::activate_grad(*activation, &mut inner.up, &mut acted),
    }
    down.back_weights(&acted, low, g_out, &glow, n)?;
    pool::give(acted);
    pool::give(own.unwrap_or_default());
    let own = normed(layer.mlp_norm.as_ref(), source)?;
    let normed = own.as_deref().unwrap_or(source);
    let mut g_normed = pool::take(source.len());
    match &layer.mlp {
        Mlp::Gated { gate, up, .. } => {
            gate.back(normed, &inner.low[0], &inner.gate, n, Some((&mut g_normed, false)))?;
            up.back(normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, true)))?;
        }
        Mlp::JointGated { gate_up, .. } => {
            let mut joint = pool::take(2 * inner.up.len());
            let parts = [inner.gate.as_mut_slice(), inner.up.as_mut_slice()];
            for_each_part(&mut joint, parts, n, |row, part| row.copy_from_slice(part));
            gate_up.back(normed, &inner.low[0], &joint, n, Some((&mut g_normed, false)))?;
            pool::give(joint);
        }
        Mlp::Plain { up, .. } => {
            up.back(normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, false)))?;
        }
    }
    pool::give(own.unwrap_or_default());
    let mut apart = decoder.config.switches.parallel.then(|| {
        let mut zero = pool::take(source.len());
        zero.fill(0.0);
        zero
    });
    let to = apart.as_deref_mut().unwrap_or(g);
    match &layer.mlp_norm {
        Some(norm) => norm.back(source, &g_normed, to, true)?,
        None => add_assign(to, &g_normed),
    }
    pool::give(g_normed);
    Ok(apart)
}
