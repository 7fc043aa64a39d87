//! Matrices in blocks of 32 neighbours of a row, as the kernels of products read them.

use half::f16;
use rayon::prelude::*;

use crate::gpu::Slice;
use crate::ops::blocks::{self, BlockType};
use crate::ops::{q4, q8};

/// Neighbours of a block.
pub const BLOCK: usize = 32;

/// How the numbers of a matrix are stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// In the element type of the model.
    Dense,
    /// In 8 bits with scales, as GGUF's Q8_0.
    Q8,
    /// In 4 bits with scales and minima, as GGUF's Q4_1.
    Q4,
    /// In 8 bits with scales and minima of half blocks, for all other types of GGUF.
    Fine,
}

impl Packing {
    /// The packing of a matrix with rows of `input` numbers: dense where these are not whole blocks.
    pub fn for_rows_of(self, input: usize) -> Self {
        if input.is_multiple_of(BLOCK) { self } else { Self::Dense }
    }

    /// The packing of the blocks of a file that were joined to one matrix: the smallest in which all of these types keep
    /// their integers, with scales and minima rounded to f16 where the file has products of two numbers. Dense where one
    /// of them is not quantised.
    pub fn of_file(kinds: &[BlockType]) -> Self {
        let fits = |packing: &Self| kinds.iter().all(|kind| packing.holds(*kind));
        [Self::Q4, Self::Q8, Self::Fine].into_iter().find(fits).unwrap_or(Self::Dense)
    }

    fn holds(self, kind: BlockType) -> bool {
        use BlockType::{IQ4NL, IQ4XS, Q4_0, Q4_1, Q4K, Q5_0, Q8_0};
        match self {
            Self::Dense => true,
            Self::Q8 => matches!(kind, Q8_0 | Q5_0 | Q4_0 | IQ4NL | IQ4XS),
            Self::Q4 => matches!(kind, Q4_0 | Q4_1 | Q4K),
            Self::Fine => kind.quantised(),
        }
    }

    /// Bytes of the integers of a block; 0 for dense numbers.
    pub fn bytes(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::Q8 | Self::Fine => BLOCK,
            Self::Q4 => BLOCK / 2,
        }
    }

    /// Scales of a block, and minima where there are minima.
    pub fn factors(self) -> usize {
        if self == Self::Fine { 2 } else { 1 }
    }
}

/// What belongs to the numbers of a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Factors {
    /// Nothing: they are in the element type of the model.
    None,
    /// One f16 scale for each block of integers of 8 bits.
    Q8 { scales: Slice },
    /// An f16 scale and an f16 minimum for each block of integers of 4 bits. Byte i of the 16 of a block holds number i
    /// in its low half, and number 16 + i in its high half.
    Q4 { scales: Slice, minima: Slice },
    /// An f16 scale and an f16 minimum for each half of a block of integers of 8 bits.
    Fine { scales: Slice, minima: Slice },
}

impl Factors {
    pub fn packing(&self) -> Packing {
        match self {
            Self::None => Packing::Dense,
            Self::Q8 { .. } => Packing::Q8,
            Self::Q4 { .. } => Packing::Q4,
            Self::Fine { .. } => Packing::Fine,
        }
    }
}

/// Packed blocks, as they are uploaded.
pub struct PackedBlocks {
    pub integers: Vec<u8>,
    /// f16, `Packing::factors` for each block.
    pub scales: Vec<u16>,
    /// As many minima; 0 where the packing has none.
    pub minima: Vec<u16>,
}

/// Scales and minima of the halves of a block; the first ones are those of the whole where it is not divided.
type HalfFactors = [[f32; 2]; 2];

/// Packs `count` blocks; `block(i, to)` writes the integers of one, and returns its factors.
fn pack(packing: Packing, count: usize, block: impl Fn(usize, &mut [u8]) -> HalfFactors + Sync) -> PackedBlocks {
    let each = packing.factors();
    let mut packed = PackedBlocks {
        integers: vec![0; count * packing.bytes()],
        scales: vec![0; count * each],
        minima: vec![0; count * each],
    };
    let integers = packed.integers.par_chunks_mut(packing.bytes().max(1));
    let factors = packed.scales.par_chunks_mut(each).zip(packed.minima.par_chunks_mut(each));
    integers.zip(factors).enumerate().for_each(|(i, (to, (scales, minima)))| {
        let factors = block(i, to);
        for (to, from) in [scales, minima].into_iter().zip(factors) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = f16::from_f32(from).to_bits());
        }
    });
    packed
}

/// Two numbers to a byte, 16 apart.
fn write_nibbles(q: &[u8; BLOCK], to: &mut [u8]) {
    let (low, high) = q.split_at(BLOCK / 2);
    to.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (low, high))| *to = low | high << 4);
}

/// Rounds the numbers of whole blocks as the CPU does for serving in this format.
pub fn quantise(packing: Packing, values: &[f32]) -> PackedBlocks {
    pack(packing, values.len() / BLOCK, |i, to| {
        let from = &values[i * BLOCK..(i + 1) * BLOCK];
        if packing == Packing::Q4 {
            let block = q4::quantize_block(from);
            write_nibbles(&block.q, to);
            return [[block.scale; 2], [block.min; 2]];
        }
        let mut q = [0; BLOCK];
        let scale = q8::quantize_block(from, &mut q);
        to.copy_from_slice(bytemuck::cast_slice(&q));
        [[scale.to_f32(); 2], [0.0; 2]]
    })
}

/// Packs the blocks of a file, of a type that `packing` holds.
pub fn repack(packing: Packing, kind: BlockType, bytes: &[u8]) -> PackedBlocks {
    let (values, size) = kind.block();
    pack(packing, bytes.len() / size * values / BLOCK, |i, to| {
        if packing == Packing::Q4 {
            let block = q4::read_block(bytes, kind, i);
            write_nibbles(&block.q, to);
            return [[block.scale; 2], [block.min; 2]];
        }
        let block = blocks::read(bytes, kind, i);
        to.copy_from_slice(bytemuck::cast_slice(&block.q));
        [block.scale, block.min]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernels make of packed blocks.
    fn unpacked(packing: Packing, packed: &PackedBlocks) -> Vec<f32> {
        let half = |bits: u16| f16::from_bits(bits).to_f32();
        let factors = packed.scales.iter().zip(&packed.minima).map(|(s, m)| (half(*s), half(*m)));
        let blocks = packed.integers.chunks_exact(packing.bytes() / packing.factors()).zip(factors);
        let of = |(integers, (scale, minimum)): (&[u8], (f32, f32))| -> Vec<f32> {
            match packing {
                Packing::Q4 => {
                    let q = integers.iter().map(|b| b & 15).chain(integers.iter().map(|b| b >> 4));
                    q.map(|q| f32::from(q) * scale + minimum).collect()
                }
                _ => integers.iter().map(|b| f32::from(*b as i8) * scale + minimum).collect(),
            }
        };
        blocks.flat_map(of).collect()
    }

    /// Blocks of a file keep their values, apart from the rounding of scales to f16.
    #[test]
    fn blocks_of_a_file_keep_their_values() {
        for kind in BlockType::ALL.into_iter().filter(|kind| kind.quantised()) {
            let packing = Packing::of_file(&[kind]);
            let (values, size) = kind.block();
            // Blocks of any bits whose numbers in f16 are finite and not small.
            let mut bytes: Vec<u8> = (0..6 * size).map(|i| (i * 7919 + i / 5 * 31) as u8).collect();
            let numbers: &[usize] = match kind {
                BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[1, 3],
                BlockType::Q2K => &[81, 83],
                BlockType::Q3K => &[109],
                BlockType::Q6K => &[209],
                _ => &[1],
            };
            for block in bytes.chunks_exact_mut(size) {
                numbers.iter().for_each(|at| block[*at] = block[*at] & 3 | 0x28);
            }
            let mut want = vec![0f32; 6 * values];
            blocks::dequantize(&bytes, kind, &mut want);
            let got = unpacked(packing, &repack(packing, kind, &bytes));
            // Their scales are products of an f16 and an integer.
            let exact = kind.block().0 == BLOCK;
            let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= if exact { 0.0 } else { most * 2e-3 }, "{kind:?}: {got}, {want}");
            }
        }
        assert_eq!(Packing::of_file(&[BlockType::Q4_0, BlockType::Q4K]), Packing::Q4);
        assert_eq!(Packing::of_file(&[BlockType::Q4_0, BlockType::Q8_0]), Packing::Q8);
        assert_eq!(Packing::of_file(&[BlockType::Q4_1, BlockType::Q8_0]), Packing::Fine);
        assert_eq!(Packing::of_file(&[BlockType::Q4K, BlockType::Q6K]), Packing::Fine);
        assert_eq!(Packing::of_file(&[BlockType::Q8_0, BlockType::F16]), Packing::Dense);
    }
}
