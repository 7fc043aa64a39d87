//! The cosines and sines of rotary position embeddings.

use std::sync::OnceLock;

use candle_core::Result;

/// Number of rows that are computed together on first use: most sequences are far shorter than the context.
const CHUNK: usize = 512;

/// Writes the frequencies of a row to the buffer and returns its position.
type RowFrequencies = Box<dyn Fn(usize, &mut Vec<f32>) -> usize + Send + Sync>;

/// Writes the frequencies of a sequence of this number of tokens to the buffer.
type LengthFrequencies = Box<dyn Fn(usize, &mut Vec<f32>) + Send + Sync>;

/// A row of a table: its index in the low 32 bits. If frequencies depend on the length of the text (dynamic scaling),
/// that length is in the high 32 bits, or 0 up to the trained length; other tables ignore it.
pub type Row = u64;

/// The row of `position` in a text of `length` tokens, longer than the trained length.
pub fn grown_row(length: usize, position: usize) -> Row {
    (length as u64) << 32 | position as u64
}

/// Cosines and sines of every row. Rows are positions; if long sequences have other frequencies, the rows of short
/// sequences are followed by those of long ones. Frequencies and angles are f32, as in transformers.
pub struct RopeTable {
    /// Number of pairs of channels that are rotated.
    pub half: usize,
    /// Channels of a head. Those from 2 · half on are not rotated.
    pub head_dim: usize,
    rows: usize,
    scale: f32,
    row_frequencies: RowFrequencies,
    length_frequencies: Option<LengthFrequencies>,
    /// Cosines and sines, `[CHUNK, half]` each.
    chunks: Vec<OnceLock<(Vec<f32>, Vec<f32>)>>,
}

impl std::fmt::Debug for RopeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RopeTable").field("half", &self.half).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl RopeTable {
    /// The table of θ^(−2i/d) for all channels of a head (RoFormer, arXiv 2104.09864, equation 15).
    pub fn new(theta: f64, head_dim: usize, max_positions: usize) -> Self {
        let frequencies = frequencies(theta, head_dim);
        let row_frequencies = move |row: usize, to: &mut Vec<f32>| {
            to.extend_from_slice(&frequencies);
            row
        };
        Self::with_frequencies(head_dim, head_dim.div_ceil(2), max_positions, 1.0, Box::new(row_frequencies))
    }

    /// A table of `rows` rows with the frequencies that `row_frequencies` gives. Cosines and sines are multiplied by
    /// `scale`.
    pub fn with_frequencies(
        head_dim: usize,
        half: usize,
        rows: usize,
        scale: f32,
        row_frequencies: RowFrequencies,
    ) -> Self {
        let chunks = (0..rows.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { half, head_dim, rows, scale, row_frequencies, length_frequencies: None, chunks }
    }

    /// Adds frequencies that depend on the length of a text beyond the trained length.
    pub fn with_length_frequencies(self, length_frequencies: LengthFrequencies) -> Self {
        Self { length_frequencies: Some(length_frequencies), ..self }
    }

    /// Cosines and sines of a row, `[half]` each. `buffer` holds those that depend on the length.
    pub fn cos_sin<'a>(&'a self, row: Row, buffer: &'a mut (Vec<f32>, Vec<f32>)) -> (&'a [f32], &'a [f32]) {
        let (length, position) = ((row >> 32) as usize, (row & 0xffff_ffff) as usize);
        let Some(frequencies) = self.length_frequencies.as_ref().filter(|_| length > 0) else {
            return self.row(position);
        };
        let (cos, sin) = buffer;
        cos.clear();
        frequencies(length, cos);
        sin.clear();
        for c in cos.iter_mut() {
            let angle = position as f32 * *c;
            *c = angle.cos() * self.scale;
            sin.push(angle.sin() * self.scale);
        }
        (cos, sin)
    }

    /// Cosines and sines of the row with index `at`, `[half]` each.
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
            let position = (self.row_frequencies)(row, &mut frequencies);
            for f in &frequencies {
                let angle = position as f32 * f;
                cos.push(angle.cos() * self.scale);
                sin.push(angle.sin() * self.scale);
            }
        }
        (cos, sin)
    }

    /// # Errors
    /// If a row is outside the table.
    pub fn check(&self, rows: &[Row]) -> Result<()> {
        match rows.iter().map(|row| row & 0xffff_ffff).find(|p| *p as usize >= self.rows) {
            Some(p) => candle_core::bail!("position {p} is outside the model's {} positions", self.rows),
            None => Ok(()),
        }
    }
}

/// θ^(−2i/d) for each of the ⌈d/2⌉ pairs of channels.
pub fn frequencies(theta: f64, d: usize) -> Vec<f32> {
    (0..d.div_ceil(2)).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / d as f32)).collect()
}
