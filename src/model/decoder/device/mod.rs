//! Steps of cached sequences on a device: one upload of everything that a step needs, at most ten launches a block for
//! plain families, one download of the requested logits.

mod rows;
pub(super) mod weights;

use self::rows::{Buffers, Rows, Scratch, buffers, logit_sizes, most_scratch, pack};
use self::weights::{Block, Element, Matrix, NormWeights, Weights, candle};
use super::Decoder;
use super::kv_cache::{PAGE, StepRows};
use crate::gpu::arena::GRAIN;
use crate::gpu::device::{Counts, Device, launch};
use crate::gpu::launch::{
    Activate, Add, Attend, Combine, Embed, GatherRows, Matmul, Norm as NormLaunch, RopeCache, ShapeLogits,
};
use crate::gpu::manifest::kernel;
use crate::gpu::{GpuError, Slice};
use crate::model::layers::rope_tables;
use crate::model::{Activation, ModelConfig, QkNorm};
use crate::ops::linear::WeightFormat;
use crate::ops::rope::RopeTable;

/// Head sizes, in channels, that attention was compiled for.
const HEADS: [usize; 4] = [32, 64, 128, 256];

/// The memory that a model on a device needs in addition to its weights.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Requested pages of the cache; fewer are allocated where the memory does not suffice.
    pub pages: usize,
    /// Most tokens of a step, and most rows of a step whose logits are requested.
    pub rows: usize,
    pub wanted: usize,
}

/// A decoder on a device, with the pages of its cache. `KvCache` keeps the owners of the pages.
pub struct DeviceModel {
    config: ModelConfig,
    element: Element,
    device: Box<dyn Device>,
    weights: Weights,
    /// Keys and values of each block: [pages][kv heads][16][head_dim].
    pages: Vec<[Slice; 2]>,
    page_count: usize,
    ropes: [Option<std::sync::Arc<RopeTable>>; 2],
    /// Channels that attention's kernels are compiled for.
    wide: usize,
    inverse: f32,
    cap: Option<f32>,
}

/// A term that is still to be added to the hidden states.
type Pending = Option<Slice>;

fn up(a: usize, b: usize) -> usize {
    a.div_ceil(b)
}

impl DeviceModel {
    /// Copies the weights of `decoder`, built for `Purpose::Score`, and allocates pages in the memory that the largest
    /// step leaves free: the requested number, or as many as fit.
    ///
    /// # Errors
    /// `OutOfMemory`, also when not even one whole context fits; formats other than f32 and bf16, and heads of more
    /// than 256 channels.
    pub fn new(
        decoder: &Decoder,
        mut device: Box<dyn Device>,
        format: WeightFormat,
        room: Room,
    ) -> Result<Self, GpuError> {
        let c = decoder.config.clone();
        let element = match format {
            WeightFormat::F32 => Element::F32,
            WeightFormat::Bf16 => Element::Bf16,
            other => {
                let name = other.as_str();
                return Err(GpuError::Launch(format!(
                    "weights = \"{name}\" is for the CPU; this device takes f32 or bf16"
                )));
            }
        };
        let Some(wide) = HEADS.into_iter().find(|wide| *wide >= c.head_dim) else {
            return Err(GpuError::Launch(format!("heads of {} channels: this device takes at most 256", c.head_dim)));
        };
        if wide > 64 && !c.head_dim.is_multiple_of(8) {
            let why = format!("heads of {} channels: above 64, this device takes multiples of 8", c.head_dim);
            return Err(GpuError::Launch(why));
        }
        let weights = weights::load(decoder, device.as_mut(), element)?;
        let page = c.n_kv_heads * PAGE * c.head_dim * element.bytes();
        let (used, total) = device.memory();
        let free = (total - used).saturating_sub(most_scratch(&c, element, &weights, room));
        // A pool of each kind and block ends at a multiple of the arena's grain.
        let pools = 2 * c.n_layers as u64;
        let fits = (free / pools).saturating_sub(GRAIN) / page as u64;
        let page_count = room.pages.min(usize::try_from(fits).unwrap_or(usize::MAX));
        let least = c.max_positions.div_ceil(PAGE).min(room.pages);
        if page_count < least {
            let wanted = pools * (least * page) as u64;
            return Err(GpuError::OutOfMemory { wanted, free });
        }
        let bytes = page_count * page;
        let pool = |device: &mut dyn Device| Ok::<_, GpuError>([device.alloc(bytes)?, device.alloc(bytes)?]);
        let pages = (0..c.n_layers).map(|_| pool(device.as_mut())).collect::<Result<Vec<_>, _>>()?;
        // What the largest step needs is taken now, so that no other user of the device gets it first.
        let scratch = device.alloc(most_scratch(&c, element, &weights, room) as usize)?;
        device.free(scratch)?;
        device.wait()?;
        Ok(Self {
            ropes: rope_tables::tables(&c),
            inverse: 1.0 / c.switches.logit_divisor as f32,
            cap: c.switches.logit_softcap.map(|cap| cap as f32),
            config: c,
            element,
            device,
            weights,
            pages,
            page_count,
            wide,
        })
    }

    /// Number of pages.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    pub fn counts(&self) -> Counts {
        self.device.counts()
    }

    /// Bytes in use on the device, and its total bytes.
    pub fn memory(&self) -> (u64, u64) {
        self.device.memory()
    }

    /// Copies a page of every block, before the next step.
    ///
    /// # Errors
    /// When a page does not exist.
    pub fn copy_page(&mut self, from: u32, to: u32) -> Result<(), GpuError> {
        let bytes = self.config.n_kv_heads * PAGE * self.config.head_dim * self.element.bytes();
        for pool in self.pages.iter().flatten() {
            let page = |i: u32| pool.part(i as usize * bytes, bytes);
            self.device.copy(page(from), page(to))?;
        }
        Ok(())
    }

    /// Advances cached sequences as `Decoder::step` does, and returns the logits [wanted, vocab] of chosen rows.
    ///
    /// # Errors
    /// A position or an id that the model does not have; `OutOfMemory`, which leaves the cache unchanged; a failure of
    /// the device.
    pub fn step(&mut self, decoder: &Decoder, rows: &StepRows, wanted: &[u32]) -> Result<Vec<f32>, GpuError> {
        let positions = rows.positions();
        decoder.check_positions(&positions).map_err(candle)?;
        if let Some(id) = rows.ids().iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(GpuError::Launch(format!(
                "token {id} is outside the vocabulary of {}",
                self.config.vocab_size
            )));
        }
        let Self { config, element, device, weights, pages, ropes, wide, inverse, cap, .. } = self;
        let mut scratch = Scratch { device: device.as_mut(), held: Vec::new() };
        let step = || -> Result<Option<crate::gpu::device::Download>, GpuError> {
            let at = pack(&mut scratch, decoder, config, ropes, rows, &positions, wanted)?;
            let buffers = buffers(&mut scratch, config, *element, weights, &at)?;
            let pass = Pass { config, element: *element, weights, wide: *wide, rows: &at, b: &buffers };
            pass.embed(scratch.device, decoder, rows, &positions)?;
            let mut pending = None;
            for (block, pools) in weights.blocks.iter().zip(pages) {
                pending = pass.block(scratch.device, block, pools, pending)?;
            }
            pass.add(scratch.device, pending)?;
            if wanted.is_empty() {
                return Ok(None);
            }
            let logits = pass.logits(&mut scratch, *inverse, *cap)?;
            scratch.device.download(logits).map(Some)
        };
        let download = step();
        scratch.give()?;
        let waited = device.wait();
        let download = download?;
        waited?;
        let Some(download) = download else { return Ok(Vec::new()) };
        let bytes = device.take(download)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// Rows of the tiles of a product with `n` rows and `out` outputs. Few rows wait for the weights, which narrow tiles
/// read best; large tiles read less, once they are enough to occupy a GPU. Measured on an H200.
pub(super) fn tile_rows(n: usize, out: usize, element: Element) -> usize {
    const MULTIPROCESSORS: usize = 132;
    if n <= 32 {
        16
    } else if element == Element::Bf16 && up(n, 128) * up(out, 64) >= MULTIPROCESSORS {
        128
    } else {
        64
    }
}

/// The launches of one step.
struct Pass<'a> {
    config: &'a ModelConfig,
    element: Element,
    weights: &'a Weights,
    wide: usize,
    rows: &'a Rows,
    b: &'a Buffers,
}

impl Pass<'_> {
    fn t(&self) -> &'static str {
        self.element.as_str()
    }

    fn d(&self) -> i32 {
        self.config.hidden_size as i32
    }

    fn residual(&self) -> f32 {
        self.config.switches.residual_scale as f32
    }

    /// The initial hidden states: token embeddings, replaced by soft rows where given, plus learned positions.
    fn embed(&self, device: &mut dyn Device, decoder: &Decoder, rows: &StepRows, at: &[u32]) -> Result<(), GpuError> {
        let table = self.weights.positions;
        let name = format!("embed{}.{}", if table.is_some() { "_at" } else { "" }, self.t());
        let launched = Embed {
            ids: self.rows.ids,
            table: self.weights.embed,
            positions: self.rows.positions,
            position_table: table.unwrap_or(self.weights.embed),
            out: self.b.x,
            d: self.d(),
            scale: self.config.switches.embedding_scale as f32,
        };
        launch(device, &name, [self.rows.n, 1, 1], &launched)?;
        for soft in rows.soft() {
            let mut values = soft.embeddings.detach();
            let count = values.dim(0).map_err(candle)?;
            if let Some(table) = &decoder.positions {
                let at = candle_core::Tensor::new(&at[soft.row..soft.row + count], table.device()).map_err(candle)?;
                values = (values + table.detach().index_select(&at, 0).map_err(candle)?).map_err(candle)?;
            }
            let values: Vec<f32> = values.flatten_all().and_then(|v| v.to_vec1()).map_err(candle)?;
            let width = self.config.hidden_size * 4;
            device.upload(self.b.x.part(soft.row * width, count * width), bytemuck::cast_slice(&values))?;
        }
        Ok(())
    }

    /// x += scale · pending, where a term is pending.
    fn add(&self, device: &mut dyn Device, pending: Pending) -> Result<(), GpuError> {
        let Some(branch) = pending else { return Ok(()) };
        let count = self.rows.n * self.config.hidden_size;
        let launched = Add { x: self.b.x, branch, count: count as i32, scale: self.residual() };
        launch(device, &format!("add.{}", self.t()), [up(count, 1024), 1, 1], &launched)
    }

    /// The input of the next part: the norm of the hidden states, after the pending term is added.
    fn normed(&self, device: &mut dyn Device, norm: Option<&NormWeights>, pending: Pending) -> Result<Slice, GpuError> {
        let (d, t) = (self.d(), self.t());
        let Some(norm) = norm else {
            self.add(device, pending)?;
            if self.element == Element::F32 {
                return Ok(self.b.x);
            }
            let launched = GatherRows { x: self.b.x, rows: self.rows.every, y: self.b.normed, d };
            let grid = [self.rows.n, up(self.config.hidden_size, 1024), 1];
            launch(device, &format!("gather_rows.{t}"), grid, &launched)?;
            return Ok(self.b.normed);
        };
        let name = format!("{}{}.{t}", if pending.is_some() { "add_" } else { "" }, kind(norm));
        let launched = NormLaunch {
            x: self.b.x,
            branch: pending.unwrap_or(self.b.branch[0]),
            weight: norm.weight,
            bias: norm.bias,
            y: self.b.normed,
            d,
            x_stride: d,
            y_stride: d,
            eps: norm.eps,
            scale: self.residual(),
            offset: norm.offset,
        };
        launch(device, &name, [self.rows.n, 1, 1], &launched)?;
        Ok(self.b.normed)
    }

    /// Normalises `width` channels of rows with a stride of `stride` elements, in place.
    fn norm_in_place(
        &self,
        device: &mut dyn Device,
        norm: &NormWeights,
        x: Slice,
        sizes: [usize; 2],
    ) -> Result<(), GpuError> {
        let [width, stride] = sizes.map(|size| size as i32);
        let name = match self.element {
            Element::F32 => format!("{}.f32", kind(norm)),
            Element::Bf16 => format!("{}_of.bf16", kind(norm)),
        };
        let launched = NormLaunch {
            x,
            branch: x,
            weight: norm.weight,
            bias: norm.bias,
            y: x,
            d: width,
            x_stride: stride,
            y_stride: stride,
            eps: norm.eps,
            scale: 1.0,
            offset: norm.offset,
        };
        launch(device, &name, [self.rows.n, 1, 1], &launched)
    }

    fn matmul(&self, device: &mut dyn Device, x: Slice, w: &Matrix, y: Slice) -> Result<(), GpuError> {
        self.product(device, x, w, y, self.rows.n, if w.bias.is_some() { "_bias" } else { "" })
    }

    /// The size of the tiles depends on the number of rows; the order of every sum does not.
    fn product(
        &self,
        device: &mut dyn Device,
        x: Slice,
        w: &Matrix,
        y: Slice,
        n: usize,
        variant: &str,
    ) -> Result<(), GpuError> {
        let launched = Matmul {
            x,
            w: w.weight,
            bias: w.bias.unwrap_or(self.weights.zeros),
            y,
            n: n as i32,
            m: w.out as i32,
            k: w.input as i32,
        };
        let (rows, any) = match w.input % 8 {
            0 => (tile_rows(n, w.out, self.element), ""),
            _ => (tile_rows(n, w.out, Element::F32), "_any"),
        };
        let name = format!("matmul{variant}{any}.{rows}.{}", self.t());
        let tile = kernel(&name)?;
        let grid = [up(w.out, tile.constant("BM")), up(n, tile.constant("BN")), 1];
        launch(device, &name, grid, &launched)
    }

    /// One block; returns the term to be added to the hidden states after it.
    fn block(
        &self,
        device: &mut dyn Device,
        block: &Block,
        pools: &[Slice; 2],
        pending: Pending,
    ) -> Result<Pending, GpuError> {
        let parallel = self.config.switches.parallel;
        let source = self.normed(device, block.attn_norm.as_ref(), pending)?;
        self.matmul(device, source, &block.qkv, self.b.qkv)?;
        self.attention(device, block, pools)?;
        self.matmul(device, self.b.mixed, &block.out, self.b.branch[0])?;
        let d = self.config.hidden_size;
        if let Some(norm) = &block.attn_post {
            self.norm_in_place(device, norm, self.b.branch[0], [d, d])?;
        }
        // In parallel blocks the feed-forward network reads the hidden states without the output of attention.
        let before = if parallel { None } else { Some(self.b.branch[0]) };
        let source = self.normed(device, block.mlp_norm.as_ref(), before)?;
        self.matmul(device, source, &block.up, self.b.up)?;
        let inner = block.down.input;
        let name = match block.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu_erf",
        };
        let name = format!("{name}{}.{}", if block.gated { "_gated" } else { "" }, self.t());
        let launched = Activate { x: self.b.up, y: self.b.act, inner: inner as i32 };
        launch(device, &name, [self.rows.n, up(inner, 1024), 1], &launched)?;
        self.matmul(device, self.b.act, &block.down, self.b.branch[1])?;
        if let Some(norm) = &block.mlp_post {
            self.norm_in_place(device, norm, self.b.branch[1], [d, d])?;
        }
        if parallel {
            self.add(device, Some(self.b.branch[0]))?;
        }
        Ok(Some(self.b.branch[1]))
    }

    /// From q, k and v to the output of attention; keys and values are written into their pages.
    fn attention(&self, device: &mut dyn Device, block: &Block, pools: &[Slice; 2]) -> Result<(), GpuError> {
        let (c, rows, b, t) = (self.config, self.rows, self.b, self.t());
        let (hd, width) = (c.head_dim, block.qkv.out);
        let [heads, kv_heads] = [c.n_heads, c.n_kv_heads];
        let mut by_head_norm = None;
        match &block.qk_norm {
            // A norm per head is applied with the rotation; a norm over all heads, before it.
            Some(norms) if c.switches.qk_norm == QkNorm::Heads => by_head_norm = Some(norms),
            Some([q, k]) => {
                let size = self.element.bytes();
                self.norm_in_place(device, q, b.qkv, [heads * hd, width])?;
                let rest = b.qkv.part(heads * hd * size, b.qkv.bytes - heads * hd * size);
                self.norm_in_place(device, k, rest, [kv_heads * hd, width])?;
            }
            None => {}
        }
        let rope = block.rope.and_then(|i| rows.rope[i]);
        // Without rotation no table is read, so any slice serves as the argument.
        let (cos, sin, half) = rope.unwrap_or((b.x, b.x, 0));
        let zeros = self.weights.zeros;
        let (stride, k_base, v_base) = match block.by_head {
            true => (3 * hd, hd, 2 * hd),
            false => (hd, heads * hd, (heads + kv_heads) * hd),
        };
        let launched = RopeCache {
            qkv: b.qkv,
            cos,
            sin,
            rotary: rows.every,
            slots: rows.slots,
            q_weight: by_head_norm.map_or(zeros, |n| n[0].weight),
            k_weight: by_head_norm.map_or(zeros, |n| n[1].weight),
            q_out: b.q,
            keys: pools[0],
            values: pools[1],
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            hd: hd as i32,
            half: half as i32,
            width: width as i32,
            head_stride: stride as i32,
            k_base: k_base as i32,
            v_base: v_base as i32,
            eps: by_head_norm.map_or(0.0, |n| n[0].eps),
            offset: by_head_norm.map_or(0.0, |n| n[0].offset),
        };
        let name = if by_head_norm.is_some() { "rope_cache_norm" } else { "rope_cache" };
        launch(device, &format!("{name}.{}.{t}", self.wide), [rows.n, heads + 2 * kv_heads, 1], &launched)?;
        let cap = c.switches.attention_softcap.map(|cap| cap as f32);
        let launched = Attend {
            q: b.q,
            keys: pools[0],
            values: pools[1],
            tables: rows.tables,
            tiles: rows.tiles,
            partial: b.partial,
            maxima: b.maxima,
            sums: b.sums,
            n: rows.n as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            hd: hd as i32,
            table_width: rows.table_width as i32,
            window: block.window as i32,
            scale: c.attention_scale(),
            cap: cap.unwrap_or(0.0),
        };
        let name = if cap.is_some() { "attend_cap" } else { "attend" };
        let any = if hd.is_multiple_of(8) { "" } else { "_any" };
        launch(device, &format!("{name}{any}.{}.{t}", self.wide), [rows.tile_count, kv_heads, rows.splits], &launched)?;
        let launched = Combine {
            partial: b.partial,
            maxima: b.maxima,
            sums: b.sums,
            positions: rows.positions,
            out: b.mixed,
            n: rows.n as i32,
            heads: heads as i32,
            hd: hd as i32,
            window: block.window as i32,
        };
        launch(device, &format!("combine.{}.{t}", self.wide), [rows.n, heads, 1], &launched)
    }

    /// Logits [wanted, vocab], f32, of the requested rows of the final hidden states.
    fn logits(&self, scratch: &mut Scratch<'_>, inverse: f32, cap: Option<f32>) -> Result<Slice, GpuError> {
        let (d, m, vocab) = (self.config.hidden_size, self.rows.wanted_count, self.config.vocab_size);
        let [picked, hidden, logits] = logit_sizes(self.config, self.element, m).map(|bytes| scratch.take(bytes));
        let (picked, hidden, logits) = (picked?, hidden?, logits?);
        let device = &mut *scratch.device;
        let launched = GatherRows { x: self.b.x, rows: self.rows.wanted, y: picked, d: d as i32 };
        launch(device, "gather_rows.f32", [m, up(d, 1024), 1], &launched)?;
        let norm = &self.weights.final_norm;
        let launched = NormLaunch {
            x: picked,
            branch: hidden,
            weight: norm.weight,
            bias: norm.bias,
            y: hidden,
            d: d as i32,
            x_stride: d as i32,
            y_stride: d as i32,
            eps: norm.eps,
            scale: 1.0,
            offset: norm.offset,
        };
        launch(device, &format!("{}.{}", kind(norm), self.t()), [m, 1, 1], &launched)?;
        let variant = if self.element == Element::F32 { "" } else { "_out" };
        self.product(device, hidden, &self.weights.head, logits, m, variant)?;
        if inverse != 1.0 || cap.is_some() {
            let count = m * vocab;
            let launched = ShapeLogits { z: logits, count: count as i32, inverse, cap: cap.unwrap_or(0.0) };
            let name = if cap.is_some() { "cap_logits" } else { "scale_logits" };
            launch(device, name, [up(count, 1024), 1, 1], &launched)?;
        }
        Ok(logits)
    }
}

fn kind(norm: &NormWeights) -> &'static str {
    if norm.layer { "layer" } else { "rms" }
}
