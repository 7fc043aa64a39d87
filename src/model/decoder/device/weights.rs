//! A decoder's weights on a device, as `gpu` launches read them: matrices with the same input joined, everything row-major
//! `[out, in]` in one element type, or matrices in blocks of integers.

use candle_core::Tensor;
use half::slice::HalfFloatSliceExt;

use super::packing::{BLOCK, Factors, PackedBlocks, Packing, quantise};
use crate::gpu::device::Device;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::embedding_table::EmbeddingTable;
use crate::model::layers::block::{Layer, Mlp, Projections, layer};
use crate::model::layers::{Builder, Linear, Norm, Parameters, rope_tables};
use crate::model::load::Opened;
use crate::model::{Activation, Decoder, ModelConfig, Purpose};
use crate::ops::linear::WeightLayout;
use crate::ops::with_f32s;

/// The element type of weights, and of activations between additions to the f32 hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name in kernel names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Bytes that are converted and copied at a time.
const CHUNK: usize = 8 << 20;

/// A matrix [out, in] and its bias [out].
#[derive(Clone, Copy, Debug)]
pub(in crate::model::decoder) struct Matrix {
    /// In the element type of the model, or integers.
    pub weight: Slice,
    pub factors: Factors,
    pub bias: Option<Slice>,
    pub out: usize,
    pub input: usize,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::model::decoder) struct NormWeights {
    pub weight: Slice,
    /// Zeros where the norm has none.
    pub bias: Slice,
    pub layer: bool,
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

#[derive(Debug)]
pub(in crate::model::decoder) struct Block {
    pub attn_norm: Option<NormWeights>,
    pub qkv: Matrix,
    pub by_head: bool,
    pub qk_norm: Option<[NormWeights; 2]>,
    pub out: Matrix,
    pub attn_post: Option<NormWeights>,
    pub mlp_norm: Option<NormWeights>,
    pub up: Matrix,
    pub gated: bool,
    pub activation: Activation,
    pub down: Matrix,
    pub mlp_post: Option<NormWeights>,
    /// The table of rotary positions, if any: 0 for full layers, 1 for windowed ones.
    pub rope: Option<usize>,
    pub window: usize,
}

#[derive(Debug)]
pub(in crate::model::decoder) struct Weights {
    pub embed: Slice,
    pub positions: Option<Slice>,
    pub blocks: Vec<Block>,
    pub final_norm: NormWeights,
    pub head: Matrix,
    /// At least as many zeros as the widest norm or matrix has outputs.
    pub zeros: Slice,
}

pub(in crate::model::decoder) fn candle(error: candle_core::Error) -> GpuError {
    GpuError::Launch(error.to_string())
}

/// Puts tensors on a device in one element type.
struct Loader<'a> {
    device: &'a mut dyn Device,
    element: Element,
    /// How matrices are stored whose rows are multiples of 32; others are dense.
    packing: Packing,
}

impl Loader<'_> {
    fn place(&mut self, count: usize) -> Result<Slice, GpuError> {
        self.device.alloc(count * self.element.bytes())
    }

    /// Writes values from element `at` on.
    fn put(&mut self, to: Slice, at: usize, values: &[f32]) -> Result<(), GpuError> {
        let size = self.element.bytes();
        for (i, part) in values.chunks(CHUNK / size).enumerate() {
            let from = (at + i * (CHUNK / size)) * size;
            self.device.upload(to.part(from, part.len() * size), &as_bytes(self.element, part))?;
        }
        Ok(())
    }

    fn tensor(&mut self, t: &Tensor) -> Result<Slice, GpuError> {
        let to = self.place(t.elem_count())?;
        self.write(to, 0, t)?;
        Ok(to)
    }

    fn write(&mut self, to: Slice, at: usize, t: &Tensor) -> Result<(), GpuError> {
        self.with_values(t, |loader, values| loader.put(to, at, values))
    }

    /// Passes the values of a tensor on.
    fn with_values(
        &mut self,
        t: &Tensor,
        take: impl FnOnce(&mut Self, &[f32]) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let t = t.detach().contiguous().map_err(candle)?;
        let mut done = Ok(());
        with_f32s(&t, |values| {
            done = take(self, values);
            Ok(())
        })
        .map_err(candle)?;
        done
    }

    /// Matrices with the same input, joined along their outputs.
    fn joint(&mut self, parts: &[&Linear]) -> Result<Matrix, GpuError> {
        let mut natural = Vec::new();
        for part in parts {
            let (weight, bias) =
                part.plain().ok_or_else(|| GpuError::Launch("adapters or packed weights".to_owned()))?;
            let (weight, layout) = weight;
            let weight = match layout {
                WeightLayout::OutIn => weight.clone(),
                WeightLayout::InOut => weight.t().and_then(|t| t.contiguous()).map_err(candle)?,
            };
            natural.push((weight, bias));
        }
        let outs = natural.iter().map(|(w, _)| w.dim(0)).collect::<candle_core::Result<Vec<_>>>().map_err(candle)?;
        let input = natural[0].0.dim(1).map_err(candle)?;
        let out = outs.iter().sum();
        let bias = natural[0].1.map(|_| self.place(out)).transpose()?;
        let matrix = Matrix { bias, ..self.place_matrix((out, input))? };
        let mut at = 0;
        for ((w, b), rows) in natural.iter().zip(&outs) {
            self.with_values(w, |loader, values| loader.fill(&matrix, at * input, values))?;
            if let (Some(bias), Some(b)) = (bias, b) {
                self.write(bias, at, b)?;
            }
            at += rows;
        }
        Ok(matrix)
    }

    /// Memory of a matrix [out, input] without bias.
    fn place_matrix(&mut self, (out, input): (usize, usize)) -> Result<Matrix, GpuError> {
        let (packing, blocks) = (self.packing.for_rows_of(input), out * input / BLOCK);
        let (weight, factors) = match packing {
            Packing::Dense => (self.place(out * input)?, Factors::None),
            Packing::Q8 => {
                (self.device.alloc(blocks * packing.bytes())?, Factors::Q8 { scales: self.device.alloc(blocks * 2)? })
            }
            Packing::Q4 => {
                let weight = self.device.alloc(blocks * packing.bytes())?;
                let (scales, minima) = (self.device.alloc(blocks * 2)?, self.device.alloc(blocks * 2)?);
                (weight, Factors::Q4 { scales, minima })
            }
        };
        Ok(Matrix { weight, factors, bias: None, out, input })
    }

    /// Writes values of a matrix from element `at` on: whole blocks, if it is in blocks.
    fn fill(&mut self, matrix: &Matrix, at: usize, values: &[f32]) -> Result<(), GpuError> {
        if matches!(matrix.factors, Factors::None) {
            return self.put(matrix.weight, at, values);
        }
        values.chunks(CHUNK).enumerate().try_for_each(|(i, part)| {
            let packed = quantise(self.packing, part);
            self.put_blocks(matrix, (at + i * CHUNK) / BLOCK, &packed)
        })
    }

    /// Writes packed blocks of a matrix from block `at` on.
    fn put_blocks(&mut self, matrix: &Matrix, at: usize, packed: &PackedBlocks) -> Result<(), GpuError> {
        let each = packed.integers.len() / packed.scales.len().max(1);
        let mut write = |to: Slice, each: usize, data: &[u8]| self.device.upload(to.part(at * each, data.len()), data);
        write(matrix.weight, each, &packed.integers)?;
        match matrix.factors {
            Factors::None => Ok(()),
            Factors::Q8 { scales } => write(scales, 2, bytemuck::cast_slice(&packed.scales)),
            Factors::Q4 { scales, minima } => {
                write(scales, 2, bytemuck::cast_slice(&packed.scales))?;
                write(minima, 2, bytemuck::cast_slice(&packed.minima))
            }
        }
    }

    /// A table [rows, width], part by part.
    fn table(&mut self, table: &EmbeddingTable, (rows, width): (usize, usize)) -> Result<Slice, GpuError> {
        let to = self.place(rows * width)?;
        let mut at = 0;
        self.parts(table, |loader, part| {
            loader.put(to, at, part)?;
            at += part.len();
            Ok(())
        })?;
        Ok(to)
    }

    /// A matrix [out, input] without bias, part by part.
    fn matrix(&mut self, table: &EmbeddingTable, (out, input): (usize, usize)) -> Result<Matrix, GpuError> {
        let matrix = self.place_matrix((out, input))?;
        let mut at = 0;
        self.parts(table, |loader, part| {
            loader.fill(&matrix, at, part)?;
            at += part.len();
            Ok(())
        })?;
        Ok(matrix)
    }

    /// Passes the rows of a table on in parts, each of which is on the device before the next is read.
    fn parts(
        &mut self,
        table: &EmbeddingTable,
        mut take: impl FnMut(&mut Self, &[f32]) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let mut failed = None;
        let read = table.parts(CHUNK / 4, &mut |part| {
            let put = take(self, part).and_then(|()| self.device.wait());
            put.map_err(|why| {
                let message = why.to_string();
                failed = Some(why);
                candle_core::Error::Msg(message)
            })
        });
        match failed {
            Some(why) => Err(why),
            None => read.map_err(candle),
        }
    }

    fn norm(&mut self, norm: &Norm, zeros: Slice) -> Result<NormWeights, GpuError> {
        let (weight, bias, eps) = norm.parts();
        let bytes = weight.elem_count() * self.element.bytes();
        Ok(NormWeights {
            weight: self.tensor(weight)?,
            bias: bias.map_or(Ok(zeros.part(0, bytes)), |bias| self.tensor(bias))?,
            layer: norm.is_layer(),
            eps,
            offset: norm.offset(),
        })
    }

    fn block(&mut self, layer: &Layer, zeros: Slice) -> Result<Block, GpuError> {
        let mut norm = |norm: &Option<Norm>| norm.as_ref().map(|n| self.norm(n, zeros)).transpose();
        let (attn_norm, attn_post) = (norm(&layer.attn_norm)?, norm(&layer.attn_post)?);
        let (mlp_norm, mlp_post) = (norm(&layer.mlp_norm)?, norm(&layer.mlp_post)?);
        let qk_norm = match &layer.qk_norm {
            Some([q, k]) => Some([self.norm(q, zeros)?, self.norm(k, zeros)?]),
            None => None,
        };
        let (qkv, by_head) = match &layer.attn {
            Projections::Joint { all, by_head } => (self.joint(&[all])?, *by_head),
            Projections::Split { q, k, v } => (self.joint(&[q, k, v])?, false),
        };
        let (up, gated, down, activation) = match &layer.mlp {
            Mlp::Gated { gate, up, down, activation } => (self.joint(&[gate, up])?, true, down, *activation),
            Mlp::JointGated { gate_up, down, activation } => (self.joint(&[gate_up])?, true, down, *activation),
            Mlp::Plain { up, down, activation } => (self.joint(&[up])?, false, down, *activation),
        };
        Ok(Block {
            attn_norm,
            qkv,
            by_head,
            qk_norm,
            out: self.joint(&[&layer.out])?,
            attn_post,
            mlp_norm,
            up,
            gated,
            activation,
            down: self.joint(&[down])?,
            mlp_post,
            rope: layer.rope.is_some().then_some(usize::from(layer.kind.window.is_some())),
            window: layer.kind.window.unwrap_or(0),
        })
    }
}

/// Little-endian values of an element type, rounded to nearest.
pub(super) fn as_bytes(element: Element, values: &[f32]) -> Vec<u8> {
    match element {
        Element::F32 => bytemuck::cast_slice(values).to_vec(),
        Element::Bf16 => {
            let mut rounded = vec![half::bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytemuck::cast_slice(rounded.reinterpret_cast()).to_vec()
        }
    }
}

/// Length of the longest vector of zeros that a launch may read.
fn widest(c: &ModelConfig) -> usize {
    (2 * c.intermediate_size).max(c.hidden_size).max((c.n_heads + 2 * c.n_kv_heads) * c.head_dim)
}

/// Where the blocks and the output matrix of a decoder are.
#[derive(Clone, Copy)]
pub enum Blocks<'a> {
    /// In the decoder, which is built for `Purpose::Score`.
    Held,
    /// In the files of the model, from which they are read one block at a time.
    Files(&'a Opened),
}

/// Copies the weights of `decoder` to `device`.
///
/// # Errors
/// `OutOfMemory`, or `Launch` when the decoder has adapters or packed weights, or a file cannot be read.
pub(super) fn load(
    decoder: &Decoder,
    from: Blocks<'_>,
    device: &mut dyn Device,
    element: Element,
    packing: Packing,
) -> Result<Weights, GpuError> {
    let c = &decoder.config;
    let mut loader = Loader { device, element, packing };
    let zeros = loader.place(widest(c))?;
    loader.put(zeros, 0, &vec![0.0; widest(c)])?;
    let embed = loader.table(&decoder.embed, (c.vocab_size, c.hidden_size))?;
    let positions = decoder.positions.as_ref().map(|t| loader.tensor(t)).transpose()?;
    let blocks = match from {
        Blocks::Held => decoder.layers.iter().map(|layer| loader.block(layer, zeros)).collect::<Result<_, _>>()?,
        Blocks::Files(opened) => {
            let (parameters, ropes) = (Parameters::Files(&opened.files), rope_tables::tables(c));
            let b = Builder { config: c, parameters, lora: None, purpose: Purpose::Score };
            let one = |i| {
                let block = loader.block(&layer(&b, i, &ropes).map_err(candle)?, zeros)?;
                loader.device.wait()?;
                Ok(block)
            };
            (0..c.n_layers).map(one).collect::<Result<_, GpuError>>()?
        }
    };
    let final_norm = loader.norm(&decoder.final_norm, zeros)?;
    let (out, input) = (c.vocab_size, c.hidden_size);
    let head = match (c.tie_embeddings, from) {
        // The word vectors are read by row too, and stay in the element type.
        (true, _) => Matrix { weight: embed, factors: Factors::None, bias: None, out, input },
        (false, Blocks::Held) => {
            let held = EmbeddingTable::Tensor(decoder.head_tensor().map_err(candle)?);
            loader.matrix(&held, (out, input))?
        }
        (false, Blocks::Files(opened)) => {
            let b = Builder {
                config: c,
                parameters: Parameters::Files(&opened.files),
                lora: None,
                purpose: Purpose::Serve,
            };
            let stored = EmbeddingTable::new(&b, &c.head_name(), (out, input)).map_err(candle)?;
            loader.matrix(&stored, (out, input))?
        }
    };
    Ok(Weights { embed, positions, blocks, final_norm, head, zeros })
}
