//! y = x·Wᵀ with 8-bit activations and weights of 2 to 6 bits: GGUF's Q5_0, Q5_1, Q5_K, Q6_K, Q2_K, Q3_K, IQ4_NL and
//! IQ4_XS. w = scale · (q − offset) + min, with a scale for 32 or for 16 values along k. Results are batch-invariant,
//! and the same on every instruction set.

use std::marker::PhantomData;

use half::f16;

use super::blocks::{self, BlockType, STEPS};
use super::par::{SharedMut, split};
use super::q8_rows::{Activations, BLOCK, Dot, GROUP, Line, MAX_R, PANEL, Tile, dot_kernel, for_rows, over_tiles};
use super::served::ServedMatrix;
use super::simd::multiversion;

/// Registers of the low four bits of a block: each byte has those of two values, 16 apart along k.
const LOW: usize = BLOCK / GROUP / 2;

/// The properties of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    /// Bits of a stored value. Each bit above the fourth has a register of masks.
    bits: usize,
    /// Each scale is for 16 values instead of 32.
    fine: bool,
    /// There is a minimum for each scale.
    min: bool,
    /// Subtracted from a stored value. For `steps`: added to make the steps unsigned.
    offset: i32,
    /// Stored values are indices into `STEPS`.
    steps: bool,
}

impl Facts {
    /// Registers of a block.
    const fn lines(self) -> usize {
        LOW + self.bits - 4
    }

    /// Rows of 16 scales or minima of a block.
    const fn rows(self) -> usize {
        (if self.fine { 2 } else { 1 }) * (if self.min { 2 } else { 1 })
    }
}

/// A layout of packed blocks.
trait BlockLayout: Send + Sync + 'static {
    const FACTS: Facts;
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident = ($bits:expr, $fine:expr, $min:expr, $offset:expr, $steps:expr);)*) => {
        $($(#[$doc])*
        struct $name;
        impl BlockLayout for $name {
            const FACTS: Facts = Facts { bits: $bits, fine: $fine, min: $min, offset: $offset, steps: $steps };
        })*
    };
}

layouts! {
    /// Q5_0.
    Five = (5, false, false, 16, false);
    /// Q5_1, Q5_K.
    FiveMin = (5, false, true, 0, false);
    /// Q6_K.
    Six = (6, true, false, 32, false);
    /// Q3_K.
    Three = (4, true, false, 4, false);
    /// Q2_K.
    Two = (4, true, true, 0, false);
    /// IQ4_NL, IQ4_XS.
    Steps = (4, false, false, 128, true);
}

/// Packs the blocks of a GGUF file: m rows of k values, k a multiple of the block size. `None` for types that `q8` or
/// `q4` packs.
pub(super) fn from_gguf(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Option<Box<dyn ServedMatrix>> {
    Some(match kind {
        BlockType::Q5_0 => Box::new(Packed::<Five>::new(bytes, kind, m, k)),
        BlockType::Q5_1 | BlockType::Q5K => Box::new(Packed::<FiveMin>::new(bytes, kind, m, k)),
        BlockType::Q6K => Box::new(Packed::<Six>::new(bytes, kind, m, k)),
        BlockType::Q3K => Box::new(Packed::<Three>::new(bytes, kind, m, k)),
        BlockType::Q2K => Box::new(Packed::<Two>::new(bytes, kind, m, k)),
        BlockType::IQ4NL | BlockType::IQ4XS => Box::new(Packed::<Steps>::new(bytes, kind, m, k)),
        _ => return None,
    })
}

/// A weight matrix `[m, k]` as ⌈m/16⌉ panels. Line l < 4 of a block has the low four bits of the values 4l…4l+3 along k
/// of 16 rows in the low halves of its bytes, and those of 16+4l…16+4l+3 in the high halves. Each further line has one
/// more bit of all values: eight masks of 64 bits in the order of (line, half).
struct Packed<F> {
    lines: Vec<Line>,
    /// `[panels][blocks][rows][16]`: scale and minimum of the first half, then of the second, as far as the layout has
    /// them.
    scales: Vec<[f16; PANEL]>,
    m: usize,
    k: usize,
    blocks: usize,
    layout: PhantomData<F>,
}

impl<F: BlockLayout> Packed<F> {
    fn new(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Self {
        assert!(k.is_multiple_of(kind.block().0) && bytes.len() == m * kind.bytes(k), "{kind:?} size");
        let (facts, row_bytes) = (F::FACTS, kind.bytes(k));
        let (panels, blocks) = (m.div_ceil(PANEL), k / BLOCK);
        let (per_lines, per_rows) = (blocks * facts.lines(), blocks * facts.rows());
        let mut lines = vec![Line([0; 64]); panels * per_lines];
        let mut scales = vec![[f16::ZERO; PANEL]; panels * per_rows];
        let (out, out_scales) = (SharedMut::new(&mut lines), SharedMut::new(&mut scales));
        split(panels, m * k, |range| {
            for p in range {
                // SAFETY: one panel per p.
                let (lines, scales) =
                    unsafe { (out.slice(p * per_lines, per_lines), out_scales.slice(p * per_rows, per_rows)) };
                for lane in 0..PANEL.min(m - p * PANEL) {
                    let row = &bytes[(p * PANEL + lane) * row_bytes..][..row_bytes];
                    for b in 0..blocks {
                        let block = blocks::read(row, kind, b);
                        put_values(&mut lines[b * facts.lines()..][..facts.lines()], lane, &block.q, facts);
                        let rows = &mut scales[b * facts.rows()..][..facts.rows()];
                        let found = block.scale.iter().zip(&block.min).take(if facts.fine { 2 } else { 1 });
                        let found = found.flat_map(|(s, m)| [Some(s), facts.min.then_some(m)]).flatten();
                        for (row, value) in rows.iter_mut().zip(found) {
                            row[lane] = f16::from_f32(*value);
                        }
                    }
                }
            }
        });
        Self { lines, scales, m, k, blocks, layout: PhantomData }
    }

    fn panel(&self, p: usize) -> (&[Line], &[[f16; PANEL]]) {
        let (lines, rows) = (self.blocks * F::FACTS.lines(), self.blocks * F::FACTS.rows());
        (&self.lines[p * lines..(p + 1) * lines], &self.scales[p * rows..(p + 1) * rows])
    }
}

/// Writes the values of one row of a block.
fn put_values(lines: &mut [Line], lane: usize, q: &[i8; BLOCK], facts: Facts) {
    for (i, q) in q.iter().enumerate() {
        let stored = match facts.steps {
            true => STEPS.iter().position(|step| step == q).unwrap_or(0) as u8,
            false => (i32::from(*q) + facts.offset) as u8,
        };
        let (half, line, byte) = (i / 16, i % 16 / GROUP, lane * GROUP + i % GROUP);
        lines[line].0[byte] |= (stored & 15) << (4 * half);
        for bit in 4..facts.bits {
            let mask = (2 * line + half) * 8 + byte / 8;
            lines[LOW + bit - 4].0[mask] |= (stored >> bit & 1) << (byte % 8);
        }
    }
}

impl<F: BlockLayout> ServedMatrix for Packed<F> {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn bytes(&self) -> usize {
        self.lines.len() * 64 + self.scales.len() * size_of::<[f16; PANEL]>()
    }

    /// y = quantised(x) · Wᵀ.
    fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        assert!(x.len() == n * self.k && y.len() == n * self.m, "matmul sizes");
        let rows = Activations::quantize(x, n, self.k);
        let half_sums = half_sums(&rows);
        over_tiles(y, (n, self.m), n * self.m * self.k / 4, |p, r0, count, tile| {
            let (lines, scales) = self.panel(p);
            tile_rows::<F>(dot_kernel(), &Panel { lines, scales, rows: &rows, half_sums: &half_sums }, r0, count, tile);
        });
    }
}

/// Σ q of the first half of each block.
fn half_sums(rows: &Activations) -> Vec<i32> {
    rows.q.as_chunks::<BLOCK>().0.iter().map(|q| q[..BLOCK / 2].iter().map(|v| i32::from(*v)).sum()).collect()
}

/// One panel of weights, and the activations.
struct Panel<'a> {
    lines: &'a [Line],
    scales: &'a [[f16; PANEL]],
    rows: &'a Activations,
    half_sums: &'a [i32],
}

fn tile_rows<F: BlockLayout>(kind: Dot, panel: &Panel<'_>, r0: usize, count: usize, tile: &mut Tile) {
    let blocks = panel.rows.blocks;
    assert!(panel.lines.len() == blocks * F::FACTS.lines() && panel.scales.len() == blocks * F::FACTS.rows());
    assert!(count <= MAX_R && panel.half_sums.len() >= (r0 + count) * blocks);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `dot_kernel` has checked the features, the assertions the panel; rows r0..r0 + count exist.
    unsafe {
        match kind {
            Dot::Vnni => return for_rows!(count, x86::vnni of F; panel, r0, tile),
            Dot::Avx2 => return for_rows!(count, x86::avx2 of F; panel, r0, tile),
            Dot::Plain => {}
        }
    }
    for (i, out) in tile.iter_mut().enumerate().take(count) {
        let (q, xs, sums) = panel.rows.row(r0 + i);
        let half_sums = &panel.half_sums[(r0 + i) * blocks..(r0 + i + 1) * blocks];
        plain_row(F::FACTS, panel.lines, panel.scales, q, xs, sums, half_sums, out);
    }
}

multiversion! {
    #[expect(clippy::too_many_arguments, reason = "the macro takes no patterns")]
    fn plain_row(facts: Facts, lines: &[Line], scales: &[[f16; PANEL]], q: &[i8], xs: &[f32], sums: &[i32], half_sums: &[i32], out: &mut [f32; PANEL]) {
        out.fill(0.0);
        let per = lines.chunks_exact(facts.lines()).zip(scales.chunks_exact(facts.rows()));
        for (b, ((lines, scales), q)) in per.zip(q.chunks_exact(BLOCK)).enumerate() {
            let sum = [half_sums[b], sums[b] - half_sums[b]];
            let offset = if facts.steps { 0 } else { facts.offset };
            let mut acc = sum.map(|sum| [-offset * sum; PANEL]);
            for l in 0..LOW {
                for half in 0..2 {
                    for lane in 0..PANEL {
                        for j in 0..GROUP {
                            let byte = lane * GROUP + j;
                            let mut w = i32::from(lines[l].0[byte] >> (4 * half) & 15);
                            for bit in 4..facts.bits {
                                let mask = lines[LOW + bit - 4].0[(2 * l + half) * 8 + byte / 8];
                                w |= i32::from(mask >> (byte % 8) & 1) << bit;
                            }
                            if facts.steps {
                                w = i32::from(STEPS[w as usize]);
                            }
                            acc[half][lane] += w * i32::from(q[half * 16 + l * GROUP + j]);
                        }
                    }
                }
            }
            let mut rows = scales.iter();
            for half in 0..if facts.fine { 2 } else { 1 } {
                let Some(scale) = rows.next() else { break };
                for lane in 0..PANEL {
                    let acc = if facts.fine { acc[half][lane] } else { acc[0][lane] + acc[1][lane] };
                    out[lane] = (acc as f32).mul_add(scale[lane].to_f32() * xs[b], out[lane]);
                }
                if facts.min {
                    let Some(min) = rows.next() else { break };
                    let sum = xs[b] * if facts.fine { sum[half] } else { sums[b] } as f32;
                    for lane in 0..PANEL {
                        out[lane] = min[lane].to_f32().mul_add(sum, out[lane]);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{BLOCK, BlockLayout, GROUP, LOW, Line, PANEL, Panel, STEPS, Tile};

    /// `STEPS` plus `add`, as 16 bytes; 128 makes them unsigned.
    fn steps(add: u8) -> [u8; 16] {
        STEPS.map(|step| (step as u8).wrapping_add(add))
    }

    /// Mask `i` of a register of masks.
    fn mask(line: &Line, i: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&line.0[8 * i..8 * i + 8]);
        u64::from_le_bytes(bytes)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    pub unsafe fn vnni<F: BlockLayout, const R: usize>(panel: &Panel<'_>, r0: usize, out: &mut Tile) {
        let (facts, rows) = (F::FACTS, panel.rows);
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(steps(128).as_ptr().cast()));
            let mut total = [_mm512_setzero_ps(); R];
            for b in 0..rows.blocks {
                let lines = panel.lines.as_ptr().add(b * facts.lines());
                let mut acc = [[_mm512_setzero_si512(); 2]; R];
                for r in 0..R {
                    let at = (r0 + r) * rows.blocks + b;
                    let first = *panel.half_sums.get_unchecked(at);
                    acc[r][0] = _mm512_set1_epi32(-facts.offset * first);
                    acc[r][1] = _mm512_set1_epi32(-facts.offset * (*rows.sums.get_unchecked(at) - first));
                }
                for l in 0..LOW {
                    let at = lines.add(l);
                    if R <= 2 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64).cast());
                    }
                    let both = _mm512_load_si512(at.cast());
                    let mut w = [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)];
                    for half in 0..2 {
                        for bit in 4..facts.bits {
                            let set = mask(&*lines.add(LOW + bit - 4), 2 * l + half);
                            w[half] = _mm512_mask_add_epi8(w[half], set, w[half], _mm512_set1_epi8(1 << bit));
                        }
                        if facts.steps {
                            w[half] = _mm512_shuffle_epi8(table, w[half]);
                        }
                    }
                    for r in 0..R {
                        let x = rows.q.as_ptr().add((r0 + r) * rows.blocks * BLOCK + b * BLOCK + l * GROUP);
                        let (x0, x1) = (x.cast::<i32>(), x.add(BLOCK / 2).cast::<i32>());
                        acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w[0], _mm512_set1_epi32(x0.read_unaligned()));
                        acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], w[1], _mm512_set1_epi32(x1.read_unaligned()));
                    }
                }
                let mut scales = panel.scales.as_ptr().add(b * facts.rows());
                for half in 0..if facts.fine { 2 } else { 1 } {
                    let ws = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                    scales = scales.add(1);
                    for r in 0..R {
                        let xs = _mm512_set1_ps(*rows.scales.get_unchecked((r0 + r) * rows.blocks + b));
                        let sum = if facts.fine { acc[r][half] } else { _mm512_add_epi32(acc[r][0], acc[r][1]) };
                        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(ws, xs), total[r]);
                    }
                    if facts.min {
                        let wm = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                        scales = scales.add(1);
                        for r in 0..R {
                            let sum = panel.sum(r0 + r, b, facts.fine.then_some(half));
                            total[r] = _mm512_fmadd_ps(wm, _mm512_set1_ps(sum), total[r]);
                        }
                    }
                }
            }
            for r in 0..R {
                _mm512_storeu_ps(out[r].as_mut_ptr(), total[r]);
            }
        }
    }

    /// Expands every bit of `set` to a byte: 0xff or 0.
    #[target_feature(enable = "avx2")]
    fn spread(set: i32) -> __m256i {
        let places = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let copied = _mm256_shuffle_epi8(_mm256_set1_epi32(set), places);
        _mm256_cmpeq_epi8(_mm256_and_si256(copied, bits), bits)
    }

    /// Number of lines of one half whose products are summed in 16 bits without overflow. The largest sum of a product
    /// is 2 · 127 · 127 for steps, which are signed here with their signs moved to the activations, and 2 · 63 · 127
    /// for six bits.
    const fn lines_in_16_bits<F: BlockLayout>() -> usize {
        match (F::FACTS.steps, F::FACTS.bits) {
            (true, _) => 1,
            (false, 6) => 2,
            _ => LOW,
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<F: BlockLayout, const R: usize>(panel: &Panel<'_>, r0: usize, out: &mut Tile) {
        let (facts, rows) = (F::FACTS, panel.rows);
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let (ones, low) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(steps(0).as_ptr().cast()));
            let offset = if facts.steps { 0 } else { facts.offset };
            let mut total = [[_mm256_setzero_ps(); R]; 2];
            for b in 0..rows.blocks {
                let lines = panel.lines.as_ptr().add(b * facts.lines());
                for side in 0..2 {
                    let mut scales = panel.scales.as_ptr().add(b * facts.rows()).cast::<f16>().add(8 * side);
                    let mut acc = [_mm256_setzero_si256(); R];
                    for half in 0..2 {
                        for from in (0..LOW).step_by(lines_in_16_bits::<F>()) {
                            let mut pairs = [_mm256_setzero_si256(); R];
                            for l in from..from + lines_in_16_bits::<F>() {
                                let line = lines.add(l);
                                if R <= 2 && half == 0 {
                                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(32).cast());
                                }
                                let both = _mm256_load_si256((*line).0.as_ptr().add(32 * side).cast());
                                let both = if half == 1 { _mm256_srli_epi16::<4>(both) } else { both };
                                let mut w = _mm256_and_si256(both, low);
                                for bit in 4..facts.bits {
                                    let set = (*lines.add(LOW + bit - 4)).0.as_ptr().add(8 * (2 * l + half) + 4 * side);
                                    let set = spread(set.cast::<i32>().read_unaligned());
                                    w = _mm256_or_si256(w, _mm256_and_si256(set, _mm256_set1_epi8(1 << bit)));
                                }
                                if facts.steps {
                                    w = _mm256_shuffle_epi8(table, w);
                                }
                                for r in 0..R {
                                    let x = rows.q.as_ptr().add(((r0 + r) * rows.blocks + b) * BLOCK);
                                    let x = x.add(half * (BLOCK / 2) + l * GROUP).cast::<i32>().read_unaligned();
                                    let x = _mm256_set1_epi32(x);
                                    let product = match facts.steps {
                                        true => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
                                        false => _mm256_maddubs_epi16(w, x),
                                    };
                                    pairs[r] = _mm256_add_epi16(pairs[r], product);
                                }
                            }
                            for r in 0..R {
                                acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs[r], ones));
                            }
                        }
                        if !facts.fine && half == 0 {
                            continue;
                        }
                        // The scale and the minimum of this half, or of the whole block.
                        let part = facts.fine.then_some(half);
                        let ws = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
                        scales = scales.wrapping_add(PANEL);
                        for r in 0..R {
                            let xs = _mm256_set1_ps(*rows.scales.get_unchecked((r0 + r) * rows.blocks + b));
                            let shifted = _mm256_set1_epi32(-offset * panel.count(r0 + r, b, part));
                            let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(acc[r], shifted));
                            total[side][r] = _mm256_fmadd_ps(sum, _mm256_mul_ps(ws, xs), total[side][r]);
                            acc[r] = _mm256_setzero_si256();
                        }
                        if facts.min {
                            let wm = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
                            scales = scales.wrapping_add(PANEL);
                            for r in 0..R {
                                let sum = _mm256_set1_ps(panel.sum(r0 + r, b, part));
                                total[side][r] = _mm256_fmadd_ps(wm, sum, total[side][r]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                for side in 0..2 {
                    _mm256_storeu_ps(out[r].as_mut_ptr().add(8 * side), total[side][r]);
                }
            }
        }
    }
}

impl Panel<'_> {
    /// Σ q of a block of row `r`, or of one half of it: the factor of an offset.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn count(&self, r: usize, b: usize, half: Option<usize>) -> i32 {
        let at = r * self.rows.blocks + b;
        match half {
            None => self.rows.sums[at],
            Some(0) => self.half_sums[at],
            Some(_) => self.rows.sums[at] - self.half_sums[at],
        }
    }

    /// Σ x of a block of row `r`, or of one half of it: the factor of a minimum.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn sum(&self, r: usize, b: usize, half: Option<usize>) -> f32 {
        self.rows.scales[r * self.rows.blocks + b] * self.count(r, b, half) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::random_blocks;
    use crate::q8_rows::kernels;
    use crate::{noise, sizes};

    fn check<F: BlockLayout>(kind: BlockType) {
        for (n, m, k) in sizes([(1, 16, 256), (11, 37, 512), (3, 5, 768)]) {
            let (bytes, x) = (random_blocks(kind, m, k), noise(n * k, 2));
            let mut w = vec![0f32; m * k];
            blocks::dequantize(&bytes, kind, &mut w);
            let packed = Packed::<F>::new(&bytes, kind, m, k);
            let rows = Activations::quantize(&x, n, k);
            let half_sums = half_sums(&rows);
            let mut y = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut y, n);
            for r in 0..n {
                let mut alone = vec![f32::NAN; m];
                packed.matmul(&x[r * k..(r + 1) * k], &mut alone, 1);
                assert_eq!(alone, y[r * m..(r + 1) * m], "{kind:?}: batch-invariant");
                for dot in kernels() {
                    let mut tile = Tile::default();
                    let (lines, scales) = packed.panel(0);
                    tile_rows::<F>(dot, &Panel { lines, scales, rows: &rows, half_sums: &half_sums }, r, 1, &mut tile);
                    assert_eq!(tile[0][..m.min(PANEL)], alone[..m.min(PANEL)], "{kind:?} {dot:?} has the same bits");
                }
                // The values of the file times the quantised activations: the error is that of rounding scales to f16.
                let (q, xs, _) = rows.row(r);
                for c in 0..m {
                    let exact = |i: usize| f64::from(w[c * k + i]) * f64::from(q[i]) * f64::from(xs[i / BLOCK]);
                    let (sum, size) = (0..k).fold((0.0, 0.0), |(s, t), i| (s + exact(i), t + exact(i).abs()));
                    assert!((sum - f64::from(alone[c])).abs() < 1e-3 * size, "{kind:?} {c}: {sum} {}", alone[c]);
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_blocks_in_any_batch_and_on_every_instruction_set() {
        check::<Five>(BlockType::Q5_0);
        check::<FiveMin>(BlockType::Q5_1);
        check::<FiveMin>(BlockType::Q5K);
        check::<Six>(BlockType::Q6K);
        check::<Three>(BlockType::Q3K);
        check::<Two>(BlockType::Q2K);
        check::<Steps>(BlockType::IQ4NL);
        check::<Steps>(BlockType::IQ4XS);
    }
}
