//! Matrices in blocks of 32 neighbours of a row, as the kernels of products read them.

use half::f16;
use rayon::prelude::*;

use crate::gpu::Slice;
use crate::ops::{q4, q8};

/// Neighbours that share a scale.
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
}

impl Packing {
    /// The packing of a matrix with rows of `input` numbers: dense where these are not whole blocks.
    pub fn for_rows_of(self, input: usize) -> Self {
        if input.is_multiple_of(BLOCK) { self } else { Self::Dense }
    }

    /// Bytes of the integers of a block; 0 for dense numbers.
    pub fn bytes(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::Q8 => BLOCK,
            Self::Q4 => BLOCK / 2,
        }
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
}

/// Packed blocks, as they are uploaded.
pub struct PackedBlocks {
    pub integers: Vec<u8>,
    /// One f16 for each block.
    pub scales: Vec<u16>,
    /// One f16 for each block in 4 bits; otherwise 0.
    pub minima: Vec<u16>,
}

/// Packs `count` blocks; `block(i, to)` writes the integers of one, and returns its scale and its minimum.
fn pack(packing: Packing, count: usize, block: impl Fn(usize, &mut [u8]) -> [f16; 2] + Sync) -> PackedBlocks {
    let mut packed =
        PackedBlocks { integers: vec![0; count * packing.bytes()], scales: vec![0; count], minima: vec![0; count] };
    let integers = packed.integers.par_chunks_mut(packing.bytes().max(1));
    let factors = packed.scales.par_iter_mut().zip(&mut packed.minima);
    integers.zip(factors).enumerate().for_each(|(i, (to, (scale, minimum)))| {
        let factors = block(i, to);
        (*scale, *minimum) = (factors[0].to_bits(), factors[1].to_bits());
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
            return [block.scale, block.min].map(f16::from_f32);
        }
        let mut q = [0; BLOCK];
        let scale = q8::quantize_block(from, &mut q);
        to.copy_from_slice(bytemuck::cast_slice(&q));
        [scale, f16::ZERO]
    })
}
