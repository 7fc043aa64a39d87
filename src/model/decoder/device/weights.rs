//! A decoder's weights on a device, as `gpu` launches read them: matrices with the same input joined, everything row-major
//! `[out, in]` in one element type, or matrices in 8 bits.

use candle_core::Tensor;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::gpu::device::Device;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::embedding_table::EmbeddingTable;
use crate::model::layers::block::{Layer, Mlp, Projections, layer};
use crate::model::layers::{Builder, Linear, Norm, Parameters, rope_tables};
use crate::model::load::Opened;
use crate::model::{Activation, Decoder, ModelConfig, Purpose};
use crate::ops::linear::WeightLayout;
use crate::ops::q8::quantize_block;
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

/// Neighbours that share a scale.
const BLOCK: usize = 32;
/// Bytes that are converted and copied at a time.
const CHUNK: usize = 8 << 20;

/// A matrix [out, in] and its bias [out].
#[derive(Clone, Copy, Debug)]
pub(in crate::model::decoder) struct Matrix {
    /// In the element type of the model; i8 where there are scales.
    pub weight: Slice,
    /// One f16 for each 32 neighbours in a row, as in GGUF's Q8_0.
    pub scales: Option<Slice>,
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
    /// Matrices are stored in 8 bits with scales, where their rows are multiples of 32.
    quantised: bool,
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
        let t = t.detach().contiguous().map_err(candle)?;
        let mut done = Ok(());
        with_f32s(&t, |values| {
            done = self.put(to, at, values);
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
        let quantised = self.quantised && input.is_multiple_of(BLOCK);
        let (weight, scales) = match quantised {
            true => (self.device.alloc(out * input)?, Some(self.device.alloc(out * (input / BLOCK) * 2)?)),
            false => (self.place(out * input)?, None),
        };
        let mut at = 0;
        for ((w, b), rows) in natural.iter().zip(&outs) {
            match scales {
                Some(scales) => self.write_quantised([weight, scales], at * input, w)?,
                None => self.write(weight, at * input, w)?,
            }
            if let (Some(bias), Some(b)) = (bias, b) {
                self.write(bias, at, b)?;
            }
            at += rows;
        }
        Ok(Matrix { weight, scales, bias, out, input })
    }

    /// Writes a tensor of rows that are multiples of 32 as i8 and f16 scales, from element `at` on.
    fn write_quantised(&mut self, to: [Slice; 2], at: usize, t: &Tensor) -> Result<(), GpuError> {
        let t = t.detach().contiguous().map_err(candle)?;
        let mut done = Ok(());
        with_f32s(&t, |values| {
            done = self.put_quantised(to, at, values);
            Ok(())
        })
        .map_err(candle)?;
        done
    }

    /// Writes values of whole blocks as i8 and f16 scales, from element `at` on.
    fn put_quantised(&mut self, [weight, scales]: [Slice; 2], at: usize, values: &[f32]) -> Result<(), GpuError> {
        values.chunks(CHUNK).enumerate().try_for_each(|(i, part)| {
            let (mut bytes, mut factors) = (vec![0i8; part.len()], vec![0u16; part.len() / BLOCK]);
            let blocks = bytes.par_chunks_mut(BLOCK).zip(&mut factors).zip(part.par_chunks(BLOCK));
            blocks.for_each(|((to, factor), from)| {
                let mut quantised = [0; BLOCK];
                *factor = quantize_block(from, &mut quantised).to_bits();
                to.copy_from_slice(&quantised);
            });
            let from = at + i * CHUNK;
            self.device.upload(weight.part(from, part.len()), bytemuck::cast_slice(&bytes))?;
            let scales = scales.part(from / BLOCK * 2, factors.len() * 2);
            self.device.upload(scales, bytemuck::cast_slice(&factors))
        })
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
        if !(self.quantised && input.is_multiple_of(BLOCK)) {
            return Ok(Matrix { weight: self.table(table, (out, input))?, scales: None, bias: None, out, input });
        }
        let (weight, scales) = (self.device.alloc(out * input)?, self.device.alloc(out * (input / BLOCK) * 2)?);
        let mut at = 0;
        self.parts(table, |loader, part| {
            loader.put_quantised([weight, scales], at, part)?;
            at += part.len();
            Ok(())
        })?;
        Ok(Matrix { weight, scales: Some(scales), bias: None, out, input })
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
    quantised: bool,
) -> Result<Weights, GpuError> {
    let c = &decoder.config;
    let mut loader = Loader { device, element, quantised };
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
        (true, _) => Matrix { weight: embed, scales: None, bias: None, out, input },
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
