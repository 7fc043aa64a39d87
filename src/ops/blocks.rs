//! The tensor types of GGUF files: the layouts of ggml's blocks, and their values.
//!
//! `read` decodes every quantised layout to 32 integers, with a scale and a minimum for each half. Dequantisation and
//! the packed matrices of serving both use it, so that they agree.

use half::{bf16, f16};

use super::par::{SharedMut, split};

/// Number of values that `read` decodes at a time.
pub const BLOCK: usize = 32;

/// The type of a tensor in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// Four-bit indices into `STEPS`, with a scale for 32 values.
    IQ4NL,
    /// Four-bit indices into `STEPS`, with a six-bit scale for 32 values and an f16 scale for 256.
    IQ4XS,
}

/// The sixteen non-uniform values of IQ4_NL and IQ4_XS.
pub(super) const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values: w = scale · q + min, with a scale and a minimum for each half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    pub q: [i8; BLOCK],
    pub scale: [f32; 2],
    pub min: [f32; 2],
}

/// A matrix `[m, k]` as a GGUF file stores it.
#[derive(Debug)]
pub struct StoredMatrix {
    /// Its rows of blocks.
    pub bytes: Vec<u8>,
    pub kind: BlockType,
    pub m: usize,
    pub k: usize,
}

impl BlockType {
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::IQ4NL,
        Self::IQ4XS,
    ];

    /// ggml's number of the type.
    pub fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::IQ4NL => 20,
            Self::IQ4XS => 23,
            Self::BF16 => 30,
        }
    }

    /// ggml's name of the type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::IQ4NL => "IQ4_NL",
            Self::IQ4XS => "IQ4_XS",
        }
    }

    /// The type with this number.
    ///
    /// # Errors
    /// If the type is not supported; the message names the supported types.
    pub fn from_number(number: u32) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.number() == number).ok_or_else(|| {
            let called = OTHERS.iter().find(|(other, _)| *other == number).map_or("unknown", |(_, name)| name);
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("quantisation type {number} ({called}) is not supported (known: {known})")
        })
    }

    /// (values, bytes) of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 | Self::IQ4NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::IQ4XS => (256, 136),
        }
    }

    /// Size in bytes of `values` values, which are a whole number of blocks.
    pub fn bytes(self, values: usize) -> usize {
        let (block, size) = self.block();
        values / block * size
    }

    /// Whether the values are integers with scales instead of floats.
    pub fn quantised(self) -> bool {
        self.block().0 > 1
    }
}

/// Numbers and names of ggml's other types, for messages.
const OTHERS: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The six-bit scale and minimum `j` in the twelve bytes of a Q4_K or Q5_K block.
fn six_bits(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

/// The six-bit scale `j` in the twelve bytes of a Q3_K block, minus 32.
fn q3_scale(s: &[u8], j: usize) -> f32 {
    let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
    f32::from((low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) as i8 - 32)
}

/// The low four bits of 16 bytes, then the high four bits.
fn nibbles(packed: &[u8]) -> [u8; BLOCK] {
    let mut q = [0; BLOCK];
    for (i, byte) in packed[..BLOCK / 2].iter().enumerate() {
        (q[i], q[i + BLOCK / 2]) = (byte & 15, byte >> 4);
    }
    q
}

/// Decodes the values 32·b…32·b+31 of a row of quantised blocks.
pub fn read(row: &[u8], kind: BlockType, b: usize) -> Block {
    let (values, size) = kind.block();
    let per = values / BLOCK;
    let bytes = &row[b / per * size..][..size];
    let j = b % per;
    let mut out = Block { q: [0; BLOCK], scale: [0.0; 2], min: [0.0; 2] };
    let signed = |q: [u8; BLOCK], by: i8| q.map(|v| v as i8 - by);
    match kind {
        // Only quantised types are passed.
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => {}
        BlockType::Q4_0 => {
            out.q = signed(nibbles(&bytes[2..]), 8);
            out.scale = [half_at(bytes, 0); 2];
        }
        BlockType::Q4_1 => {
            out.q = signed(nibbles(&bytes[4..]), 0);
            (out.scale, out.min) = ([half_at(bytes, 0); 2], [half_at(bytes, 2); 2]);
        }
        BlockType::Q5_0 | BlockType::Q5_1 => {
            let at = if kind == BlockType::Q5_0 { 2 } else { 4 };
            let high = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let mut q = nibbles(&bytes[at + 4..]);
            for (i, q) in q.iter_mut().enumerate() {
                *q |= ((high >> i & 1) as u8) << 4;
            }
            out.scale = [half_at(bytes, 0); 2];
            if kind == BlockType::Q5_0 {
                out.q = signed(q, 16);
            } else {
                (out.q, out.min) = (signed(q, 0), [half_at(bytes, 2); 2]);
            }
        }
        BlockType::Q8_0 => {
            out.q.iter_mut().zip(&bytes[2..]).for_each(|(q, byte)| *q = *byte as i8);
            out.scale = [half_at(bytes, 0); 2];
        }
        BlockType::Q2K => {
            let (d, least) = (half_at(bytes, 80), half_at(bytes, 82));
            for (i, byte) in bytes[16 + j / 4 * BLOCK..][..BLOCK].iter().enumerate() {
                out.q[i] = (byte >> (2 * (j % 4)) & 3) as i8;
            }
            for half in 0..2 {
                let s = bytes[2 * j + half];
                (out.scale[half], out.min[half]) = (d * f32::from(s & 15), -(least * f32::from(s >> 4)));
            }
        }
        BlockType::Q3K => {
            let d = half_at(bytes, 108);
            for (i, byte) in bytes[32 + j / 4 * BLOCK..][..BLOCK].iter().enumerate() {
                let high = bytes[i] >> j & 1;
                out.q[i] = (byte >> (2 * (j % 4)) & 3 | high << 2) as i8 - 4;
            }
            out.scale = [0, 1].map(|half| d * q3_scale(&bytes[96..108], 2 * j + half));
        }
        BlockType::Q4K | BlockType::Q5K => {
            let (scale, min) = six_bits(&bytes[4..16], j);
            let at = if kind == BlockType::Q4K { 16 } else { 48 };
            for (i, byte) in bytes[at + j / 2 * BLOCK..][..BLOCK].iter().enumerate() {
                let low = if j.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                let high = if kind == BlockType::Q4K { 0 } else { bytes[16 + i] >> j & 1 };
                out.q[i] = (low | high << 4) as i8;
            }
            out.scale = [half_at(bytes, 0) * f32::from(scale); 2];
            out.min = [-(half_at(bytes, 2) * f32::from(min)); 2];
        }
        BlockType::Q6K => {
            let (d, half, part) = (half_at(bytes, 208), j / 4, j % 4);
            for i in 0..BLOCK {
                let low = bytes[half * 64 + part % 2 * BLOCK + i] >> (4 * (part / 2)) & 15;
                let high = bytes[128 + half * BLOCK + i] >> (2 * part) & 3;
                out.q[i] = (low | high << 4) as i8 - 32;
            }
            out.scale = [0, 1].map(|half| d * f32::from(bytes[192 + 2 * j + half] as i8));
        }
        BlockType::IQ4NL => {
            out.q = nibbles(&bytes[2..]).map(|i| STEPS[i as usize]);
            out.scale = [half_at(bytes, 0); 2];
        }
        BlockType::IQ4XS => {
            let high = u16::from_le_bytes([bytes[2], bytes[3]]);
            let scale = bytes[4 + j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) << 4) as u8;
            out.q = nibbles(&bytes[8 + j * 16..]).map(|i| STEPS[i as usize]);
            out.scale = [half_at(bytes, 0) * f32::from(scale as i8 - 32); 2];
        }
    }
    out
}

/// Converts `bytes` to f32.
///
/// # Panics
/// If `bytes` is not the size of `out.len()` values in whole blocks.
pub fn dequantize(bytes: &[u8], kind: BlockType, out: &mut [f32]) {
    let values = kind.block().0;
    assert!(out.len().is_multiple_of(values) && bytes.len() == kind.bytes(out.len()), "{kind:?} size");
    /// Number of values per task: a multiple of all block sizes.
    const PART: usize = 8192;
    let (total, shared) = (out.len(), SharedMut::new(out));
    split(total.div_ceil(PART), total, |parts| {
        let (from, to) = (parts.start * PART, (parts.end * PART).min(total));
        // SAFETY: disjoint ranges.
        let out = unsafe { shared.slice(from, to - from) };
        let bytes = &bytes[kind.bytes(from)..kind.bytes(to)];
        match kind {
            BlockType::F32 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *y = f32::from_le_bytes(*b);
                }
            }
            BlockType::F16 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *y = f16::from_le_bytes(*b).to_f32();
                }
            }
            BlockType::BF16 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *y = bf16::from_le_bytes(*b).to_f32();
                }
            }
            _ => {
                for (b, y) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    let Block { q, scale, min } = read(bytes, kind, b);
                    for (i, (y, q)) in y.iter_mut().zip(q).enumerate() {
                        let half = i / (BLOCK / 2);
                        *y = scale[half] * f32::from(q) + min[half];
                    }
                }
            }
        }
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Device;
    use candle_core::quantized::ggml_file::qtensor_from_ggml;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::noise;

    const BY_CANDLE: [(BlockType, GgmlDType); 13] = [
        (BlockType::F32, GgmlDType::F32),
        (BlockType::F16, GgmlDType::F16),
        (BlockType::BF16, GgmlDType::BF16),
        (BlockType::Q4_0, GgmlDType::Q4_0),
        (BlockType::Q4_1, GgmlDType::Q4_1),
        (BlockType::Q5_0, GgmlDType::Q5_0),
        (BlockType::Q5_1, GgmlDType::Q5_1),
        (BlockType::Q8_0, GgmlDType::Q8_0),
        (BlockType::Q2K, GgmlDType::Q2K),
        (BlockType::Q3K, GgmlDType::Q3K),
        (BlockType::Q4K, GgmlDType::Q4K),
        (BlockType::Q5K, GgmlDType::Q5K),
        (BlockType::Q6K, GgmlDType::Q6K),
    ];

    fn values(t: &QTensor) -> Vec<f32> {
        t.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn ours(bytes: &[u8], kind: BlockType, n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n];
        dequantize(bytes, kind, &mut out);
        out
    }

    /// Bit for bit, for blocks of real numbers and for blocks of arbitrary bytes (finite scales).
    /// m rows of k values in blocks of arbitrary integers, with scales near 1/64.
    pub(crate) fn random_blocks(kind: BlockType, m: usize, k: usize) -> Vec<u8> {
        let (values, size) = kind.block();
        let mut seed = 5u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        let halves: &[usize] = match kind {
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q2K => &[80, 82],
            BlockType::Q3K => &[108],
            BlockType::Q6K => &[208],
            _ => &[0],
        };
        let mut bytes = Vec::new();
        for i in 0..m * k / values {
            let start = bytes.len();
            bytes.extend((0..size).map(|_| byte()));
            for at in halves {
                let scale = f16::from_f32((1.0 + i as f32 / 64.0) / if values == 256 { 512.0 } else { 64.0 });
                bytes[start + at..start + at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn every_type_has_the_values_that_candle_reads() {
        for (kind, dtype) in BY_CANDLE {
            let (m, k) = (7, 1024);
            let w = candle_core::Tensor::from_vec(noise(m * k, 4), (m, k), &Device::Cpu).unwrap();
            let stored = QTensor::quantize(&w, dtype).unwrap();
            let bytes = stored.data().unwrap().into_owned();
            assert_eq!(dtype.block_size(), kind.block().0, "{kind:?}");
            assert_eq!(dtype.type_size(), kind.block().1, "{kind:?}");
            assert_eq!(ours(&bytes, kind, m * k), values(&stored), "{kind:?}");

            let mut seed = 77u64;
            let mut random = vec![0u64; bytes.len().div_ceil(8)];
            for (at, byte) in bytemuck::cast_slice_mut::<u64, u8>(&mut random).iter_mut().enumerate() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The top bit of the exponent of each f16 stays clear, so that the value is finite.
                *byte = (seed >> 33) as u8 & if floats(kind, at % kind.block().1) { 0x3b } else { 0xff };
            }
            let random = &bytemuck::cast_slice::<u64, u8>(&random)[..bytes.len()];
            let candle = qtensor_from_ggml(dtype, random, vec![m, k], &Device::Cpu).unwrap();
            assert_eq!(ours(random, kind, m * k), values(&candle), "{kind:?} of arbitrary bytes");
        }
    }

    /// Whether this byte of a block is the high byte of a float.
    fn floats(kind: BlockType, at: usize) -> bool {
        match kind {
            BlockType::F32 => at == 3,
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => at == 1 || at == 3,
            BlockType::Q2K => at == 81 || at == 83,
            BlockType::Q3K => at == 109,
            BlockType::Q6K => at == 209,
            _ => at == 1,
        }
    }

    #[test]
    fn blocks_of_non_uniform_steps_are_read_as_defined() {
        // Scale 0.5; low halves count up, high halves count down.
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let steps: Vec<f32> = STEPS.iter().map(|s| 0.5 * f32::from(*s)).collect();
        let want: Vec<f32> = steps.iter().chain(steps.iter().rev()).copied().collect();
        assert_eq!(ours(&block, BlockType::IQ4NL, 32), want);

        // Six-bit scales 0, 9, 18 … 63 of eight parts: four low bits in bytes, two high ones in a word.
        let scales: [u16; 8] = std::array::from_fn(|j| 9 * j as u16);
        let mut block = f16::from_f32(0.25).to_le_bytes().to_vec();
        block.extend(scales.iter().enumerate().map(|(j, s)| s >> 4 << (2 * j)).sum::<u16>().to_le_bytes());
        block.extend(scales.chunks(2).map(|s| (s[0] & 15 | (s[1] & 15) << 4) as u8));
        block.extend((0..8).flat_map(|j| (0..16u8).map(move |i| ((i + j) % 16) | ((15 - i) << 4))));
        let got = ours(&block, BlockType::IQ4XS, 256);
        for (j, part) in got.chunks(32).enumerate() {
            let scale = 0.25 * (f32::from(scales[j]) - 32.0);
            for i in 0..16 {
                assert_eq!(part[i], scale * f32::from(STEPS[(i + j) % 16]), "part {j} value {i}");
                assert_eq!(part[16 + i], scale * f32::from(STEPS[15 - i]), "part {j} value {}", 16 + i);
            }
        }
    }

    #[test]
    fn unsupported_types_are_refused_by_name() {
        assert_eq!(BlockType::from_number(23), Ok(BlockType::IQ4XS));
        let error = BlockType::from_number(16).unwrap_err();
        assert!(error.contains("IQ2_XXS") && error.contains("Q6_K") && error.contains("IQ4_NL"), "{error}");
        assert!(BlockType::from_number(999).unwrap_err().contains("999 (unknown)"));
    }
}
