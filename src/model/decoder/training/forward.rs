//! The forward pass of the blocks, and what it saves.

use super::layout::{Block, Linear, Norm};
use super::rows::Rows;
use super::{DeviceTrainer, Element};
use crate::gpu::device::Device;
use crate::gpu::launch::backward::{Flash, MatmulAdd, Rotate};
use crate::gpu::launch::{Activate, Add, Embed, GatherRows, Matmul, Norm as NormLaunch};
use crate::gpu::manifest::kernel;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::attached::{Keep, Wanted};
use crate::model::decoder::device::kernels::{self, up};
use crate::model::{Decoder, Recompute};

/// A buffer, or another name for one (`own` = false), which is not freed.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub slice: Slice,
    pub own: bool,
}

/// Values of attention; all but `lse` and `mid` in the element type.
pub(super) struct SavedAttention {
    /// q and k with rotary positions, and v.
    pub qkv: [Slice; 3],
    /// q and k before their norms.
    pub raw: Option<[Slice; 2]>,
    pub out: Slice,
    /// Log-sum-exp of the scores [n, heads], f32.
    pub lse: Slice,
    /// The output projection before its norm.
    pub given: Option<Slice>,
    /// The hidden states after attention [n, d], f32.
    pub mid: Slice,
}

/// The values of a block that its backward pass needs.
pub(super) struct SavedBlock {
    /// The block's number.
    pub number: usize,
    /// Its input [n, d], f32.
    pub x: Slice,
    pub attention: Option<SavedAttention>,
    /// The feed-forward network before its activation.
    pub up: Option<Slice>,
    /// Its output before the norm.
    pub given: Option<Slice>,
}

/// The blocks of a forward pass, and the hidden states after the last.
pub(super) struct Forward {
    pub rows: Rows,
    pub keep: Keep,
    pub blocks: Vec<SavedBlock>,
    pub last: Slice,
}

impl DeviceTrainer {
    /// Runs all blocks.
    pub(super) fn forward(&mut self, decoder: &Decoder, wanted: Wanted<'_>, keep: Keep) -> Result<Forward, GpuError> {
        // A saved pass that got no gradient is replaced.
        self.pass = None;
        self.passes += 1;
        self.buffers.give_all()?;
        let grouped = keep == Keep::All && self.embeddings_trained();
        let rows = Rows::new(&mut self.buffers, decoder, &self.ropes, wanted, grouped)?;
        let mut x = self.embed(&rows)?;
        let mut blocks = Vec::new();
        for number in 0..self.blocks.len() {
            let block = self.blocks[number].clone();
            let attention = self.attention(&block, &rows, x)?;
            let up = self.up(&block, &rows, x, attention.mid)?;
            let (out, given) = self.down(&block, &rows, attention.mid, up)?;
            let saved = SavedBlock { number, x, attention: Some(attention), up: Some(up), given };
            x = out;
            if keep == Keep::All && number >= self.plan.lowest_trained {
                blocks.push(self.reduced(saved)?);
            } else {
                self.give_block(saved)?;
            }
        }
        Ok(Forward { rows, keep, blocks, last: x })
    }

    pub(super) fn embeddings_trained(&self) -> bool {
        let trained = |id| self.weight(id).grad.is_some();
        trained(self.plan.embed) || self.plan.positions.is_some_and(trained)
    }

    /// Frees what the backward pass recomputes.
    fn reduced(&mut self, mut saved: SavedBlock) -> Result<SavedBlock, GpuError> {
        if self.options.recompute != Recompute::None
            && let Some(up) = saved.up.take()
        {
            self.buffers.give(up)?;
        }
        if self.options.recompute == Recompute::Block
            && let Some(attention) = saved.attention.take()
        {
            self.give_attention(attention)?;
        }
        Ok(saved)
    }

    pub(super) fn give_attention(&mut self, attention: SavedAttention) -> Result<(), GpuError> {
        let raw = attention.raw.into_iter().flatten().chain(attention.given);
        let rest = [attention.out, attention.lse, attention.mid];
        attention.qkv.into_iter().chain(raw).chain(rest).try_for_each(|slice| self.buffers.give(slice))
    }

    fn give_block(&mut self, saved: SavedBlock) -> Result<(), GpuError> {
        if let Some(attention) = saved.attention {
            self.give_attention(attention)?;
        }
        [Some(saved.x), saved.up, saved.given].into_iter().flatten().try_for_each(|slice| self.buffers.give(slice))
    }

    pub(super) fn give(&mut self, buffer: Buffer) -> Result<(), GpuError> {
        if buffer.own { self.buffers.give(buffer.slice) } else { Ok(()) }
    }

    /// Number of bytes of values in the element type.
    pub(super) fn bytes(&self, count: usize) -> usize {
        count * self.options.element.bytes()
    }

    fn embed(&mut self, rows: &Rows) -> Result<Slice, GpuError> {
        let d = self.config.hidden_size;
        let table = self.weight(self.plan.embed).value;
        let positions = self.plan.positions.map(|id| self.weight(id).value);
        let out = self.buffers.take(rows.n * d * 4)?;
        let launched = Embed {
            ids: rows.ids,
            table,
            positions: rows.positions,
            position_table: positions.unwrap_or(table),
            out,
            d: d as i32,
            scale: self.config.switches.embedding_scale as f32,
        };
        let name = format!("embed{}.{}", if positions.is_some() { "_at" } else { "" }, self.t());
        self.launch(&name, [rows.n, 1, 1], &launched)?;
        Ok(out)
    }

    /// From the block's input to the hidden states after attention.
    pub(super) fn attention(&mut self, block: &Block, rows: &Rows, x: Slice) -> Result<SavedAttention, GpuError> {
        let (n, d) = (rows.n, self.config.hidden_size);
        let source = self.normed(block.attn_norm.as_ref(), x, rows)?;
        let mut qkv = [source.slice; 3];
        for (to, linear) in qkv.iter_mut().zip(&block.qkv) {
            *to = self.linear(linear, source.slice, n)?;
        }
        self.give(source)?;
        let mut raw = None;
        if let Some(norms) = &block.qk_norm {
            raw = Some([qkv[0], qkv[1]]);
            for (i, (norm, heads)) in norms.iter().zip([self.config.n_heads, self.config.n_kv_heads]).enumerate() {
                qkv[i] = self.norm_of(norm, qkv[i], n * heads * self.config.head_dim)?;
            }
        }
        self.rotate(block, rows, [qkv[0], qkv[1]], 1.0)?;
        let (heads, hd) = (self.config.n_heads, self.config.head_dim);
        let out = self.buffers.take(self.bytes(n * heads * hd))?;
        let lse = self.buffers.take(n * heads * 4)?;
        let launched = Flash {
            q: qkv[0],
            k: qkv[1],
            v: qkv[2],
            offsets: rows.offsets,
            out,
            lse,
            heads: heads as i32,
            kv_heads: self.config.n_kv_heads as i32,
            hd: hd as i32,
            window: block.window as i32,
            scale: self.config.attention_scale(),
            cap: self.attention_cap(),
        };
        self.launch_tiles("flash", rows, "BM", heads, &launched)?;
        let projected = self.linear(&block.out, out, n)?;
        let (given, term) = self.post_norm(block.attn_post.as_ref(), projected, n * d)?;
        let mid = self.sum(x, term, n * d)?;
        self.buffers.give(term)?;
        Ok(SavedAttention { qkv, raw, out, lse, given, mid })
    }

    /// The feed-forward network of a block up to its activation. x is the block's input.
    pub(super) fn up(&mut self, block: &Block, rows: &Rows, x: Slice, mid: Slice) -> Result<Slice, GpuError> {
        let source = if self.config.switches.parallel { x } else { mid };
        let source = self.normed(block.mlp_norm.as_ref(), source, rows)?;
        let up = self.linear(&block.up, source.slice, rows.n)?;
        self.give(source)?;
        Ok(up)
    }

    /// The block's output, and the feed-forward network's output before its norm, where it has one.
    fn down(&mut self, block: &Block, rows: &Rows, mid: Slice, up: Slice) -> Result<(Slice, Option<Slice>), GpuError> {
        let count = rows.n * self.config.hidden_size;
        let acted = self.activated(block, rows.n, up)?;
        let projected = self.linear(&block.down, acted, rows.n)?;
        self.buffers.give(acted)?;
        let (given, term) = self.post_norm(block.mlp_post.as_ref(), projected, count)?;
        let out = self.sum(mid, term, count)?;
        self.buffers.give(term)?;
        Ok((out, given))
    }

    pub(super) fn activated(&mut self, block: &Block, n: usize, x: Slice) -> Result<Slice, GpuError> {
        let inner = self.weight(block.down.weight).width;
        let y = self.buffers.take(self.bytes(n * inner))?;
        let launched = Activate { x, y, inner: inner as i32 };
        let name = format!("{}.{}", kernels::activation(block.activation, block.gated), self.t());
        self.launch(&name, [n, up(inner, 1024), 1], &launched)?;
        Ok(y)
    }

    /// The soft cap of scores; 0 without one.
    pub(super) fn attention_cap(&self) -> f32 {
        self.config.switches.attention_softcap.map_or(0.0, |cap| cap as f32)
    }

    /// A launch with a program for each tile of `tile` rows, sequence, and one of `heads` heads.
    pub(super) fn launch_tiles<L: crate::gpu::launch::Launch>(
        &mut self,
        attention: &str,
        rows: &Rows,
        tile: &str,
        heads: usize,
        launched: &L,
    ) -> Result<(), GpuError> {
        let cap = if self.config.switches.attention_softcap.is_some() { "_cap" } else { "" };
        let any = if self.config.head_dim.is_multiple_of(8) { "" } else { "_any" };
        let name = format!("{attention}{cap}{any}.{}.{}", self.wide, self.t());
        let size = kernel(&name)?.constant(tile);
        self.launch(&name, [up(rows.longest, size), rows.sequences, heads], launched)
    }

    /// Rotates q and k in place; sign −1 is the gradient.
    pub(super) fn rotate(&mut self, block: &Block, rows: &Rows, qk: [Slice; 2], sign: f32) -> Result<(), GpuError> {
        let Some((cos, sin, half)) = block.rope.and_then(|i| rows.rope[i]) else { return Ok(()) };
        for (x, heads) in qk.into_iter().zip([self.config.n_heads, self.config.n_kv_heads]) {
            let launched = Rotate {
                x,
                cos,
                sin,
                rotary: rows.every,
                heads: heads as i32,
                hd: self.config.head_dim as i32,
                half: half as i32,
                sign,
            };
            self.launch(&format!("rotate.{}.{}", self.wide, self.t()), [rows.n, heads, 1], &launched)?;
        }
        Ok(())
    }

    /// The input of a product: the norm of hidden states, or they themselves, in the element type.
    pub(super) fn normed(&mut self, norm: Option<&Norm>, x: Slice, rows: &Rows) -> Result<Buffer, GpuError> {
        let d = self.config.hidden_size;
        let Some(norm) = norm else { return self.as_element(x, rows.every, rows.n, d) };
        let y = self.buffers.take(self.bytes(rows.n * d))?;
        let name = format!("{}.{}", kernels::norm(norm.layer), self.t());
        self.launch_norm(&name, norm, [x, y], rows.n)?;
        Ok(Buffer { slice: y, own: true })
    }

    /// The norm of `count` values in the element type, in a new buffer.
    pub(super) fn norm_of(&mut self, norm: &Norm, x: Slice, count: usize) -> Result<Slice, GpuError> {
        let y = self.buffers.take(self.bytes(count))?;
        let name = kernels::norm_of(norm.layer, self.options.element);
        self.launch_norm(&name, norm, [x, y], count / self.weight(norm.weight).rows)?;
        Ok(y)
    }

    pub(super) fn launch_norm(
        &mut self,
        name: &str,
        norm: &Norm,
        [x, y]: [Slice; 2],
        rows: usize,
    ) -> Result<(), GpuError> {
        let weight = self.weight(norm.weight);
        let width = weight.rows as i32;
        let launched = NormLaunch {
            x,
            branch: x,
            weight: weight.value,
            bias: norm.bias.map_or(self.zeros, |id| self.weight(id).value),
            y,
            d: width,
            x_stride: width,
            y_stride: width,
            eps: norm.eps,
            scale: 1.0,
            offset: norm.offset,
        };
        self.launch(name, [rows, 1, 1], &launched)
    }

    /// The norm of a term before it is added; returns the values before the norm, where there is one, and the term.
    fn post_norm(&mut self, norm: Option<&Norm>, x: Slice, count: usize) -> Result<(Option<Slice>, Slice), GpuError> {
        match norm {
            None => Ok((None, x)),
            Some(norm) => Ok((Some(x), self.norm_of(norm, x, count)?)),
        }
    }

    /// x + residual scale · term, in a new buffer of f32.
    fn sum(&mut self, x: Slice, term: Slice, count: usize) -> Result<Slice, GpuError> {
        let y = self.buffers.take(count * 4)?;
        self.buffers.device.copy(x, y)?;
        self.add(y, term, count, self.residual())?;
        Ok(y)
    }

    /// x += scale · term, of a term in the element type.
    pub(super) fn add(&mut self, x: Slice, term: Slice, count: usize, scale: f32) -> Result<(), GpuError> {
        let launched = Add { x, branch: term, count: count as i32, scale };
        self.launch(&format!("add.{}", self.t()), [up(count, 1024), 1, 1], &launched)
    }

    /// Values [rows, width] of f32 in the element type. `every`: 0, 1, … for each row.
    pub(super) fn as_element(&mut self, x: Slice, every: Slice, rows: usize, width: usize) -> Result<Buffer, GpuError> {
        if self.options.element == Element::F32 {
            return Ok(Buffer { slice: x, own: false });
        }
        let y = self.buffers.take(self.bytes(rows * width))?;
        self.write_bf16(x, every, y, [rows, width])?;
        Ok(Buffer { slice: y, own: true })
    }

    /// Writes values [rows, width] of f32 to y in bfloat16. `every`: 0, 1, … for each row.
    pub(super) fn write_bf16(
        &mut self,
        x: Slice,
        every: Slice,
        y: Slice,
        [rows, width]: [usize; 2],
    ) -> Result<(), GpuError> {
        let launched = GatherRows { x, rows: every, y, d: width as i32 };
        self.launch("gather_rows.bf16", [rows, up(width, 1024), 1], &launched)
    }

    /// Values of the element type in f32.
    pub(super) fn as_f32(&mut self, x: Slice, count: usize) -> Result<Buffer, GpuError> {
        if self.options.element == Element::F32 {
            return Ok(Buffer { slice: x, own: false });
        }
        let y = self.buffers.zeros(count * 4)?;
        self.add(y, x, count, 1.0)?;
        Ok(Buffer { slice: y, own: true })
    }

    /// x [n, in] → [n, out] in the element type.
    pub(super) fn linear(&mut self, linear: &Linear, x: Slice, n: usize) -> Result<Slice, GpuError> {
        let (out, input) = (self.weight(linear.weight).rows, self.weight(linear.weight).width);
        let y = self.buffers.take(self.bytes(n * out))?;
        let bias = linear.bias.map(|id| self.weight(id).value);
        let variant = if bias.is_some() { "_bias" } else { "" };
        let launched = Matmul {
            x,
            w: self.weight(linear.weight).value,
            bias: bias.unwrap_or(self.zeros),
            y,
            n: n as i32,
            m: out as i32,
            k: input as i32,
        };
        self.launch_matmul(variant, &launched)?;
        let base_only = self.base_only;
        for adapter in linear.adapters.iter().filter(|_| !base_only) {
            let (b, rank) = (self.weight(adapter.b), self.weight(adapter.a).rows);
            let low = self.low(adapter.a, x, n)?;
            let from = self.bytes(adapter.column);
            let launched = MatmulAdd {
                x: low,
                w: b.value,
                y: y.part(from, y.bytes - from),
                n: n as i32,
                m: b.rows as i32,
                k: rank as i32,
                stride: out as i32,
                scale: adapter.scale,
            };
            self.launch(&format!("matmul_add.{}", self.t()), [up(b.rows, 64), up(n, 64), 1], &launched)?;
            self.buffers.give(low)?;
        }
        Ok(y)
    }

    /// x [n, in] times the first factor of an adapter: [n, rank].
    pub(super) fn low(&mut self, a: super::MatrixId, x: Slice, n: usize) -> Result<Slice, GpuError> {
        let a = self.weight(a);
        let y = self.buffers.take(self.bytes(n * a.rows))?;
        let bias = self.zeros;
        let (n, m, k) = (n as i32, a.rows as i32, a.width as i32);
        self.launch_matmul("", &Matmul { x, w: a.value, bias, y, n, m, k })?;
        Ok(y)
    }

    pub(super) fn launch_matmul(&mut self, variant: &str, launched: &Matmul) -> Result<(), GpuError> {
        let (name, grid) = kernels::matmul(variant, launched, self.options.element)?;
        self.launch(&name, grid, launched)
    }
}
