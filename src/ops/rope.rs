//! Rotary position embedding (arXiv 2104.09864), half-split layout as in Hugging Face, with backward.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
use super::simd::multiversion;
use super::{f32s, fused, plain, read, storage, tensor};

/// Rows that are computed together when the first of them is wanted: most sequences are far shorter than the context.
const CHUNK: usize = 512;

/// Puts the frequencies of a row into the buffer and returns its position.
type Turns = Box<dyn Fn(usize, &mut Vec<f32>) -> usize + Send + Sync>;

/// Puts the frequencies of a sequence of so many tokens into the buffer.
type Grown = Box<dyn Fn(usize, &mut Vec<f32>) + Send + Sync>;

/// A row of a table: its number in the low half. Where frequencies follow the length of the text, that length is in the
/// high half, or 0 for texts up to the trained length; tables without such frequencies ignore it.
pub type Row = u64;

/// The row of `position` in a text of `length` tokens that is longer than what was trained.
pub fn grown_row(length: usize, position: usize) -> Row {
    (length as u64) << 32 | position as u64
}

/// cos and sin of every row: rows are positions, or where long sequences turn by other frequencies, those of short ones
/// and behind them those of long ones. Computed in f64 steps of f32 angles exactly as PyTorch does: inv_freq and the
/// angle are f32.
pub struct RopeTable {
    /// Pairs of channels that turn.
    pub half: usize,
    /// Channels of a head; those from 2 · half on stay as they are.
    pub head_dim: usize,
    rows: usize,
    scale: f32,
    turns: Turns,
    grown: Option<Grown>,
    /// [CHUNK, half] of cos and sin.
    chunks: Vec<OnceLock<(Vec<f32>, Vec<f32>)>>,
}

impl std::fmt::Debug for RopeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RopeTable").field("half", &self.half).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl RopeTable {
    pub fn new(theta: f64, head_dim: usize, max_positions: usize) -> Self {
        let frequencies = frequencies(theta, head_dim);
        let turns = move |row: usize, to: &mut Vec<f32>| {
            to.extend_from_slice(&frequencies);
            row
        };
        Self::of(head_dim, head_dim.div_ceil(2), max_positions, 1.0, Box::new(turns))
    }

    /// `rows` rows; cos and sin are multiplied by `scale`.
    pub fn of(head_dim: usize, half: usize, rows: usize, scale: f32, turns: Turns) -> Self {
        let chunks = (0..rows.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { half, head_dim, rows, scale, turns, grown: None, chunks }
    }

    /// The same with frequencies of their own for every longer text.
    pub fn growing(self, grown: Grown) -> Self {
        Self { grown: Some(grown), ..self }
    }

    /// cos and sin of a row; `own` holds those that are in no table.
    pub fn cos_sin<'a>(&'a self, row: Row, own: &'a mut (Vec<f32>, Vec<f32>)) -> (&'a [f32], &'a [f32]) {
        let (length, position) = ((row >> 32) as usize, (row & 0xffff_ffff) as usize);
        let Some(grown) = self.grown.as_ref().filter(|_| length > 0) else { return self.row(position) };
        let (cos, sin) = own;
        cos.clear();
        grown(length, cos);
        sin.clear();
        for c in cos.iter_mut() {
            let angle = position as f32 * *c;
            *c = angle.cos() * self.scale;
            sin.push(angle.sin() * self.scale);
        }
        (cos, sin)
    }

    /// cos and sin of one row.
    pub fn row(&self, at: usize) -> (&[f32], &[f32]) {
        let (cos, sin) = self.chunks[at / CHUNK].get_or_init(|| self.chunk(at / CHUNK));
        let from = at % CHUNK * self.half;
        (&cos[from..from + self.half], &sin[from..from + self.half])
    }

    fn chunk(&self, chunk: usize) -> (Vec<f32>, Vec<f32>) {
        let rows = chunk * CHUNK..((chunk + 1) * CHUNK).min(self.rows);
        let (mut cos, mut sin) =
            (Vec::with_capacity(rows.len() * self.half), Vec::with_capacity(rows.len() * self.half));
        let mut frequencies = Vec::with_capacity(self.half);
        for row in rows {
            frequencies.clear();
            let position = (self.turns)(row, &mut frequencies);
            for f in &frequencies {
                let angle = position as f32 * f;
                cos.push(angle.cos() * self.scale);
                sin.push(angle.sin() * self.scale);
            }
        }
        (cos, sin)
    }

    /// # Errors
    /// A row outside the table.
    pub fn check(&self, rows: &[Row]) -> Result<()> {
        match rows.iter().map(|row| row & 0xffff_ffff).find(|p| *p as usize >= self.rows) {
            Some(p) => candle_core::bail!("position {p} is outside the model's {} positions", self.rows),
            None => Ok(()),
        }
    }
}

/// θ^(−2i/d) of each of the d/2 pairs of channels; of an odd d one more.
pub fn frequencies(theta: f64, d: usize) -> Vec<f32> {
    (0..d.div_ceil(2)).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / d as f32)).collect()
}

/// Rotates every head of x [n, heads · head_dim] by its row's position.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<Vec<Row>>) -> Result<Tensor> {
    table.check(positions)?;
    if fused(x) {
        return x.contiguous()?.apply_op1(Rope { table: table.clone(), positions: positions.clone() });
    }
    plain::rope(x, table, positions)
}

/// Rotates x [n, width] in place; `sign` −1 rotates back, which is the gradient.
pub fn rotate(x: &mut [f32], table: &RopeTable, positions: &[Row], sign: f32) {
    let width = x.len() / positions.len().max(1);
    let work = x.len() * 4;
    let rows = SharedMut::new(x);
    split(positions.len(), work, |range| {
        let mut own = Default::default();
        for r in range {
            let (cos, sin) = table.cos_sin(positions[r], &mut own);
            // SAFETY: one row per r.
            let row = unsafe { rows.slice(r * width, width) };
            rotate_row(row, table.head_dim, cos, sin, sign);
        }
    });
}

multiversion! {
    fn rotate_row(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            let (x1, x2) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (a, b, s) = (x1[i], x2[i], sin[i] * sign);
                x1[i] = a * cos[i] - b * s;
                x2[i] = b * cos[i] + a * s;
            }
        }
    }
}

struct Rope {
    table: Arc<RopeTable>,
    positions: Arc<Vec<Row>>,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "rope")?;
        let (n, width) = l.shape().dims2()?;
        if n != self.positions.len() || width % self.table.head_dim != 0 {
            candle_core::bail!("rope: input {n}×{width} for {} positions", self.positions.len());
        }
        let mut y = x.to_vec();
        rotate(&mut y, &self.table, &self.positions, 1.0);
        Ok(storage(y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let mut gx = read(&gy.contiguous()?)?.to_vec();
        rotate(&mut gx, &self.table, &self.positions, -1.0);
        Ok(Some(tensor(gx, x.shape())?))
    }
}
