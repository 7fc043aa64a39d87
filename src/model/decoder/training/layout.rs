//! Which rows of which tensors of a model are in which matrix on the device.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Tensor, TensorId};

use crate::gpu::GpuError;
use crate::model::decoder::device::weights::candle;
use crate::model::layers::block::{Layer, Mlp, Projections};
use crate::model::layers::{self, UnpackedLinear};
use crate::model::{Activation, Decoder, ModelConfig};
use crate::ops::linear::WeightLayout;

/// A matrix of the plan, by its number.
pub(super) type MatrixId = usize;

/// A tensor of the model on the host, as rows [rows, width] in the layout [out, in]; a vector has width 1.
pub(super) struct HostTensor {
    pub tensor: Tensor,
    /// Whether the host's layout is [in, out].
    pub transposed: bool,
    /// The name of a trained tensor.
    pub name: Option<String>,
}

impl HostTensor {
    pub fn rows_and_width(&self) -> (usize, usize) {
        match (self.tensor.dims(), self.transposed) {
            ([rows, width], false) | ([width, rows], true) => (*rows, *width),
            _ => (self.tensor.elem_count(), 1),
        }
    }

    /// Its values as [rows, width].
    pub fn values(&self) -> Result<Vec<f32>, GpuError> {
        let tensor = self.tensor.detach();
        let tensor = if self.transposed { tensor.t() } else { Ok(tensor) };
        tensor.and_then(|t| t.contiguous()?.flatten_all()?.to_vec1()).map_err(candle)
    }
}

/// Rows of a host tensor that are consecutive rows of a device matrix from `at` on.
pub(super) struct Placed {
    pub tensor: usize,
    pub rows: Range<usize>,
    pub at: usize,
}

/// A matrix [rows, width] on the device.
pub(super) struct PlannedMatrix {
    pub rows: usize,
    pub width: usize,
    pub parts: Vec<Placed>,
    pub trained: bool,
    /// Whether weight decay applies: to tensors of rank 2.
    pub decayed: bool,
}

/// A low-rank term of a product: scale · x · aᵀ · bᵀ is added to the columns from `column` on.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    pub a: MatrixId,
    pub b: MatrixId,
    pub scale: f32,
    pub column: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: MatrixId,
    pub bias: Option<MatrixId>,
    pub adapters: Vec<Adapter>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub weight: MatrixId,
    pub bias: Option<MatrixId>,
    pub layer: bool,
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

#[derive(Debug)]
pub(super) struct Block {
    pub attn_norm: Option<Norm>,
    pub qkv: [Linear; 3],
    pub qk_norm: Option<[Norm; 2]>,
    pub out: Linear,
    pub attn_post: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub up: Linear,
    pub gated: bool,
    pub activation: Activation,
    pub down: Linear,
    pub mlp_post: Option<Norm>,
    /// The table of rotary positions, if any: 0 for full layers, 1 for windowed ones.
    pub rope: Option<usize>,
    pub window: usize,
}

/// The matrices of a decoder on a device.
pub(super) struct Plan {
    pub tensors: Vec<HostTensor>,
    pub matrices: Vec<PlannedMatrix>,
    pub embed: MatrixId,
    pub positions: Option<MatrixId>,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    pub head: MatrixId,
    /// The lowest block that a gradient must reach, or one past the last.
    pub lowest_trained: usize,
}

/// Plans matrices one after the other.
pub(super) struct Planner<'a> {
    config: &'a ModelConfig,
    names: &'a HashMap<TensorId, String>,
    pub tensors: Vec<HostTensor>,
    pub matrices: Vec<PlannedMatrix>,
}

/// Plans the matrices of `decoder`, built for `Purpose::Train`. `names` are the trained tensors.
///
/// # Errors
/// When weights are only present in packed form, or an adapter begins at a column that kernels cannot address.
pub(super) fn plan(decoder: &Decoder, names: &HashMap<TensorId, String>) -> Result<Plan, GpuError> {
    let mut planner = Planner::new(&decoder.config, names);
    let Some(words) = decoder.embed.tensor() else {
        return Err(GpuError::Launch("the word vectors are in the model's file, not in memory".to_owned()));
    };
    let embed = planner.whole(words, false)?;
    let positions = decoder.positions.as_ref().map(|t| planner.whole(t, false)).transpose()?;
    let blocks = decoder.layers.iter().map(|layer| planner.block(layer)).collect::<Result<Vec<_>, _>>()?;
    let final_norm = planner.norm(&decoder.final_norm)?;
    let head = match decoder.config.tie_embeddings {
        true => embed,
        false => planner.whole(&decoder.head_tensor().map_err(candle)?, false)?,
    };
    let Planner { tensors, matrices, .. } = planner;
    let trained = |id: MatrixId| matrices[id].trained;
    let lowest_trained = match trained(embed) || positions.is_some_and(trained) {
        true => 0,
        false => blocks.iter().position(|b| b.matrices().any(trained)).unwrap_or(blocks.len()),
    };
    Ok(Plan { tensors, matrices, embed, positions, blocks, final_norm, head, lowest_trained })
}

impl<'a> Planner<'a> {
    pub fn new(config: &'a ModelConfig, names: &'a HashMap<TensorId, String>) -> Self {
        Self { config, names, tensors: Vec::new(), matrices: Vec::new() }
    }

    /// A matrix [rows, width] that is not trained and has none of its values yet.
    pub fn without_values(&mut self, rows: usize, width: usize) -> MatrixId {
        self.matrices.push(PlannedMatrix { rows, width, parts: Vec::new(), trained: false, decayed: false });
        self.matrices.len() - 1
    }

    /// Drops the tensors of all matrices so far, whose values are on the device.
    pub fn drop_tensors(&mut self) {
        self.tensors.clear();
        self.matrices.iter_mut().for_each(|matrix| matrix.parts.clear());
    }

    fn tensor(&mut self, tensor: &Tensor, transposed: bool) -> usize {
        if let Some(known) = self.tensors.iter().position(|t| t.tensor.id() == tensor.id()) {
            return known;
        }
        let name = self.names.get(&tensor.id()).cloned();
        self.tensors.push(HostTensor { tensor: tensor.clone(), transposed, name });
        self.tensors.len() - 1
    }

    /// A matrix of the rows of `parts`, in that order.
    fn matrix(&mut self, parts: &[(usize, Vec<Range<usize>>)]) -> Result<MatrixId, GpuError> {
        let width = self.tensors[parts[0].0].rows_and_width().1;
        let trained = self.tensors[parts[0].0].name.is_some();
        let decayed = self.tensors[parts[0].0].tensor.rank() >= 2;
        let (mut placed, mut rows) = (Vec::new(), 0);
        for (tensor, ranges) in parts {
            if self.tensors[*tensor].name.is_some() != trained {
                return Err(GpuError::Launch("joined matrices of which only some are trained".to_owned()));
            }
            for range in ranges {
                placed.push(Placed { tensor: *tensor, rows: range.clone(), at: rows });
                rows += range.len();
            }
        }
        self.matrices.push(PlannedMatrix { rows, width, parts: placed, trained, decayed });
        Ok(self.matrices.len() - 1)
    }

    /// A matrix of all rows of one tensor.
    pub fn whole(&mut self, tensor: &Tensor, transposed: bool) -> Result<MatrixId, GpuError> {
        let tensor = self.tensor(tensor, transposed);
        let rows = self.tensors[tensor].rows_and_width().0;
        self.matrix(&[(tensor, std::iter::once(0..rows).collect())])
    }

    pub fn norm(&mut self, norm: &layers::Norm) -> Result<Norm, GpuError> {
        let (weight, bias, eps) = norm.parts();
        Ok(Norm {
            weight: self.whole(weight, false)?,
            bias: bias.map(|b| self.whole(b, false)).transpose()?,
            layer: norm.is_layer(),
            eps,
            offset: norm.offset(),
        })
    }

    /// One product of the chosen output rows of layers with the same input, joined.
    fn linear(&mut self, parts: &[(&layers::Linear, Vec<Range<usize>>)]) -> Result<Linear, GpuError> {
        let (mut weights, mut biases, mut adapters, mut column) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (linear, rows) in parts {
            let packed = || GpuError::Launch("weights are only present in packed form".to_owned());
            let UnpackedLinear { weight, layout, bias, adapter } = linear.unpacked().ok_or_else(packed)?;
            weights.push((self.tensor(weight, layout == WeightLayout::InOut), rows.clone()));
            if let Some(bias) = bias {
                biases.push((self.tensor(bias, false), rows.clone()));
            }
            if let Some((a, b, scale)) = adapter {
                // Parts of one matrix share the first factor.
                let shared = self.tensor(a, false);
                let known = self.matrices.iter().position(|m| m.parts[0].tensor == shared);
                let a = known.map_or_else(|| self.whole(a, false), Ok)?;
                let b = self.tensor(b, false);
                adapters.push(Adapter { a, b: self.matrix(&[(b, rows.clone())])?, scale: scale as f32, column });
            }
            column += rows.iter().map(Range::len).sum::<usize>();
        }
        if let Some(adapter) = adapters.iter().find(|a| !a.column.is_multiple_of(8)) {
            let column = adapter.column;
            return Err(GpuError::Launch(format!(
                "an adapter begins at column {column}; the kernels need multiples of 8"
            )));
        }
        let bias = if biases.is_empty() { None } else { Some(self.matrix(&biases)?) };
        Ok(Linear { weight: self.matrix(&weights)?, bias, adapters })
    }

    fn whole_linear(&mut self, linear: &layers::Linear) -> Result<Linear, GpuError> {
        self.linear(&[(linear, std::iter::once(0..linear.out_features()).collect())])
    }

    fn qkv(&mut self, attn: &Projections) -> Result<[Linear; 3], GpuError> {
        let (hd, heads, kv_heads) = (self.config.head_dim, self.config.n_heads, self.config.n_kv_heads);
        let (q, kv) = (heads * hd, kv_heads * hd);
        let rows = |part: usize, by_head: bool| -> Vec<Range<usize>> {
            if by_head {
                return (0..heads).map(|h| (3 * h + part) * hd..(3 * h + part + 1) * hd).collect();
            }
            std::iter::once([0..q, q..q + kv, q + kv..q + 2 * kv][part].clone()).collect()
        };
        Ok(match attn {
            Projections::Split { q, k, v } => [self.whole_linear(q)?, self.whole_linear(k)?, self.whole_linear(v)?],
            Projections::Joint { all, by_head } => [
                self.linear(&[(all, rows(0, *by_head))])?,
                self.linear(&[(all, rows(1, *by_head))])?,
                self.linear(&[(all, rows(2, *by_head))])?,
            ],
        })
    }

    pub fn block(&mut self, layer: &Layer) -> Result<Block, GpuError> {
        let mut norm = |norm: &Option<layers::Norm>| norm.as_ref().map(|n| self.norm(n)).transpose();
        let (attn_norm, attn_post) = (norm(&layer.attn_norm)?, norm(&layer.attn_post)?);
        let (mlp_norm, mlp_post) = (norm(&layer.mlp_norm)?, norm(&layer.mlp_post)?);
        let qk_norm = match &layer.qk_norm {
            Some([q, k]) => Some([self.norm(q)?, self.norm(k)?]),
            None => None,
        };
        let every = |linear: &layers::Linear| std::iter::once(0..linear.out_features()).collect::<Vec<_>>();
        let (up, gated, activation) = match &layer.mlp {
            Mlp::Gated { gate, up, activation, .. } => {
                (self.linear(&[(gate, every(gate)), (up, every(up))])?, true, *activation)
            }
            Mlp::JointGated { gate_up, activation, .. } => (self.whole_linear(gate_up)?, true, *activation),
            Mlp::Plain { up, activation, .. } => (self.whole_linear(up)?, false, *activation),
        };
        Ok(Block {
            attn_norm,
            qkv: self.qkv(&layer.attn)?,
            qk_norm,
            out: self.whole_linear(&layer.out)?,
            attn_post,
            mlp_norm,
            up,
            gated,
            activation,
            down: self.whole_linear(layer.mlp.down())?,
            mlp_post,
            rope: layer.rope.is_some().then_some(usize::from(layer.kind.window.is_some())),
            window: layer.kind.window.unwrap_or(0),
        })
    }
}

impl Linear {
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> {
        let adapters = self.adapters.iter().flat_map(|adapter| [adapter.a, adapter.b]);
        std::iter::once(self.weight).chain(self.bias).chain(adapters)
    }
}

impl Norm {
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> + use<> {
        std::iter::once(self.weight).chain(self.bias)
    }
}

impl Block {
    /// All matrices of the block.
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> {
        let norms = [self.attn_norm, self.attn_post, self.mlp_norm, self.mlp_post];
        let norms = norms.into_iter().flatten().chain(self.qk_norm.into_iter().flatten());
        let linears = self.qkv.iter().chain([&self.out, &self.up, &self.down]);
        norms.flat_map(|norm| norm.matrices()).chain(linears.flat_map(Linear::matrices))
    }
}
