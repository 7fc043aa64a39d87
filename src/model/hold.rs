//! Frozen matrices of a model's blocks in fewer bits, for training with adapters: in `Weights` they are U8 tensors of
//! rows of blocks (`ops::quantized`); all other tensors are f32.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::{ModelConfig, Weights, names};
use crate::ops::blocks::BlockType;
use crate::ops::linear::{Weight, WeightLayout};
use crate::ops::quantized::QuantizedMatrix;

/// Bytes of a weight that is held as `q8_0`: blocks of 32 with one f16 scale.
pub const Q8_0_BYTES: f64 = 34.0 / 32.0;
/// Bytes of a weight that is held as `q4` (Q4_1): blocks of 32 with an f16 scale and an f16 minimum.
pub const Q4_BYTES: f64 = 20.0 / 32.0;

/// The matrices that are held in fewer bits, and their format.
pub struct Holding<'a> {
    config: &'a ModelConfig,
    kind: BlockType,
    /// Outputs and inputs of each matrix.
    matrices: BTreeMap<String, (usize, usize)>,
}

impl<'a> Holding<'a> {
    pub fn new(config: &'a ModelConfig, kind: BlockType) -> Self {
        Self { config, kind, matrices: matrices(config) }
    }

    /// Converts a matrix of the blocks to the held format; returns any other tensor, and any on another device than the
    /// CPU, unchanged.
    pub fn hold(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        if !self.matrices.contains_key(name) || tensor.rank() != 2 || tensor.dtype() != DType::F32 {
            return Ok(tensor);
        }
        match Weight::quantized(&tensor.detach(), self.config.family().layout, self.kind)? {
            Weight::Quantized(held) => Ok(held.tensor().clone()),
            _ => Ok(tensor),
        }
    }

    /// Converts the matrices of the blocks among all tensors.
    pub fn hold_all(&self, weights: Weights) -> Result<Weights> {
        weights.into_iter().map(|(name, tensor)| Ok((name.clone(), self.hold(&name, tensor)?))).collect()
    }
}

/// (outputs, inputs) of the matrices of all blocks.
fn matrices(config: &ModelConfig) -> BTreeMap<String, (usize, usize)> {
    let (blocks, layout) = (config.family().blocks, config.family().layout);
    let wanted = |name: &str| name.starts_with(blocks) && name.ends_with(".weight");
    let of = |(name, shape): (String, Vec<usize>)| match shape.as_slice() {
        [a, b] if wanted(&name) && layout == WeightLayout::OutIn => Some((name, (*a, *b))),
        [a, b] if wanted(&name) => Some((name, (*b, *a))),
        _ => None,
    };
    names::backbone(config).into_iter().filter_map(of).collect()
}

/// Whether a tensor is a matrix held in fewer bits.
pub fn is_held(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::U8
}

/// (outputs, inputs) of a matrix of the blocks, held or not.
///
/// # Errors
/// When a held tensor is not one of the model's matrices.
pub(super) fn out_in(config: &ModelConfig, name: &str, w: &Tensor) -> Result<(usize, usize)> {
    if is_held(w) {
        return match matrices(config).get(name) {
            Some(sizes) => Ok(*sizes),
            None => candle_core::bail!("{name} is no matrix of the blocks"),
        };
    }
    let (rows, cols) = w.dims2()?;
    Ok(if config.family().layout == WeightLayout::InOut { (cols, rows) } else { (rows, cols) })
}

/// Whether a held tensor is a matrix of this shape in the model's files.
pub(super) fn fits(config: &ModelConfig, shape: &[usize], tensor: &Tensor) -> bool {
    let &[mut out, mut input] = shape else { return false };
    if config.family().layout == WeightLayout::InOut {
        std::mem::swap(&mut out, &mut input);
    }
    QuantizedMatrix::from_blocks(tensor, input).is_some_and(|held| held.m == out)
}

/// The numbers that a held matrix represents, f32, in the layout of the model's files.
///
/// # Errors
/// When a held tensor is not one of the model's matrices.
pub(super) fn dequantize_one(config: &ModelConfig, name: &str, tensor: &Tensor) -> Result<Tensor> {
    let held = matrices(config).get(name).and_then(|(_, input)| QuantizedMatrix::from_blocks(tensor, *input));
    let Some(held) = held else { candle_core::bail!("{name} is no matrix of the blocks") };
    let w = held.dequantize()?;
    if config.family().layout == WeightLayout::InOut { w.t()?.contiguous() } else { Ok(w) }
}

/// The weights with held matrices converted to f32.
///
/// # Errors
/// When a held tensor is not one of the model's matrices.
pub fn dequantize(config: &ModelConfig, weights: &Weights) -> Result<Weights> {
    let one = |(name, tensor): (&String, &Tensor)| {
        let tensor = if is_held(tensor) { dequantize_one(config, name, tensor)? } else { tensor.clone() };
        Ok((name.clone(), tensor))
    };
    weights.iter().map(one).collect()
}
