//! The backward pass of a decoder's blocks. Gradients of the weights are added directly to the sums of `ops::grad`;
//! activations are freed block by block.

use candle_core::Result;

use crate::model::Decoder;
use crate::model::decoder::blocks::{
    Attn, Blocks, MlpHidden, SavedActivations, for_each_part, for_each_qkv, normed, scale,
};
use crate::model::decoder::output_rows::OutputRows;
use crate::model::layers::Norm;
use crate::model::layers::block::{Layer, Mlp, Projections};
use crate::ops::{activation, add_assign, attention, embedding, grad, pool, rope};

impl Blocks {
    /// Runs the backward pass; `gy` is the gradient of the result.
    pub(in crate::model) fn back(&self, gy: &[f32]) -> Result<()> {
        if !grad::is_accumulating() {
            candle_core::bail!("the backward pass of a decoder runs inside ops::grad::accumulate");
        }
        let saved = self.saved.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some(SavedActivations { blocks, last }) = saved else {
            candle_core::bail!("the backward pass of a decoder was run twice; it runs once for each forward pass")
        };
        let decoder = &self.decoder;
        let mut g = pool::take(gy.len());
        decoder.final_norm.back(&last, gy, &mut g, false)?;
        pool::give(last);
        let below = decoder.embeddings_trained();
        let lowest = decoder.layers.len() - blocks.len();
        for (i, saved) in blocks.into_iter().enumerate().rev() {
            let layer = &decoder.layers[lowest + i];
            let attn = match saved.attn {
                Some(attn) => attn,
                None => self.attn(lowest + i, &saved.x)?,
            };
            let hidden = match saved.mlp {
                Some(hidden) => hidden,
                None => self.mlp_hidden(lowest + i, &saved.x, &attn.mid)?,
            };
            let apart = self.with_source(lowest + i, &saved.x, &attn.mid, |source| {
                back_mlp(decoder, layer, source, hidden, [&saved.raw_out, &saved.low], &mut g)
            })?;
            pool::give(saved.raw_out);
            g = self.back_attn(lowest + i, &saved.x, attn, g, apart, i > 0 || below)?;
            pool::give(saved.x);
            grad::complete(layer.tensors())?;
        }
        grad::complete(decoder.final_norm.tensors())?;
        if below {
            // Positions are added after the embeddings are scaled.
            if let Some(table) = &decoder.positions {
                embedding::scatter(table, &self.rows.positions, &g, None)?;
            }
            scale(&mut g, decoder.config.switches.embedding_scale);
            if let Some(table) = decoder.embed.tensor() {
                embedding::scatter(table, &self.ids, &g, decoder.config.frozen_padding())?;
            }
            // The output matrix, tied or not, already has its gradient, because the backward pass begins at the loss.
            grad::complete(decoder.embed.tensor().into_iter().chain(&decoder.positions))?;
        }
        pool::give(g);
        Ok(())
    }

    /// The gradient of the block's input `x` [n, d] from the gradient `g` of `mid`; incomplete unless a layer `below` is
    /// trained, because it is not needed then. `apart`: the gradient that reached the input by other paths than `mid`.
    fn back_attn(
        &self,
        layer: usize,
        x: &[f32],
        attn: Attn,
        mut g: Vec<f32>,
        apart: Option<Vec<f32>>,
        below: bool,
    ) -> Result<Vec<f32>> {
        let (output, layer, decoder) = (self.output_rows(layer), &self.decoder.layers[layer], &self.decoder);
        let d = decoder.config.hidden_size;
        let (n, queries) = (self.ids.len(), g.len() / d);
        let mut g_mixed = pool::take(attn.mixed.len());
        let own = back_part(decoder, layer.attn_post.as_ref(), &attn.raw_out, &g)?;
        let g_out = own.as_deref().unwrap_or(&g);
        layer.out.back(&attn.mixed, &attn.low[3], g_out, queries, Some((&mut g_mixed, false)))?;
        pool::give(own.unwrap_or_default());
        if let Some(apart) = apart {
            add_assign(&mut g, &apart);
            pool::give(apart);
        }
        let [mut gq, mut gk, mut gv] = [&attn.q, &attn.k, &attn.v].map(|t| pool::take(t.len()));
        let spec = layer.attention(output.map_or(&self.rows.attention, |t| &t.attention));
        attention::backward(&spec, [&attn.q, &attn.k, &attn.v, &g_mixed], [&mut gq, &mut gk, &mut gv]);
        pool::give(g_mixed);
        if let Some(table) = &layer.rope {
            rope::rotate(&mut gq, table, output.map_or(&self.rows.rotary, |t| &t.rotary), -1.0);
            rope::rotate(&mut gk, table, &self.rows.rotary, -1.0);
        }
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            for (norm, raw, g) in [(q_norm, &attn.raw_q, &mut gq), (k_norm, &attn.raw_k, &mut gk)] {
                let mut g_raw = pool::take(g.len());
                norm.back(raw, g, &mut g_raw, false)?;
                pool::give(std::mem::replace(g, g_raw));
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
                match output {
                    None => q.back(normed, &attn.low[0], &gq, n, needed.then_some((&mut g_normed, true)))?,
                    Some(output) => {
                        let own = output.pick(normed, d);
                        let mut g_own = pool::take(own.len());
                        q.back(&own, &attn.low[0], &gq, queries, needed.then_some((&mut g_own, false)))?;
                        if needed {
                            output.add(&g_own, &mut g_normed, d);
                        }
                        pool::give(own);
                        pool::give(g_own);
                    }
                }
            }
            Projections::Joint { all, by_head } => {
                if let Some(output) = output {
                    let mut every = pool::take(n * gq.len() / queries.max(1));
                    every.fill(0.0);
                    output.add(&gq, &mut every, gq.len() / queries.max(1));
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
        let mut g = spread(g, output, x.len(), d);
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

/// The gradient of the output rows, expanded to all rows: zero elsewhere.
fn spread(g: Vec<f32>, output: Option<&OutputRows>, len: usize, d: usize) -> Vec<f32> {
    let Some(output) = output else { return g };
    let mut every = pool::take(len);
    every.fill(0.0);
    output.add(&g, &mut every, d);
    pool::give(g);
    every
}

/// The gradient of a part's output before its norm and factor, from the gradient `g` of the values that were added;
/// `None` when both are equal.
fn back_part(decoder: &Decoder, post: Option<&Norm>, raw_out: &[f32], g: &[f32]) -> Result<Option<Vec<f32>>> {
    let factor = decoder.config.switches.residual_scale;
    if post.is_none() && factor == 1.0 {
        return Ok(None);
    }
    let mut scaled = pool::take(g.len());
    scaled.copy_from_slice(g);
    scale(&mut scaled, factor);
    let Some(post) = post else { return Ok(Some(scaled)) };
    let mut g_raw = pool::take(g.len());
    post.back(raw_out, &scaled, &mut g_raw, false)?;
    pool::give(scaled);
    Ok(Some(g_raw))
}

/// Replaces `g` [n, d], the gradient of the block's output, by the gradient of `mid`. Where the feed-forward network has
/// another input than `mid`, returns the gradient of that input and leaves `g` unchanged. `raw_out` and `low`: see
/// `MlpOutput`.
fn back_mlp(
    decoder: &Decoder,
    layer: &Layer,
    source: &[f32],
    mut hidden: MlpHidden,
    [raw_out, low]: [&[f32]; 2],
    g: &mut [f32],
) -> Result<Option<Vec<f32>>> {
    let down = layer.mlp.down();
    let n = source.len() / down.out_features();
    let own = back_part(decoder, layer.mlp_post.as_ref(), raw_out, g)?;
    let g_out = own.as_deref().unwrap_or(g);
    // The gradient of the activation, then the activation itself: one pass over gate and up gives all.
    let mut acted = pool::take(hidden.up.len());
    let glow = down.back_input(g_out, n, Some((&mut acted, false)))?;
    match &layer.mlp {
        Mlp::Gated { activation, .. } | Mlp::JointGated { activation, .. } => {
            activation::gated_grad(*activation, &mut hidden.gate, &mut hidden.up, &mut acted);
        }
        Mlp::Plain { activation, .. } => activation::activate_grad(*activation, &mut hidden.up, &mut acted),
    }
    down.back_weights(&acted, low, g_out, &glow, n)?;
    pool::give(acted);
    pool::give(own.unwrap_or_default());
    let own = normed(layer.mlp_norm.as_ref(), source)?;
    let normed = own.as_deref().unwrap_or(source);
    let mut g_normed = pool::take(source.len());
    match &layer.mlp {
        Mlp::Gated { gate, up, .. } => {
            gate.back(normed, &hidden.low[0], &hidden.gate, n, Some((&mut g_normed, false)))?;
            up.back(normed, &hidden.low[1], &hidden.up, n, Some((&mut g_normed, true)))?;
        }
        Mlp::JointGated { gate_up, .. } => {
            let mut joint = pool::take(2 * hidden.up.len());
            let parts = [hidden.gate.as_mut_slice(), hidden.up.as_mut_slice()];
            for_each_part(&mut joint, parts, n, |row, part| row.copy_from_slice(part));
            gate_up.back(normed, &hidden.low[0], &joint, n, Some((&mut g_normed, false)))?;
            pool::give(joint);
        }
        Mlp::Plain { up, .. } => {
            up.back(normed, &hidden.low[1], &hidden.up, n, Some((&mut g_normed, false)))?;
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
