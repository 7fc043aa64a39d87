//! The backward pass of the blocks and embeddings. Gradients of weights are added to their sums; activations are freed
//! block by block.

use super::forward::{Buffer, SavedAttention, SavedBlock};
use super::layout::{Block, Linear, MatrixId, Norm};
use super::rows::{Groups, Rows};
use super::{DeviceTrainer, Pass};
use crate::gpu::launch::Launch;
use crate::gpu::launch::backward::{
    ActivateBack, ColumnSums, EmbedBack, FlashBackKv, FlashBackQ, FlashDelta, MatmulNn, MatmulTn, NormBack,
    NormBackWeight,
};
use crate::gpu::manifest::kernel;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::device::kernels::{self, up};

/// Columns of a gradient [n, stride]: those of one part of a product.
#[derive(Clone, Copy)]
struct Columns {
    gy: Slice,
    n: usize,
    stride: usize,
}

impl DeviceTrainer {
    /// Runs the backward pass from the gradient gh [rows, d] of the requested hidden states, in the element type.
    pub(super) fn backward_from(&mut self, pass: Pass, gh: Slice) -> Result<(), GpuError> {
        let (rows, d) = (&pass.rows, self.config.hidden_size);
        let m = rows.picked_count;
        let g_picked = self.buffers.zeros(m * d * 4)?;
        let norm = self.plan.final_norm;
        self.norm_back(&norm, pass.head.picked, gh, g_picked, m)?;
        [gh, pass.head.picked, pass.head.hidden, pass.head.last].into_iter().try_for_each(|s| self.buffers.give(s))?;
        let g = self.buffers.zeros(rows.n * d * 4)?;
        self.scatter(rows.picked_groups, g_picked, g, 1.0)?;
        self.buffers.give(g_picked)?;
        for saved in pass.blocks.into_iter().rev() {
            let needed = saved.number > self.plan.lowest_trained || self.embeddings_trained();
            self.block_back(rows, saved, g, needed)?;
        }
        if let Some(table) = self.plan.positions.and_then(|id| self.weight(id).grad) {
            self.scatter(rows.places, g, table, 1.0)?;
        }
        if let Some(table) = self.weight(self.plan.embed).grad {
            self.scatter(rows.words, g, table, self.config.switches.embedding_scale as f32)?;
        }
        Ok(())
    }

    /// table += scale · the sums of the grouped rows of g.
    fn scatter(&mut self, groups: Option<Groups>, g: Slice, table: Slice, scale: f32) -> Result<(), GpuError> {
        let (Some(groups), d) = (groups, self.config.hidden_size) else { return Ok(()) };
        let Groups { order, starts, ids, count } = groups;
        let launched = EmbedBack { order, starts, ids, gx: g, table, d: d as i32, scale };
        self.launch("embed_back", [count, up(d, 1024), 1], &launched)
    }

    /// The gradient g [n, d] of a block's output becomes that of its input where `needed`.
    fn block_back(&mut self, rows: &Rows, saved: SavedBlock, g: Slice, needed: bool) -> Result<(), GpuError> {
        let block = self.blocks[saved.number].clone();
        let attention = match saved.attention {
            Some(attention) => attention,
            None => self.attention(&block, rows, saved.x)?,
        };
        let up = match saved.up {
            Some(up) => up,
            None => self.up(&block, rows, saved.x, attention.mid)?,
        };
        // In parallel blocks the feed-forward network reads the block's input.
        let parallel = self.config.switches.parallel;
        let apart = if parallel { Some(self.buffers.zeros(rows.n * self.config.hidden_size * 4)?) } else { None };
        let source = if parallel { saved.x } else { attention.mid };
        self.mlp_back(&block, rows, [source, up], saved.given, [g, apart.unwrap_or(g)])?;
        for slice in [Some(up), saved.given].into_iter().flatten() {
            self.buffers.give(slice)?;
        }
        self.attention_back(&block, rows, saved.x, &attention, g, apart, needed)?;
        self.give_attention(attention)?;
        self.buffers.give(saved.x)
    }

    /// The gradient of a term before its norm and factor, in the element type, from the gradient g of the sum.
    fn term_back(
        &mut self,
        rows: &Rows,
        post: Option<&Norm>,
        given: Option<Slice>,
        g: Slice,
    ) -> Result<Buffer, GpuError> {
        let (n, d) = (rows.n, self.config.hidden_size);
        let scaled = match self.residual() {
            1.0 => Buffer { slice: g, own: false },
            scale => {
                let slice = self.buffers.zeros(n * d * 4)?;
                self.add_f32(slice, g, n * d, scale)?;
                Buffer { slice, own: true }
            }
        };
        let term = self.as_element(scaled.slice, rows.every, n, d)?;
        let term = match (post, given) {
            (Some(norm), Some(given)) => {
                let inner = self.norm_of_back(rows, norm, given, term.slice, d)?;
                self.give(term)?;
                inner
            }
            // In f32 the term is the scaled gradient itself.
            _ if !term.own => return Ok(scaled),
            _ => term,
        };
        self.give(scaled)?;
        Ok(term)
    }

    /// x += scale · term, of a term in f32.
    fn add_f32(&mut self, x: Slice, term: Slice, count: usize, scale: f32) -> Result<(), GpuError> {
        let launched = crate::gpu::launch::Add { x, branch: term, count: count as i32, scale };
        self.launch("add.f32", [up(count, 1024), 1, 1], &launched)
    }

    /// Gradient of a norm of values in the element type, [n, width] in all: from gy to a new buffer.
    fn norm_of_back(
        &mut self,
        rows: &Rows,
        norm: &Norm,
        x: Slice,
        gy: Slice,
        width: usize,
    ) -> Result<Buffer, GpuError> {
        let count = rows.n * width;
        let wide = self.as_f32(x, count)?;
        let gx = self.buffers.zeros(count * 4)?;
        self.norm_back(norm, wide.slice, gy, gx, count / self.weight(norm.weight).rows)?;
        self.give(wide)?;
        let converted = self.as_element(gx, rows.every, rows.n, width)?;
        if !converted.own {
            return Ok(Buffer { slice: gx, own: true });
        }
        self.buffers.give(gx)?;
        Ok(converted)
    }

    /// gx += the gradient of norm(x) at gy, of `n` rows; x and gx are f32, gy is in the element type.
    fn norm_back(&mut self, norm: &Norm, x: Slice, gy: Slice, gx: Slice, n: usize) -> Result<(), GpuError> {
        let weight = self.weight(norm.weight);
        let d = weight.rows;
        let (factors, means) = (self.buffers.take(n * 4)?, self.buffers.take(n * 4)?);
        let (eps, offset) = (norm.eps, norm.offset);
        let launched = NormBack { x, weight: weight.value, gy, gx, factors, means, d: d as i32, eps, offset };
        self.launch(&format!("{}_back.{}", kernels::norm(norm.layer), self.t()), [n, 1, 1], &launched)?;
        if let Some(gw) = weight.grad {
            // LayerNorm without a bias gives the bias's gradient too.
            let unused = self.buffers.zeros(d * 4)?;
            let gb = norm.bias.and_then(|id| self.weight(id).grad).unwrap_or(unused);
            let launched = NormBackWeight { x, gy, factors, means, gw, gb, n: n as i32, d: d as i32 };
            self.launch(
                &format!("{}_back_weight.{}", kernels::norm(norm.layer), self.t()),
                [up(d, 32), 1, 1],
                &launched,
            )?;
            self.buffers.give(unused)?;
        }
        self.buffers.give(factors)?;
        self.buffers.give(means)
    }

    /// Adds the gradient of the feed-forward network's input, `to`, from the gradient g of the block's output. `given`:
    /// its output before the norm.
    fn mlp_back(
        &mut self,
        block: &Block,
        rows: &Rows,
        [source, up_]: [Slice; 2],
        given: Option<Slice>,
        [g, to]: [Slice; 2],
    ) -> Result<(), GpuError> {
        let n = rows.n;
        let (inner, width) = (self.weight(block.down.weight).width, self.weight(block.up.weight).rows);
        let term = self.term_back(rows, block.mlp_post.as_ref(), given, g)?;
        let acted = self.activated(block, n, up_)?;
        self.weights_back(&block.down, acted, term.slice, n)?;
        self.buffers.give(acted)?;
        let g_acted = self.input_back(rows, &block.down, term.slice)?;
        self.give(term)?;
        let g_up = self.buffers.take(self.bytes(n * width))?;
        let launched = ActivateBack { x: up_, gy: g_acted, gx: g_up, inner: inner as i32 };
        let name = format!("{}_back.{}", kernels::activation(block.activation, block.gated), self.t());
        self.launch(&name, [n, up(inner, 1024), 1], &launched)?;
        self.buffers.give(g_acted)?;
        let normed = self.normed(block.mlp_norm.as_ref(), source, rows)?;
        self.weights_back(&block.up, normed.slice, g_up, n)?;
        self.give(normed)?;
        let g_normed = self.input_back(rows, &block.up, g_up)?;
        self.buffers.give(g_up)?;
        match &block.mlp_norm {
            Some(norm) => self.norm_back(norm, source, g_normed, to, n)?,
            None => self.add(to, g_normed, n * self.config.hidden_size, 1.0)?,
        }
        self.buffers.give(g_normed)
    }

    /// From the gradient g of the hidden states after attention to that of the block's input x, where `needed`.
    /// `apart`: the gradient that reached the input by the feed-forward network.
    #[expect(clippy::too_many_arguments, reason = "the values of one block")]
    fn attention_back(
        &mut self,
        block: &Block,
        rows: &Rows,
        x: Slice,
        attention: &SavedAttention,
        g: Slice,
        apart: Option<Slice>,
        needed: bool,
    ) -> Result<(), GpuError> {
        let (n, d) = (rows.n, self.config.hidden_size);
        let term = self.term_back(rows, block.attn_post.as_ref(), attention.given, g)?;
        self.weights_back(&block.out, attention.out, term.slice, n)?;
        let g_out = self.input_back(rows, &block.out, term.slice)?;
        self.give(term)?;
        if let Some(apart) = apart {
            self.add_f32(g, apart, n * d, 1.0)?;
            self.buffers.give(apart)?;
        }
        let mut gqkv = self.scores_back(block, rows, attention, g_out)?;
        self.buffers.give(g_out)?;
        self.rotate(block, rows, [gqkv[0], gqkv[1]], -1.0)?;
        if let (Some(norms), Some(raw)) = (&block.qk_norm, attention.raw) {
            for (i, heads) in [self.config.n_heads, self.config.n_kv_heads].into_iter().enumerate() {
                let inner = self.norm_of_back(rows, &norms[i], raw[i], gqkv[i], heads * self.config.head_dim)?;
                self.buffers.give(gqkv[i])?;
                gqkv[i] = inner.slice;
            }
        }
        let normed = self.normed(block.attn_norm.as_ref(), x, rows)?;
        for (linear, gy) in block.qkv.iter().zip(gqkv) {
            self.weights_back(linear, normed.slice, gy, n)?;
        }
        self.give(normed)?;
        let norm_trained = block.attn_norm.is_some_and(|norm| self.weight(norm.weight).grad.is_some());
        if needed || norm_trained {
            // Without a norm the gradient of the projections is that of the block's input.
            let sum = if block.attn_norm.is_some() { self.buffers.zeros(n * d * 4)? } else { g };
            for (linear, gy) in block.qkv.iter().zip(gqkv) {
                self.add_input_back(linear, gy, n, sum)?;
            }
            if let Some(norm) = &block.attn_norm {
                let g_normed = self.as_element(sum, rows.every, n, d)?;
                self.norm_back(norm, x, g_normed.slice, g, n)?;
                self.give(g_normed)?;
                self.buffers.give(sum)?;
            }
        }
        gqkv.into_iter().try_for_each(|slice| self.buffers.give(slice))
    }

    /// The gradients of rotated q and k, and of v, from that of attention's output.
    fn scores_back(
        &mut self,
        block: &Block,
        rows: &Rows,
        attention: &SavedAttention,
        gout: Slice,
    ) -> Result<[Slice; 3], GpuError> {
        let (n, hd) = (rows.n, self.config.head_dim);
        let (heads, kv_heads) = (self.config.n_heads, self.config.n_kv_heads);
        let delta = self.buffers.take(n * heads * 4)?;
        let launched = FlashDelta { out: attention.out, gout, delta, heads: heads as i32, hd: hd as i32 };
        self.launch(&format!("flash_delta.{}.{}", self.wide, self.t()), [n, heads, 1], &launched)?;
        let gq = self.buffers.take(self.bytes(n * heads * hd))?;
        let gk = self.buffers.take(self.bytes(n * kv_heads * hd))?;
        let gv = self.buffers.take(self.bytes(n * kv_heads * hd))?;
        let [q, k, v] = attention.qkv;
        let (offsets, lse) = (rows.offsets, attention.lse);
        let (window, scale) = (block.window as i32, self.config.attention_scale());
        let (h, kv, hd, cap) = (heads as i32, kv_heads as i32, hd as i32, self.attention_cap());
        let launched =
            FlashBackQ { q, k, v, gout, offsets, lse, delta, gq, heads: h, kv_heads: kv, hd, window, scale, cap };
        self.launch_tiles("flash_back_q", rows, "BM", heads, &launched)?;
        let launched =
            FlashBackKv { q, k, v, gout, offsets, lse, delta, gk, gv, heads: h, kv_heads: kv, hd, window, scale, cap };
        self.launch_tiles("flash_back_kv", rows, "BN", kv_heads, &launched)?;
        self.buffers.give(delta)?;
        Ok([gq, gk, gv])
    }

    /// The gradient of a product's input in the element type, in a new buffer.
    fn input_back(&mut self, rows: &Rows, linear: &Linear, gy: Slice) -> Result<Slice, GpuError> {
        let (n, weight) = (rows.n, self.weight(linear.weight));
        if linear.adapters.is_empty() {
            let gx = self.buffers.take(self.bytes(n * weight.width))?;
            self.matmul_nn("", linear.weight, Columns { gy, n, stride: weight.rows }, gx, 1.0)?;
            return Ok(gx);
        }
        let sum = self.buffers.zeros(n * weight.width * 4)?;
        self.add_input_back(linear, gy, n, sum)?;
        let converted = self.as_element(sum, rows.every, n, weight.width)?;
        if converted.own {
            self.buffers.give(sum)?;
        }
        Ok(converted.slice)
    }

    /// Adds the gradient of a product's input to gx, f32.
    fn add_input_back(&mut self, linear: &Linear, gy: Slice, n: usize, gx: Slice) -> Result<(), GpuError> {
        let stride = self.weight(linear.weight).rows;
        self.matmul_nn("_add", linear.weight, Columns { gy, n, stride }, gx, 1.0)?;
        for adapter in &linear.adapters {
            let from = self.bytes(adapter.column);
            let own = Columns { gy: gy.part(from, gy.bytes - from), n, stride };
            let rank = self.weight(adapter.a).rows;
            let g_low = self.buffers.take(self.bytes(n * rank))?;
            self.matmul_nn("", adapter.b, own, g_low, 1.0)?;
            self.matmul_nn("_add", adapter.a, Columns { gy: g_low, n, stride: rank }, gx, adapter.scale)?;
            self.buffers.give(g_low)?;
        }
        Ok(())
    }

    /// gx = scale · gy · w, or gx += that.
    fn matmul_nn(
        &mut self,
        variant: &str,
        w: MatrixId,
        columns: Columns,
        gx: Slice,
        scale: f32,
    ) -> Result<(), GpuError> {
        let (w, Columns { gy, n, stride }) = (self.weight(w), columns);
        let (m, k) = (w.rows as i32, w.width as i32);
        let launched = MatmulNn { gy, w: w.value, gx, n: n as i32, m, k, stride: stride as i32, scale };
        self.launch_product_back(&format!("matmul_nn{variant}"), &launched, [n, w.width], [w.rows, stride])
    }

    /// Adds to the gradients of a product's trained tensors. x is its input.
    fn weights_back(&mut self, linear: &Linear, x: Slice, gy: Slice, n: usize) -> Result<(), GpuError> {
        let stride = self.weight(linear.weight).rows;
        let all = Columns { gy, n, stride };
        if let Some(g) = linear.bias.and_then(|id| self.weight(id).grad) {
            let launched = ColumnSums { gy, g, n: n as i32, m: stride as i32 };
            self.launch(&format!("column_sums.{}", self.t()), [up(stride, 32), 1, 1], &launched)?;
        }
        self.matmul_tn(linear.weight, all, x, 1.0)?;
        for adapter in &linear.adapters {
            let from = self.bytes(adapter.column);
            let own = Columns { gy: gy.part(from, gy.bytes - from), ..all };
            let rank = self.weight(adapter.a).rows;
            let low = self.low(adapter.a, x, n)?;
            self.matmul_tn(adapter.b, own, low, adapter.scale)?;
            self.matmul_nn("", adapter.b, own, low, 1.0)?;
            self.matmul_tn(adapter.a, Columns { gy: low, n, stride: rank }, x, adapter.scale)?;
            self.buffers.give(low)?;
        }
        Ok(())
    }

    /// Adds scale · gyᵀ · x to the gradient of a trained matrix.
    fn matmul_tn(&mut self, w: MatrixId, columns: Columns, x: Slice, scale: f32) -> Result<(), GpuError> {
        let (w, Columns { gy, n, stride }) = (self.weight(w), columns);
        let Some(gw) = w.grad else { return Ok(()) };
        let (m, k) = (w.rows as i32, w.width as i32);
        let launched = MatmulTn { gy, x, gw, n: n as i32, m, k, stride: stride as i32, scale };
        self.launch_product_back("matmul_tn", &launched, [w.rows, w.width], [w.rows, stride])
    }

    /// A gradient [rows, columns] of a product; `more` are its other sizes that rows of operands have.
    pub(super) fn launch_product_back<L: Launch>(
        &mut self,
        product: &str,
        launched: &L,
        [rows, columns]: [usize; 2],
        more: [usize; 2],
    ) -> Result<(), GpuError> {
        let eights = more.into_iter().chain([columns]).all(|size| size.is_multiple_of(8));
        let name = format!("{product}{}.{}", if eights { "" } else { "_any" }, self.t());
        let tile = kernel(&name)?;
        let height = if L::KERNEL == MatmulTn::KERNEL { "BM" } else { "BN" };
        let grid = [up(columns, tile.constant("BK")), up(rows, tile.constant(height)), 1];
        self.launch(&name, grid, launched)
    }
}
