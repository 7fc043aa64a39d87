//! Quantized frozen matrices of a model's blocks, for training with adapters (QLoRA): in `Weights` they are U8 tensors
//! of rows of quantization blocks (`ops::quantized`); all other tensors are f32.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::{ModelConfig, Weights, names};
use crate::ops::blocks::BlockType;
use crate::ops::linear::{Weight, WeightLayout};
use crate::ops::quantized::QuantizedMatrix;

/// Bytes of a weight that is quantized to `q8_0`: blocks of 32 with one f16 scale.
pub const Q8_0_BYTES: f64 = 34.0 / 32.0;
/// Bytes of a weight that is quantized to `q4` (Q4_1): blocks of 32 with an f16 scale and an f16 minimum.
pub const Q4_BYTES: f64 = 20.0 / 32.0;

/// Quantizes the matrices of a model's blocks.
pub struct MatrixQuantizer<'a> {
    config: &'a ModelConfig,
    kind: BlockType,
    /// Outputs and inputs of each matrix.
    matrices: BTreeMap<String, (usize, usize)>,
}

impl<'a> MatrixQuantizer<'a> {
    pub fn new(config: &'a ModelConfig, kind: BlockType) -> Self {
        Self { config, kind, matrices: matrices(config) }
    }

    /// Quantizes the tensor `name` if it is an f32 matrix of the blocks on the CPU; returns any other unchanged.
    ///
    /// # Errors
    /// When the matrix cannot be read.
    pub fn quantize(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        if !self.matrices.contains_key(name) || tensor.rank() != 2 || tensor.dtype() != DType::F32 {
            return Ok(tensor);
        }
        match Weight::quantized(&tensor.detach(), self.config.family().layout, self.kind)? {
            Weight::Quantized(matrix) => Ok(matrix.tensor().clone()),
            _ => Ok(tensor),
        }
    }

    /// Quantizes the matrices of the blocks among all tensors.
    ///
    /// # Errors
    /// When a matrix cannot be read.
    pub fn quantize_all(&self, weights: Weights) -> Result<Weights> {
        weights.into_iter().map(|(name, tensor)| Ok((name.clone(), self.quantize(&name, tensor)?))).collect()
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

/// Whether a tensor is a quantized matrix.
pub fn is_quantized(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::U8
}

/// (outputs, inputs) of a matrix of the blocks, quantized or not.
///
/// # Errors
/// When a quantized tensor is not one of the model's matrices.
pub(super) fn out_in(config: &ModelConfig, name: &str, w: &Tensor) -> Result<(usize, usize)> {
    if is_quantized(w) {
        return match matrices(config).get(name) {
            Some(sizes) => Ok(*sizes),
            None => candle_core::bail!("{name} is quantized, but is not a matrix of the model's blocks"),
        };
    }
    let (rows, cols) = w.dims2()?;
    Ok(if config.family().layout == WeightLayout::InOut { (cols, rows) } else { (rows, cols) })
}

/// The f32 values of a quantized matrix, in the layout of the model's files.
///
/// # Errors
/// When a quantized tensor is not one of the model's matrices.
pub(super) fn dequantize_one(config: &ModelConfig, name: &str, tensor: &Tensor) -> Result<Tensor> {
    let matrix = matrices(config).get(name).and_then(|(_, input)| QuantizedMatrix::from_blocks(tensor, *input));
    let Some(matrix) = matrix else {
        candle_core::bail!("{name} is quantized, but is not a matrix of the model's blocks")
    };
    let w = matrix.dequantize()?;
    if config.family().layout == WeightLayout::InOut { w.t()?.contiguous() } else { Ok(w) }
}

/// The weights with quantized matrices converted to f32.
///
/// # Errors
/// When a quantized tensor is not one of the model's matrices.
pub fn dequantize(config: &ModelConfig, weights: &Weights) -> Result<Weights> {
    let one = |(name, tensor): (&String, &Tensor)| {
        let tensor = if is_quantized(tensor) { dequantize_one(config, name, tensor)? } else { tensor.clone() };
        Ok((name.clone(), tensor))
    };
    weights.iter().map(one).collect()
}
