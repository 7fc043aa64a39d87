//! A decoder's weights on a device, as `gpu` launches read them: matrices with the same input joined, everything row-major
//! `[out, in]` in one element type, or matrices in blocks of integers.

use candle_core::Tensor;
use half::slice::HalfFloatSliceExt;

pub use super::formats::Element;
use super::formats::{Blocks, Converted, DeviceFormat};
use super::packing::{BLOCK, Factors, PackedBlocks, Packing, quantise, repack};
use crate::gpu::device::Device;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::embedding_table::EmbeddingTable;
use crate::model::layers::block::{Layer, Mlp, Projections, layer};
use crate::model::layers::{Builder, Linear, Norm, Parameters, rope_tables};
use crate::model::{Activation, Decoder, ModelConfig, Purpose};
use crate::ops::blocks::{self, BlockType, StoredMatrix};
use crate::ops::linear::WeightLayout;
use crate::ops::with_f32s;

/// Bytes that are converted and copied at a time.
const CHUNK: usize = 8 << 20;

/// A matrix [out, in] and its bias [out].
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Matrix {
    /// In the element type of the model, or integers.
    pub weight: Slice,
    pub factors: Factors,
    pub bias: Option<Slice>,
    pub out: usize,
    pub input: usize,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct NormWeights {
    pub weight: Slice,
    /// Zeros where the norm has none.
    pub bias: Slice,
    pub layer: bool,
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

impl NormWeights {
    /// The launch that norms the first `width` channels of rows of x into y, which are `stride` elements apart in both.
    /// `scale` is the factor of `branch`, which kernels that add it read.
    pub fn launched(
        &self,
        [x, branch, y]: [Slice; 3],
        [width, stride]: [usize; 2],
        scale: f32,
    ) -> crate::gpu::launch::Norm {
        crate::gpu::launch::Norm {
            x,
            branch,
            weight: self.weight,
            bias: self.bias,
            y,
            d: width as i32,
            x_stride: stride as i32,
            y_stride: stride as i32,
            eps: self.eps,
            scale,
            offset: self.offset,
        }
    }
}

#[derive(Debug)]
pub(in crate::model) struct Block {
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

pub(in crate::model) fn candle(error: candle_core::Error) -> GpuError {
    GpuError::Launch(error.to_string())
}

/// A matrix [out, in] on the host.
enum Source<'a> {
    Values(Tensor),
    Blocks(&'a StoredMatrix),
}

impl<'a> Source<'a> {
    /// The matrix of a layer and its bias.
    fn new(linear: &'a Linear) -> Result<(Self, Option<&'a Tensor>), GpuError> {
        if let Some((matrix, bias)) = linear.stored() {
            return Ok((Self::Blocks(matrix), bias));
        }
        let Some(((weight, layout), bias)) = linear.plain() else {
            return Err(GpuError::Launch("adapters or packed weights".to_owned()));
        };
        let weight = match layout {
            WeightLayout::OutIn => weight.clone(),
            WeightLayout::InOut => weight.t().and_then(|t| t.contiguous()).map_err(candle)?,
        };
        Ok((Self::Values(weight), bias))
    }

    /// (out, in).
    fn sizes(&self) -> Result<(usize, usize), GpuError> {
        match self {
            Self::Values(weight) => weight.dims2().map_err(candle),
            Self::Blocks(matrix) => Ok((matrix.m, matrix.k)),
        }
    }

    fn kind(&self) -> Option<BlockType> {
        match self {
            Self::Values(_) => None,
            Self::Blocks(matrix) => Some(matrix.kind),
        }
    }
}

/// Puts tensors on a device.
pub(in crate::model) struct Loader<'a> {
    pub device: &'a mut dyn Device,
    element: Element,
    /// How matrices are stored that are not in blocks on the host.
    packing: Packing,
    /// Whether blocks of the file are kept.
    file: bool,
    converted: Converted,
}

impl<'a> Loader<'a> {
    /// Puts tensors on a device in an element type.
    pub fn new(device: &'a mut dyn Device, DeviceFormat { element, packing, file }: DeviceFormat) -> Self {
        Self { device, element, packing, file, converted: Converted::default() }
    }

    /// At least as many zeros as the longest vector of zeros that a launch may read.
    pub fn zeros(&mut self, c: &ModelConfig) -> Result<Slice, GpuError> {
        let widest = (2 * c.intermediate_size).max(c.hidden_size).max((c.n_heads + 2 * c.n_kv_heads) * c.head_dim);
        let zeros = self.place(widest)?;
        self.put(zeros, 0, &vec![0.0; widest])?;
        Ok(zeros)
    }

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

    /// A tensor in the element type.
    pub fn tensor(&mut self, t: &Tensor) -> Result<Slice, GpuError> {
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
    pub fn joint(&mut self, parts: &[&Linear]) -> Result<Matrix, GpuError> {
        let parts = parts.iter().map(|part| Source::new(part)).collect::<Result<Vec<_>, _>>()?;
        let sizes = parts.iter().map(|(part, _)| part.sizes()).collect::<Result<Vec<_>, _>>()?;
        let kinds = parts.iter().map(|(part, _)| part.kind()).collect::<Option<Vec<_>>>();
        let packing = kinds.map_or(self.packing, |kinds| Packing::of_file(&kinds));
        let (out, input) = (sizes.iter().map(|(rows, _)| rows).sum(), sizes[0].1);
        let bias = parts[0].1.map(|_| self.place(out)).transpose()?;
        let matrix = Matrix { bias, ..self.place_matrix((out, input), packing)? };
        let mut at = 0;
        for ((part, b), (rows, _)) in parts.iter().zip(&sizes) {
            match part {
                Source::Values(w) => self.with_values(w, |loader, values| loader.fill(&matrix, at * input, values))?,
                Source::Blocks(w) => self.fill_from_blocks(&matrix, at * input, w)?,
            }
            if let (Some(bias), Some(b)) = (bias, b) {
                self.write(bias, at, b)?;
            }
            at += rows;
        }
        Ok(matrix)
    }

    /// Memory of a matrix [out, input] without bias.
    fn place_matrix(&mut self, (out, input): (usize, usize), packing: Packing) -> Result<Matrix, GpuError> {
        let (packing, blocks) = (packing.for_rows_of(input), out * input / BLOCK);
        let (weight, factors) = match packing {
            Packing::Dense => (self.place(out * input)?, Factors::None),
            packing => {
                let weight = self.device.alloc(blocks * packing.bytes())?;
                let mut factors = || self.device.alloc(blocks * packing.factors() * 2);
                let scales = factors()?;
                let factors = match packing {
                    Packing::Q4 => Factors::Q4 { scales, minima: factors()? },
                    Packing::Fine => Factors::Fine { scales, minima: factors()? },
                    _ => Factors::Q8 { scales },
                };
                (weight, factors)
            }
        };
        Ok(Matrix { weight, factors, bias: None, out, input })
    }

    /// Writes values of a matrix from element `at` on: whole blocks, if it is in blocks.
    fn fill(&mut self, matrix: &Matrix, at: usize, values: &[f32]) -> Result<(), GpuError> {
        let packing = matrix.factors.packing();
        if packing == Packing::Dense {
            return self.put(matrix.weight, at, values);
        }
        values
            .chunks(CHUNK)
            .enumerate()
            .try_for_each(|(i, part)| self.put_blocks(matrix, (at + i * CHUNK) / BLOCK, &quantise(packing, part)))
    }

    /// Writes a matrix of the file into one whose packing holds its type, from element `at` on.
    fn fill_from_blocks(&mut self, matrix: &Matrix, at: usize, from: &StoredMatrix) -> Result<(), GpuError> {
        let packing = matrix.factors.packing();
        if packing != Packing::Dense {
            return self.put_blocks(matrix, at / BLOCK, &repack(packing, from.kind, &from.bytes));
        }
        let mut values = vec![0f32; from.m * from.k];
        blocks::dequantize(&from.bytes, from.kind, &mut values);
        self.converted.add(from.kind, 1, from.bytes.len(), values.len() * self.element.bytes());
        self.put(matrix.weight, at, &values)
    }

    /// Writes packed blocks of a matrix from block `at` on.
    fn put_blocks(&mut self, matrix: &Matrix, at: usize, packed: &PackedBlocks) -> Result<(), GpuError> {
        let packing = matrix.factors.packing();
        let mut write = |to: Slice, each: usize, data: &[u8]| self.device.upload(to.part(at * each, data.len()), data);
        write(matrix.weight, packing.bytes(), &packed.integers)?;
        let (scales, minima) = match matrix.factors {
            Factors::None => return Ok(()),
            Factors::Q8 { scales } => (scales, None),
            Factors::Q4 { scales, minima } | Factors::Fine { scales, minima } => (scales, Some(minima)),
        };
        write(scales, packing.factors() * 2, bytemuck::cast_slice(&packed.scales))?;
        minima.map_or(Ok(()), |to| write(to, packing.factors() * 2, bytemuck::cast_slice(&packed.minima)))
    }

    /// Counts a matrix that stays in the file on the host and is dense on the device, unless that is what was asked for.
    fn count(&mut self, table: &EmbeddingTable) {
        if let EmbeddingTable::Stored(rows) = table
            && self.file
            && rows.kind().quantised()
        {
            let (count, width) = rows.shape();
            self.converted.add(rows.kind(), 1, count * rows.kind().bytes(width), count * width * self.element.bytes());
        }
    }

    /// A table [rows, width], part by part.
    pub fn table(&mut self, table: &EmbeddingTable, (rows, width): (usize, usize)) -> Result<Slice, GpuError> {
        let to = self.place(rows * width)?;
        self.count(table);
        let mut at = 0;
        self.parts(table, |loader, part| {
            loader.put(to, at, part)?;
            at += part.len();
            Ok(())
        })?;
        Ok(to)
    }

    /// A matrix [out, input] without bias, part by part.
    pub fn matrix(&mut self, table: &EmbeddingTable, (out, input): (usize, usize)) -> Result<Matrix, GpuError> {
        if let EmbeddingTable::Stored(rows) = table
            && self.file
            && let packing @ (Packing::Q8 | Packing::Q4 | Packing::Fine) = Packing::of_file(&[rows.kind()])
        {
            let matrix = self.place_matrix((out, input), packing)?;
            let mut at = 0;
            self.each::<[u8]>(
                |take| rows.stored_parts(CHUNK, take),
                |loader, part| {
                    let packed = repack(packing, rows.kind(), part);
                    loader.put_blocks(&matrix, at, &packed)?;
                    at += packed.scales.len() / packing.factors();
                    Ok(())
                },
            )?;
            return Ok(matrix);
        }
        self.count(table);
        let matrix = self.place_matrix((out, input), self.packing)?;
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
        take: impl FnMut(&mut Self, &[f32]) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        self.each::<[f32]>(|take| table.parts(CHUNK / 4, take), take)
    }

    /// Passes on what `read` reads, each part of which is on the device before the next is read.
    fn each<T: ?Sized>(
        &mut self,
        read: impl FnOnce(&mut dyn FnMut(&T) -> candle_core::Result<()>) -> candle_core::Result<()>,
        mut take: impl FnMut(&mut Self, &T) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let mut failed = None;
        let read = read(&mut |part| {
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

    /// A norm; without a bias its bias is in `zeros`.
    pub fn norm(&mut self, norm: &Norm, zeros: Slice) -> Result<NormWeights, GpuError> {
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

    /// The matrices and norms of a block.
    pub fn block(&mut self, layer: &Layer, zeros: Slice) -> Result<Block, GpuError> {
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
pub(in crate::model) fn as_bytes(element: Element, values: &[f32]) -> Vec<u8> {
    match element {
        Element::F32 => bytemuck::cast_slice(values).to_vec(),
        Element::Bf16 => {
            let mut rounded = vec![half::bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytemuck::cast_slice(rounded.reinterpret_cast()).to_vec()
        }
        Element::F16 => {
            let mut rounded = vec![half::f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytemuck::cast_slice(rounded.reinterpret_cast()).to_vec()
        }
    }
}

/// Copies the weights of `decoder` to `device`.
///
/// # Errors
/// `OutOfMemory`, or `Launch` when the decoder has adapters or packed weights, or a file cannot be read.
pub(super) fn load(
    decoder: &Decoder,
    from: Blocks<'_>,
    device: &mut dyn Device,
    format: DeviceFormat,
) -> Result<Weights, GpuError> {
    let c = &decoder.config;
    let DeviceFormat { element, file, .. } = format;
    let mut loader = Loader::new(device, format);
    let zeros = loader.zeros(c)?;
    let embed = loader.table(&decoder.embed, (c.vocab_size, c.hidden_size))?;
    let positions = decoder.positions.as_ref().map(|t| loader.tensor(t)).transpose()?;
    let blocks = match from {
        Blocks::Held => decoder.layers.iter().map(|layer| loader.block(layer, zeros)).collect::<Result<_, _>>()?,
        Blocks::Files(opened) => {
            let (parameters, ropes) = (Parameters::Files(&opened.files), rope_tables::tables(c));
            let purpose = if file { Purpose::Copy } else { Purpose::Score };
            let b = Builder { config: c, parameters, lora: None, purpose };
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
    if let Some(types) = loader.converted.described() {
        tracing::info!(%types, to = element.as_str(), "types that the device has no kernel for are converted");
    }
    Ok(Weights { embed, positions, blocks, final_norm, head, zeros })
}
