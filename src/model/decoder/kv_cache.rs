//! Paged key/value cache on the CPU: pages of 16 tokens, reference-counted so that sequences can share a
//! prefix. Layout is the attention kernel's own, so in f32 serving and training compute identical numbers.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

pub use super::kv_pages::GONE;
use super::kv_pages::Pages;
use crate::model::adapters::served::{AdapterRows, ServedAdapter};
use crate::model::{ModelConfig, SoftRows};
use crate::ops::attn_kernel::{MAX_ROWS, Scratch, attend, padded};
use crate::ops::kv_blocks::{KvBlocks, KvFormat, KvKind};
use crate::ops::par::{SharedMut, split};
use crate::ops::rope::Row;
use crate::ops::simd::LANES;
use crate::ops::{fused, read, tensor};

/// Tokens per page.
pub const PAGE: usize = LANES;

/// Keys and values of all layers for a fixed number of pages. Windowed layers have separate pages, which sequences free
/// once no later token attends to them.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Pool>,
    /// Key/value heads = blocks of a page in one pool.
    heads: usize,
    pages: Pages,
    windowed: Option<Windowed>,
    /// Pages that the holder of the contents must copy before the next step; `None` where this cache holds the
    /// contents.
    copies: Option<Vec<(u32, u32)>>,
}

#[derive(Debug)]
struct Windowed {
    pages: Pages,
    /// The widest of the layers' windows.
    window: usize,
    /// Whether layer i is windowed.
    layers: Vec<bool>,
}

/// Keys and values of one layer: a page has one block for each key/value head.
#[derive(Debug)]
struct Pool {
    k: KvBlocks,
    v: KvBlocks,
}

/// One cached sequence: its pages in order, and how many tokens are written.
#[derive(Debug, Default)]
pub struct CachedSequence {
    pub pages: Vec<u32>,
    /// The pages of windowed layers, as many as `pages`; `GONE` where no later token attends to a page. Empty without
    /// such layers.
    pub windowed: Vec<u32>,
    pub len: usize,
    pub rope: RopeLength,
}

/// The properties of a sequence's length that determine its rotary frequencies; see `Decoder::rope_length`. The default
/// means the trained frequencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RopeLength {
    /// Whether the frequencies of long sequences apply (longrope).
    pub long: bool,
    /// Dynamic scaling: the number of tokens fed at once, when it exceeds the trained length; otherwise 0.
    pub grown: usize,
}

impl RopeLength {
    /// Whether sequences that begin with the same tokens have the same keys for them, so that they can share pages.
    pub fn shares_prefixes(self) -> bool {
        self == Self::default()
    }
}

impl KvCache {
    /// A cache in f32 for `tokens` tokens (rounded up to pages). The memory is not touched until it is used.
    pub fn new(config: &ModelConfig, tokens: usize) -> Self {
        Self::with_format(config, KvFormat::F32, tokens, tokens)
    }

    /// A cache for `tokens` tokens, and for `windowed` tokens in windowed layers (both rounded up to pages).
    pub fn with_format(config: &ModelConfig, format: KvFormat, tokens: usize, windowed: usize) -> Self {
        let (pages, fewer) = (tokens.div_ceil(PAGE), windowed.min(tokens).div_ceil(PAGE));
        let windows: Vec<Option<usize>> = (0..config.n_layers).map(|i| config.layer(i).window).collect();
        let pool = |window: &Option<usize>| {
            let blocks = if window.is_some() { fewer } else { pages } * config.n_kv_heads;
            let blocks = |kind| KvBlocks::new(format, kind, blocks, padded(config.head_dim));
            Pool { k: blocks(KvKind::Keys), v: blocks(KvKind::Values) }
        };
        let layers = windows.iter().map(pool).collect();
        let windowed = windows.iter().flatten().max().map(|window| Windowed {
            pages: Pages::new(fewer),
            window: *window,
            layers: windows.iter().map(Option::is_some).collect(),
        });
        Self { layers, heads: config.n_kv_heads, pages: Pages::new(pages), windowed, copies: None }
    }

    /// The accounting of pages for `tokens` tokens without keys and values, which are on a device. There, windowed
    /// layers share the pages of the other layers.
    pub fn on_device(tokens: usize) -> Self {
        let pages = Pages::new(tokens.div_ceil(PAGE));
        Self { layers: Vec::new(), heads: 0, pages, windowed: None, copies: Some(Vec::new()) }
    }

    /// Memory for the keys and values of all pages; 0 where they are on a device.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|pool| pool.k.bytes() + pool.v.bytes()).sum()
    }

    /// Pages to be copied (from, to), in order, before the next step.
    pub fn take_copies(&mut self) -> Vec<(u32, u32)> {
        self.copies.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub fn total_pages(&self) -> usize {
        self.pages.total()
    }

    pub fn free_pages(&self) -> usize {
        self.pages.free()
    }

    /// Pages of windowed layers (all, free); without such layers both are large enough for any request.
    pub fn windowed_pages(&self) -> (usize, usize) {
        self.windowed.as_ref().map_or((usize::MAX, usize::MAX), |w| (w.pages.total(), w.pages.free()))
    }

    /// Pages of windowed layers that a sequence of `pages` pages needs when it is fed `tokens` tokens at a time.
    pub fn windowed_need(&self, pages: usize, tokens: usize) -> usize {
        self.windowed.as_ref().map_or(0, |w| pages.min((w.window + tokens).div_ceil(PAGE) + 1))
    }

    /// The first page that a token at position `len` attends to in windowed layers.
    pub fn first_seen(&self, len: usize) -> usize {
        self.windowed.as_ref().map_or(0, |w| (len + 1).saturating_sub(w.window) / PAGE)
    }

    /// Whether some layers are windowed.
    pub fn has_windows(&self) -> bool {
        self.windowed.is_some()
    }

    /// Reserves pages for `extra` more tokens; returns false and changes nothing when there are not enough pages.
    #[must_use]
    pub fn reserve(&mut self, sequence: &mut CachedSequence, extra: usize) -> bool {
        let need = (sequence.len + extra).div_ceil(PAGE).saturating_sub(sequence.pages.len());
        if need > self.pages.free() || need > self.windowed_pages().1 {
            return false;
        }
        for _ in 0..need {
            sequence.pages.extend(self.pages.take());
            if let Some(windowed) = &mut self.windowed {
                sequence.windowed.extend(windowed.pages.take());
            }
        }
        true
    }

    /// Frees the pages of windowed layers that no later token of the sequence attends to.
    pub fn trim(&mut self, sequence: &mut CachedSequence) {
        let seen = self.first_seen(sequence.len);
        let Some(windowed) = &mut self.windowed else { return };
        for page in sequence.windowed.iter_mut().take(seen).rev().take_while(|page| **page != GONE) {
            windowed.pages.release(std::mem::replace(page, GONE));
        }
    }

    /// The number of references to a page.
    pub fn references(&self, page: u32) -> u32 {
        self.pages.references(page)
    }

    /// Adds a reference to a page.
    pub fn retain(&mut self, page: u32) {
        self.pages.retain(page);
    }

    /// Adds a reference to a page of windowed layers, unless it is `GONE`.
    pub fn retain_windowed(&mut self, page: u32) {
        if let Some(windowed) = &mut self.windowed {
            windowed.pages.retain(page);
        }
    }

    /// Drops a reference to a page; true when the page became free.
    pub fn release(&mut self, page: u32) -> bool {
        self.pages.release(page)
    }

    /// Drops a reference to a page of windowed layers, unless it is `GONE`; true when the page became free.
    pub fn release_windowed(&mut self, page: u32) -> bool {
        self.windowed.as_mut().is_some_and(|windowed| windowed.pages.release(page))
    }

    pub fn release_all(&mut self, sequence: &mut CachedSequence) {
        for page in sequence.pages.drain(..) {
            self.pages.release(page);
        }
        for page in sequence.windowed.drain(..) {
            self.release_windowed(page);
        }
        sequence.len = 0;
    }

    /// Creates a second sequence with the same tokens: full pages are shared, the last partial one is copied.
    pub fn fork(&mut self, sequence: &CachedSequence) -> Option<CachedSequence> {
        let full = sequence.len / PAGE;
        let head = |pages: &[u32]| pages.get(..full).unwrap_or_default().to_vec();
        let mut copy = CachedSequence {
            pages: head(&sequence.pages),
            windowed: head(&sequence.windowed),
            len: full * PAGE,
            rope: sequence.rope,
        };
        let rest = sequence.len - copy.len;
        if !self.reserve(&mut copy, rest) {
            return None;
        }
        for page in &sequence.pages[..full] {
            self.retain(*page);
        }
        if let (Some(copies), true) = (&mut self.copies, rest > 0) {
            copies.push((sequence.pages[full], copy.pages[full]));
        }
        for page in sequence.windowed.iter().take(full) {
            self.retain_windowed(*page);
        }
        if rest > 0 {
            let blocks = self.heads;
            for (i, pool) in self.layers.iter_mut().enumerate() {
                let windowed = self.windowed.as_ref().is_some_and(|w| w.layers[i]);
                let of = |s: &CachedSequence| if windowed { s.windowed[full] } else { s.pages[full] } as usize * blocks;
                let (from, to) = (of(sequence), of(&copy));
                pool.k.copy(from, to, blocks);
                pool.v.copy(from, to, blocks);
            }
            copy.len = sequence.len;
        }
        Some(copy)
    }

    /// Writes the rows' keys and values into layer `layer`, then attends: q [N, heads·hd] → [N, heads·hd].
    ///
    /// Tensors on other devices are copied to the CPU and back, which is correct but slow.
    pub fn attend(
        &mut self,
        layer: usize,
        rows: &StepRows,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        config: &ModelConfig,
    ) -> Result<Tensor> {
        if !fused(q) {
            let home = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32);
            let out = self.attend(layer, rows, &home(q)?, &home(k)?, &home(v)?, config)?;
            return out.to_device(q.device())?.to_dtype(q.dtype());
        }
        let mut out = vec![0f32; q.elem_count()];
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        self.attend_rows(layer, rows, [&read(&q)?, &read(&k)?, &read(&v)?], &mut out, config);
        tensor(out, q.shape())
    }

    /// Writes keys and values of new rows into the cache and attends with their queries, on plain slices.
    pub(in crate::model) fn attend_rows(
        &mut self,
        layer: usize,
        rows: &StepRows,
        [q, k, v]: [&[f32]; 3],
        out: &mut [f32],
        config: &ModelConfig,
    ) {
        let pool = &mut self.layers[layer];
        let window = config.layer(layer).window;
        pool.write(rows, k, v, config, window.is_some());
        pool.read(rows, q, out, config, window);
    }
}

impl Pool {
    fn write(&mut self, rows: &StepRows, k: &[f32], v: &[f32], config: &ModelConfig, windowed: bool) {
        let (d, heads) = (config.head_dim, config.n_kv_heads);
        for segment in &rows.segments {
            for i in 0..segment.len {
                let (row, position) = (segment.first_row + i, segment.start + i);
                let page = segment.pages(windowed)[position / PAGE] as usize * heads;
                for h in 0..heads {
                    let from = (row * heads + h) * d;
                    self.k.put(page + h, position % PAGE, &k[from..from + d]);
                    self.v.put(page + h, position % PAGE, &v[from..from + d]);
                }
            }
        }
    }

    fn read(&self, rows: &StepRows, q: &[f32], out: &mut [f32], config: &ModelConfig, window: Option<usize>) {
        let (d, hd) = (config.head_dim, padded(config.head_dim));
        let per_kv = config.n_heads / config.n_kv_heads;
        let (scale, cap) = (config.attention_scale(), config.switches.attention_softcap.map(|cap| cap as f32));
        let tasks = rows.tasks(config.n_kv_heads, per_kv);
        let work = rows.segments.iter().map(|s| s.len * (s.start + s.len)).sum::<usize>() * config.n_heads * d * 2;
        let shared = SharedMut::new(out);
        split(tasks.len(), work, |range| {
            let mut scratch = Scratch::default();
            for task in &tasks[range] {
                let segment = &rows.segments[task.segment];
                let pages = segment.pages(window.is_some());
                let block = |b: usize| pages[b] as usize * config.n_kv_heads + task.kv_head;
                let mut at = Vec::with_capacity(MAX_ROWS);
                let mut seen = Vec::with_capacity(MAX_ROWS);
                for i in task.from..task.to {
                    for h in task.head_from..task.head_to {
                        at.push((segment.first_row + i) * config.n_heads + task.kv_head * per_kv + h);
                        let end = segment.start + i + 1;
                        seen.push(window.map_or(0, |window| end.saturating_sub(window))..end);
                    }
                }
                scratch.q.clear();
                scratch.q.resize(at.len() * hd, 0.0);
                for (i, from) in at.iter().enumerate() {
                    for (t, f) in scratch.q[i * hd..i * hd + d].iter_mut().zip(&q[from * d..(from + 1) * d]) {
                        *t = f * scale;
                    }
                }
                scratch.out.resize(at.len() * hd, 0.0);
                let stride = (segment.start + segment.len).div_ceil(PAGE) * PAGE;
                let (kb, vb) = (|b| self.k.block(block(b)), |b| self.v.block(block(b)));
                let Scratch { scores, q, out } = &mut scratch;
                attend(q, &seen, cap, hd, kb, vb, scores, stride, out);
                for (i, to) in at.iter().enumerate() {
                    // SAFETY: each (row, head) belongs to one task.
                    unsafe { shared.slice(to * d, d) }.copy_from_slice(&scratch.out[i * hd..i * hd + d]);
                }
            }
        });
    }
}

/// New tokens of some sequences, concatenated: the input of one step.
#[derive(Debug, Default)]
pub struct StepRows {
    ids: Vec<u32>,
    soft: Vec<SoftRows>,
    adapters: Vec<AdapterRows>,
    segments: Vec<Segment>,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub(super) struct Segment {
    pub first_row: usize,
    /// Position of the first new token = tokens already cached.
    pub start: usize,
    pub len: usize,
    pub pages: Arc<[u32]>,
    windowed: Arc<[u32]>,
    rope: RopeLength,
}

impl Segment {
    fn pages(&self, windowed: bool) -> &[u32] {
        if windowed { &self.windowed } else { &self.pages }
    }
}

struct Task {
    segment: usize,
    kv_head: usize,
    from: usize,
    to: usize,
    head_from: usize,
    head_to: usize,
}

impl StepRows {
    /// Adds new tokens of one sequence; its pages must have room (`KvCache::reserve`). Returns the row
    /// of the last of them. The caller advances `sequence.len` after the step.
    pub fn push(&mut self, ids: &[u32], sequence: &CachedSequence) -> usize {
        let segment = Segment {
            first_row: self.ids.len(),
            start: sequence.len,
            len: ids.len(),
            pages: sequence.pages.as_slice().into(),
            windowed: sequence.windowed.as_slice().into(),
            rope: sequence.rope,
        };
        assert!(segment.pages.len() * PAGE >= segment.start + segment.len, "pages not reserved");
        self.segments.push(segment);
        self.ids.extend_from_slice(ids);
        self.ids.len() - 1
    }

    /// Makes rows `row..row + n`, which have been pushed, read `embeddings` [n, d] instead of their ids. Calls must be
    /// in ascending order of rows.
    pub fn replace(&mut self, row: usize, embeddings: Tensor) {
        self.soft.push(SoftRows { row, embeddings });
    }

    /// Sets the adapter of the last `n` rows that were pushed.
    pub fn with_adapter(&mut self, adapter: &Arc<ServedAdapter>, n: usize) {
        let own = (self.ids.len() - n) as u32..self.ids.len() as u32;
        match self.adapters.iter_mut().find(|known| Arc::ptr_eq(&known.adapter, adapter)) {
            Some(known) => known.rows.extend(own),
            None => self.adapters.push(AdapterRows { adapter: adapter.clone(), rows: own.collect() }),
        }
    }

    pub(in crate::model) fn adapters(&self) -> &[AdapterRows] {
        &self.adapters
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn soft(&self) -> &[SoftRows] {
        &self.soft
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    pub fn positions(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|s| (s.start..s.start + s.len).map(|p| p as u32)).collect()
    }

    /// Rows in the tables of rotary positions; `of` maps a sequence and a position to a row.
    pub(in crate::model) fn rotary(&self, of: impl Fn(&RopeLength, usize) -> Row) -> Vec<Row> {
        let of = &of;
        self.segments.iter().flat_map(|s| (s.start..s.start + s.len).map(move |p| of(&s.rope, p))).collect()
    }

    fn tasks(&self, kv_heads: usize, per_kv: usize) -> Vec<Task> {
        let step = (MAX_ROWS / per_kv).max(1);
        let mut tasks = Vec::new();
        for (segment, s) in self.segments.iter().enumerate() {
            for kv_head in 0..kv_heads {
                for from in (0..s.len).step_by(step) {
                    for head_from in (0..per_kv).step_by(MAX_ROWS) {
                        let (to, head_to) = ((from + step).min(s.len), (head_from + MAX_ROWS).min(per_kv));
                        tasks.push(Task { segment, kv_head, from, to, head_from, head_to });
                    }
                }
            }
        }
        tasks
    }
}
