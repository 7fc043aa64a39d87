//! Adam's moments in 8 bits (arXiv 2110.02861): blocks of 256 entries are divided by their largest absolute value and
//! rounded to the nearest of 256 values, which are denser near 0 (dynamic quantisation).

use std::sync::LazyLock;

use candle_core::{Result, bail};

/// Number of entries with a common scale.
pub const BLOCK: usize = 256;
/// Parameters with fewer entries have exact moments, as in bitsandbytes.
pub const MIN_QUANTIZED: usize = 4096;

/// Quantised values: a code for each value, and a scale for each block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedMoments {
    pub codes: Vec<u8>,
    pub scales: Vec<f32>,
}

impl QuantizedMoments {
    /// `n` zeros.
    pub fn zeros(n: usize) -> Self {
        // With scale 0, every code means 0.
        Self { codes: vec![0; n], scales: vec![0.0; n.div_ceil(BLOCK)] }
    }

    /// Restores saved codes and scales.
    ///
    /// # Errors
    /// If the number of scales is not that of the blocks.
    pub fn restored(codes: Vec<u8>, scales: Vec<f32>) -> Result<Self> {
        if scales.len() != codes.len().div_ceil(BLOCK) {
            bail!("optimizer state has {} scales for {} entries of 8 bits", scales.len(), codes.len())
        }
        Ok(Self { codes, scales })
    }
}

/// The values of the codes, in ascending order; the largest is 1.
pub struct Codebook {
    values: [f32; 256],
    /// The midpoints between neighbouring values.
    borders: [f32; 255],
}

/// For first moments: −1 to 1.
pub static SIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::dynamic(true));
/// For second moments: 0 to 1.
pub static UNSIGNED: LazyLock<Codebook> = LazyLock::new(|| Codebook::dynamic(false));

impl Codebook {
    /// The dynamic map of the paper: 0, 1, and 7 decades below 1. Each decade has half as many values as the next
    /// larger one: the midpoints of equal steps over the decade.
    fn dynamic(signed: bool) -> Self {
        const DECADES: i32 = 7;
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            // The decade ends at 10^(decade − 6).
            let steps = if signed { 1 << decade } else { 1 << (decade + 1) };
            let (low, high) = (0.1, 1.0);
            for i in 0..steps {
                let middle = low + (high - low) * (f64::from(i) + 0.5) / f64::from(steps);
                let value = middle * 10f64.powi(decade - (DECADES - 1));
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        let mut book = Self { values: [0.0; 256], borders: [0.0; 255] };
        book.values.iter_mut().zip(&values).for_each(|(to, from)| *to = *from as f32);
        for (border, values) in book.borders.iter_mut().zip(book.values.windows(2)) {
            *border = 0.5 * (values[0] + values[1]);
        }
        book
    }

    /// The nearest code to `x` in −1..=1.
    fn code(&self, x: f32) -> u8 {
        self.borders.partition_point(|border| *border < x) as u8
    }

    /// Dequantises a block to `out`.
    pub fn read(&self, codes: &[u8], scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(codes).for_each(|(to, code)| *to = self.values[usize::from(*code)] * scale);
    }

    /// Quantises a block of finite values. Returns its scale, the largest absolute value.
    pub fn write(&self, numbers: &[f32], codes: &mut [u8]) -> f32 {
        let scale = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        let by = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        // The reciprocal of a subnormal number may be infinite.
        let by = if by.is_finite() { by } else { 0.0 };
        // A second moment above 0 must stay above 0, because updates are divided by its root.
        let least = if self.values[0] == 0.0 { 1 } else { 0 };
        for (code, x) in codes.iter_mut().zip(numbers) {
            let nearest = self.code(x * by);
            *code = if *x == 0.0 { nearest } else { nearest.max(least) };
        }
        scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codebooks_are_ascending_and_contain_0_and_1() {
        for (book, signed) in [(&*SIGNED, true), (&*UNSIGNED, false)] {
            assert!(book.values.windows(2).all(|w| w[0] < w[1]), "{:?}", book.values);
            assert!(book.values.contains(&0.0) && book.values[255] == 1.0);
            assert_eq!(book.values[0] < 0.0, signed);
        }
        // Seven decades: the smallest number beside 0 is below 10⁻⁶ and above 10⁻⁷.
        let smallest = UNSIGNED.values[1];
        assert!((1e-7..1e-6).contains(&smallest), "{smallest}");
    }

    #[test]
    fn rounding_errors_are_at_most_half_a_step_and_the_largest_value_is_exact() {
        for book in [&*SIGNED, &*UNSIGNED] {
            let numbers: Vec<f32> = (0..200)
                .map(|i| (i as f32 * 0.731).sin().powi(3) * 3.0)
                .map(|x| if book.values[0] < 0.0 { x } else { x.abs() })
                .collect();
            let (mut codes, mut back) = (vec![0; 200], vec![0.0; 200]);
            let scale = book.write(&numbers, &mut codes);
            book.read(&codes, scale, &mut back);
            for (x, y) in numbers.iter().zip(&back) {
                // The widest step is that of the first decade of the signed map: 0.9/64.
                assert!((x - y).abs() <= scale * 0.9 / 64.0 / 2.0 * 1.7, "{x} became {y}");
            }
            let most = numbers.iter().map(|x| x.abs()).fold(0f32, f32::max);
            assert_eq!(scale, most);
        }
        let mut codes = vec![0; 2];
        let scale = UNSIGNED.write(&[1.0, 1e-12], &mut codes);
        let mut back = vec![0.0; 2];
        UNSIGNED.read(&codes, scale, &mut back);
        assert!(back[0] == 1.0 && back[1] > 0.0, "a small second moment became 0");
        let mut codes = vec![7; 3];
        let scale = SIGNED.write(&[0.0; 3], &mut codes);
        let mut back = vec![1.0; 3];
        SIGNED.read(&codes, scale, &mut back);
        assert_eq!(back, [0.0; 3]);
    }
}
