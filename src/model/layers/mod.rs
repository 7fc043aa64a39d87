//! Building blocks that decoders and encoders share: linear layers with bias and adapter, LayerNorm and RMSNorm.

pub(in crate::model) mod block;
pub(in crate::model) mod rope_tables;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor};

use crate::model::adapters::lora::LoraConfig;
use crate::model::adapters::served::Group;
use crate::model::families::NormKind;
use crate::model::gguf::GgufTensors;
use crate::model::load::ModelFiles;
use crate::model::{ModelConfig, Purpose, Weights, quantized};
use crate::ops::blocks::StoredMatrix;
use crate::ops::linear::{Weight, WeightFormat, WeightLayout, linear};
use crate::ops::low_rank::{LowRank, LowRankUpdate};
use crate::ops::product::{Dims, column_sums, product_transposed};
use crate::ops::quantized::QuantizedMatrix;
use crate::ops::{self, grad};

/// Where a model's parameters come from.
#[derive(Clone, Copy)]
pub(in crate::model) enum Parameters<'a> {
    Loaded(&'a Weights),
    /// Read one at a time, and dropped when they are prepared.
    Files(&'a ModelFiles),
}

impl<'a> Parameters<'a> {
    /// A tensor as f32, or as quantization blocks where it is quantized for training.
    fn get(self, name: &str) -> Result<Option<Tensor>> {
        match self {
            Self::Loaded(weights) => Ok(weights.get(name).cloned()),
            Self::Files(files) if files.shape(name).is_none() => Ok(None),
            Self::Files(files) => files.tensor(name, &Device::Cpu).map(Some).map_err(candle_core::Error::wrap),
        }
    }

    pub fn has(self, name: &str) -> bool {
        match self {
            Self::Loaded(weights) => weights.contains_key(name),
            Self::Files(files) => files.shape(name).is_some(),
        }
    }

    /// The quantization blocks of a matrix; `None` where it is not quantized.
    fn quantized(self, name: &str) -> Option<&'a Tensor> {
        match self {
            Self::Loaded(weights) => weights.get(name).filter(|tensor| quantized::is_quantized(tensor)),
            Self::Files(_) => None,
        }
    }

    /// The GGUF file whose blocks can be served unchanged.
    fn gguf(self) -> Option<&'a GgufTensors> {
        match self {
            Self::Loaded(_) => None,
            Self::Files(files) => files.gguf(),
        }
    }
}

/// The inputs for finding and preparing the parameters of one model.
pub(in crate::model) struct Builder<'a> {
    pub config: &'a ModelConfig,
    pub parameters: Parameters<'a>,
    pub lora: Option<(&'a LoraConfig, &'a Weights)>,
    pub purpose: Purpose,
}

impl Builder<'_> {
    /// The matrix `name`, prepared for its purpose.
    pub fn weight(&self, name: &str, (out, input): (usize, usize), layout: WeightLayout) -> Result<Weight> {
        if let Some(weight) = self.blocks(&[(name, out)], input)? {
            return Ok(weight);
        }
        let dims = match layout {
            WeightLayout::InOut => [input, out],
            WeightLayout::OutIn => [out, input],
        };
        self.prepare(name, &self.tensor(name, &dims)?, layout)
    }

    /// Prepares `w`, the tensor `name` or the rows of several tensors of which it is the first.
    fn prepare(&self, name: &str, w: &Tensor, layout: WeightLayout) -> Result<Weight> {
        let format = match (self.purpose, self.parameters.gguf()) {
            (Purpose::ServeAs(format), None) if format.follows_file() => WeightFormat::F32,
            (Purpose::ServeAs(format), Some(gguf)) if format.follows_file() => gguf.near_format(name, format),
            (Purpose::ServeAs(format), _) => format,
            (purpose, _) => return purpose.prepare(w, layout),
        };
        Weight::served(w, layout, format)
    }

    /// The concatenated rows of these tensors (name, rows) in the file's format; `None` unless the file's format is
    /// requested and all tensors have the same block type.
    fn blocks(&self, tensors: &[(&str, usize)], input: usize) -> Result<Option<Weight>> {
        let Some(gguf) = self.parameters.gguf().filter(|_| self.purpose.follows_file()) else { return Ok(None) };
        let kinds = tensors.iter().map(|(name, _)| gguf.block_kind(name)).collect::<Option<Vec<_>>>();
        let Some(kinds) = kinds.filter(|kinds| kinds.iter().all(|(kind, ..)| *kind == kinds[0].0)) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        for ((name, out), (_, rows, width)) in tensors.iter().zip(&kinds) {
            if (rows, width) != (out, &input) {
                candle_core::bail!("tensor {name} is {rows} × {width}, the configuration says {out} × {input}");
            }
            bytes.extend(gguf.bytes(name).map_err(candle_core::Error::wrap)?);
        }
        let (kind, rows) = (kinds[0].0, tensors.iter().map(|(_, out)| out).sum());
        Ok(Some(match self.purpose {
            Purpose::Copy => Weight::Stored(Arc::new(StoredMatrix { bytes, kind, m: rows, k: input })),
            Purpose::ServeAs(WeightFormat::Exact) => Weight::exact_blocks(&bytes, kind, rows, input),
            _ => Weight::blocks(&bytes, kind, rows, input),
        }))
    }

    /// Projections of the same input as one matrix, for fewer and larger products. `None` where a gradient or an
    /// adapter needs them separately. `modules` are (name, outputs).
    pub fn joint(&self, modules: &[(String, usize)], input: usize, bias: bool) -> Result<Option<Linear>> {
        if !matches!(self.purpose, Purpose::Serve | Purpose::ServeAs(_)) || self.lora.is_some() {
            return Ok(None);
        }
        let names: Vec<String> = modules.iter().map(|(module, _)| format!("{module}.weight")).collect();
        if names.iter().any(|name| self.parameters.quantized(name).is_some()) {
            return Ok(None);
        }
        let tensors: Vec<(&str, usize)> =
            names.iter().map(String::as_str).zip(modules.iter().map(|(_, n)| *n)).collect();
        let weight = match self.blocks(&tensors, input)? {
            Some(weight) => weight,
            // The file's types differ.
            None if self.parameters.gguf().is_some() && self.purpose.follows_file() => return Ok(None),
            None => {
                let parts = tensors.iter().map(|(name, out)| self.tensor(name, &[*out, input]));
                let parts = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?;
                self.prepare(&names[0], &parts, WeightLayout::OutIn)?
            }
        };
        let bias = match bias {
            true => {
                let parts = modules.iter().map(|(module, out)| self.tensor(&format!("{module}.bias"), &[*out]));
                Some(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
            }
            false => None,
        };
        Ok(Some(Linear { weight, bias, lora: None, slot: 0 }))
    }

    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let Some(t) = self.parameters.get(name)? else { candle_core::bail!("the weights have no tensor {name}") };
        if t.dims() != dims {
            candle_core::bail!("tensor {name} has shape {:?}, the configuration says {dims:?}", t.dims());
        }
        Ok(t)
    }

    pub fn linear(&self, module: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let name = format!("{module}.weight");
        let matrix = self.parameters.quantized(&name).and_then(|w| QuantizedMatrix::from_blocks(w, input));
        let weight = match matrix.filter(|matrix| matrix.m == out) {
            Some(matrix) => Weight::Quantized(matrix),
            None => self.weight(&name, (out, input), self.config.family().layout)?,
        };
        let bias = if bias { Some(self.tensor(&format!("{module}.bias"), &[out])?) } else { None };
        let lora = match self.lora {
            Some((config, adapters)) => match adapters.get(&format!("{module}.lora_A.weight")) {
                Some(a) => {
                    let Some(b) = adapters.get(&format!("{module}.lora_B.weight")) else {
                        candle_core::bail!("adapter {module} has no lora_B")
                    };
                    Some(Adapter::new(a.clone(), b.clone(), config.scale()))
                }
                None => None,
            },
            None => None,
        };
        Ok(Linear { weight, bias, lora, slot: 0 })
    }

    /// The family's norm over `width` channels.
    pub fn norm_of(&self, module: &str, width: usize) -> Result<Norm> {
        let weight = self.tensor(&format!("{module}.weight"), &[width])?;
        let eps = self.config.norm_eps;
        Ok(match self.config.family().norm {
            NormKind::Layer => {
                let bias = self.tensor(&format!("{module}.bias"), &[width])?;
                Norm::Layer { weight, bias, eps }
            }
            NormKind::LayerNoBias => Norm::LayerNoBias { weight, eps },
            NormKind::Rms => Norm::Rms { weight, eps },
            NormKind::RmsPlusOne => Norm::RmsPlusOne { weight, eps },
        })
    }

    pub fn norm(&self, module: &str) -> Result<Norm> {
        self.norm_of(module, self.config.hidden_size)
    }
}

#[derive(Debug, Clone)]
struct Adapter {
    /// [rank, in] and [out, rank].
    a: Tensor,
    b: Tensor,
    scale: f64,
    /// Prepared matrices, where the factors are frozen.
    ready: Arc<OnceLock<LowRank>>,
}

impl Adapter {
    fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self { a, b, scale, ready: Arc::default() }
    }

    fn rank(&self) -> Result<usize> {
        self.a.dim(0)
    }

    /// The term of the forward pass (`OutIn`), or the one that gradients of the input pass through (`InOut`).
    fn term(&self, way: WeightLayout) -> Result<LowRank> {
        let (a, b) = (ops::read(&self.a)?, ops::read(&self.b)?);
        let (first, second) = if way == WeightLayout::OutIn { (&a, &b) } else { (&b, &a) };
        Ok(LowRank::new(first, second, way, self.rank()?, self.scale as f32))
    }

    /// Calls `f` with the term of the forward pass.
    fn with_term<R>(&self, f: impl FnOnce(&LowRank) -> Result<R>) -> Result<R> {
        if self.a.track_op() || self.b.track_op() {
            return f(&self.term(WeightLayout::OutIn)?);
        }
        match self.ready.get() {
            Some(term) => f(term),
            None => {
                let term = self.term(WeightLayout::OutIn)?;
                f(self.ready.get_or_init(|| term))
            }
        }
    }
}

/// The tensors of a linear layer.
pub(in crate::model) struct UnpackedLinear<'a> {
    pub weight: &'a Tensor,
    pub layout: WeightLayout,
    pub bias: Option<&'a Tensor>,
    /// The factors [rank, in] and [out, rank], and the scale of their product.
    pub adapter: Option<(&'a Tensor, &'a Tensor, f64)>,
}

/// x·Wᵀ + b, plus the adapter's low-rank term.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    lora: Option<Adapter>,
    /// The layer's number among the matrices of its block.
    pub(in crate::model) slot: usize,
}

impl Linear {
    pub fn change_adapter(&mut self, change: &dyn Fn(&Tensor) -> Result<Option<Tensor>>) -> Result<()> {
        if let Some(Adapter { a, b, scale, .. }) = self.lora.take() {
            self.lora = change(&a)?.zip(change(&b)?).map(|(a, b)| Adapter::new(a, b, scale));
        }
        Ok(())
    }

    /// x [n, in] → [n, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.track_op() && !self.trained() && x.dtype() == DType::F32 && self.on_host() {
            let (x, n) = (x.contiguous()?, x.dim(0)?);
            let mut y = vec![0f32; n * self.weight.out_features()];
            self.run(&ops::read(&x)?, &mut y, n)?;
            return ops::tensor(y, (n, self.weight.out_features()));
        }
        let mut y = self.weight.apply(x)?;
        if let Some(Adapter { a, b, scale, .. }) = &self.lora {
            let low = linear(x, a, WeightLayout::OutIn)?;
            y = (y + (linear(&low, b, WeightLayout::OutIn)? * *scale)?)?;
        }
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }

    /// The matrix in the file's layout, and the bias; `None` where the matrix is packed or has an adapter.
    pub fn plain(&self) -> Option<((&Tensor, WeightLayout), Option<&Tensor>)> {
        match (&self.weight, &self.lora) {
            (Weight::Dense(weight, layout), None) => Some(((weight, *layout), self.bias.as_ref())),
            _ => None,
        }
    }

    /// The matrix in the blocks of its file, and the bias; `None` for any other matrix.
    pub fn stored(&self) -> Option<(&StoredMatrix, Option<&Tensor>)> {
        match (&self.weight, &self.lora) {
            (Weight::Stored(matrix), None) => Some((&**matrix, self.bias.as_ref())),
            _ => None,
        }
    }

    /// The layer's tensors for a copy to another device; `None` where the matrix is only present in packed form.
    pub(in crate::model) fn unpacked(&self) -> Option<UnpackedLinear<'_>> {
        let (weight, layout) = match &self.weight {
            Weight::Dense(weight, layout) | Weight::Packed { dense: Some((weight, layout)), .. } => (weight, *layout),
            _ => return None,
        };
        let adapter = self.lora.as_ref().map(|adapter| (&adapter.a, &adapter.b, adapter.scale));
        Some(UnpackedLinear { weight, layout, bias: self.bias.as_ref(), adapter })
    }

    /// Whether any of the layer's tensors receives a gradient.
    pub fn trained(&self) -> bool {
        self.tensors().any(Tensor::track_op)
    }

    /// The layer's tensors in the file's layout, adapter included, without weights that were packed for serving.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let adapter = self.lora.iter().flat_map(|l| [&l.a, &l.b]);
        self.weight.unpacked().into_iter().chain(&self.bias).chain(adapter)
    }

    /// Whether `run` and `back` apply.
    pub fn on_host(&self) -> bool {
        self.weight.on_host() && self.tensors().all(|t| ops::fused(t) && t.is_contiguous())
    }

    pub fn out_features(&self) -> usize {
        self.weight.out_features()
    }

    /// y [n, out] = layer(x [n, in]) on plain slices. Returns the adapter's inner values, scaled, [n, rank]
    /// (empty without one): `back` needs them.
    pub fn run(&self, x: &[f32], y: &mut [f32], n: usize) -> Result<Vec<f32>> {
        let mut low = Vec::new();
        match &self.lora {
            None => self.weight.forward(x, y, n, None)?,
            Some(adapter) => {
                low = vec![0f32; n * adapter.rank()?];
                adapter.with_term(|term| {
                    self.weight.forward(x, y, n, Some(LowRankUpdate { factors: term, projected: &mut low }))
                })?;
            }
        }
        if let Some(bias) = &self.bias {
            let bias = ops::read(bias)?;
            for row in y.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
            }
        }
        Ok(low)
    }

    /// `run`, then adds the terms of the adapters of some rows.
    pub fn run_with_adapters(&self, x: &[f32], y: &mut [f32], n: usize, adapters: &[Group<'_>]) -> Result<Vec<f32>> {
        let low = self.run(x, y, n)?;
        for group in adapters {
            group.add(self.slot, x, y, n);
        }
        Ok(low)
    }

    /// `back_input` (where `gx` is given) followed by `back_weights`.
    pub fn back(&self, x: &[f32], low: &[f32], gy: &[f32], n: usize, gx: Option<(&mut [f32], bool)>) -> Result<()> {
        let glow = self.back_input(gy, n, gx)?;
        self.back_weights(x, low, gy, &glow, n)
    }

    /// Writes or adds the input's gradient where `gx` is given. Returns the gradient of the adapter's inner values,
    /// scaled, [n, rank] (empty without one).
    pub fn back_input(&self, gy: &[f32], n: usize, gx: Option<(&mut [f32], bool)>) -> Result<Vec<f32>> {
        let Some(adapter) = &self.lora else {
            if let Some((gx, add)) = gx {
                self.weight.backward_input(gy, gx, n, add, None)?;
            }
            return Ok(Vec::new());
        };
        let (term, mut glow) = (adapter.term(WeightLayout::InOut)?, vec![0f32; n * adapter.rank()?]);
        match gx {
            Some((gx, add)) => {
                self.weight.backward_input(
                    gy,
                    gx,
                    n,
                    add,
                    Some(LowRankUpdate { factors: &term, projected: &mut glow }),
                )?;
            }
            None => term.project(gy, &mut glow),
        }
        Ok(glow)
    }

    /// Adds to the gradients of the layer's variables, inside `ops::grad::accumulate`. `low` is what `run` returned for
    /// `x`,
    /// `glow` what `back_input` did for `gy`.
    pub fn back_weights(&self, x: &[f32], low: &[f32], gy: &[f32], glow: &[f32], n: usize) -> Result<()> {
        if let Some(bias) = self.bias.as_ref().filter(|b| b.track_op()) {
            grad::add(bias, |g, add| column_sums(gy, g, add))?;
        }
        if self.weight.trained() {
            self.weight.backward_weight(x, gy, n)?;
        }
        let Some(Adapter { a, b, .. }) = &self.lora else { return Ok(()) };
        let ((rank, input), out) = (a.dims2()?, b.dim(0)?);
        if b.track_op() {
            grad::add(b, |g, add| product_transposed(gy, low, g, Dims { n, m: out, k: rank }, add))?;
        }
        if a.track_op() {
            grad::add(a, |g, add| product_transposed(glow, x, g, Dims { n, m: rank, k: input }, add))?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
pub enum Norm {
    Rms {
        weight: Tensor,
        eps: f64,
    },
    /// RMSNorm that scales by 1 + weight.
    RmsPlusOne {
        weight: Tensor,
        eps: f64,
    },
    Layer {
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    },
    LayerNoBias {
        weight: Tensor,
        eps: f64,
    },
}

impl Norm {
    /// x [n, k · width] → the same shape; every `width` channels are normalised together.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (width, shape) = (self.parts().0.elem_count(), x.shape().clone());
        if x.dim(candle_core::D::Minus1)? != width {
            return self.forward(&x.reshape((x.elem_count() / width, width))?)?.reshape(shape);
        }
        match self {
            Self::Rms { weight, eps } => ops::norm::rms_norm(x, weight, *eps),
            Self::RmsPlusOne { weight, eps } => ops::norm::rms_norm(x, &(weight + 1.0)?, *eps),
            Self::Layer { weight, bias, eps } => ops::norm::layer_norm(x, weight, bias, *eps),
            Self::LayerNoBias { weight, eps } => ops::norm::layer_norm(x, weight, &weight.zeros_like()?, *eps),
        }
    }

    /// The weight, the bias if there is one, and the number that keeps the divisor from 0.
    pub(super) fn parts(&self) -> (&Tensor, Option<&Tensor>, f32) {
        match self {
            Self::Rms { weight, eps } | Self::RmsPlusOne { weight, eps } | Self::LayerNoBias { weight, eps } => {
                (weight, None, *eps as f32)
            }
            Self::Layer { weight, bias, eps } => (weight, Some(bias), *eps as f32),
        }
    }

    /// Whether this is LayerNorm, not RMSNorm.
    pub(super) fn is_layer(&self) -> bool {
        matches!(self, Self::Layer { .. } | Self::LayerNoBias { .. })
    }

    /// What is added to the weight.
    pub(super) fn offset(&self) -> f32 {
        if matches!(self, Self::RmsPlusOne { .. }) { 1.0 } else { 0.0 }
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (weight, bias, _) = self.parts();
        std::iter::once(weight).chain(bias)
    }

    pub fn trained(&self) -> bool {
        self.tensors().any(Tensor::track_op)
    }

    pub fn on_host(&self) -> bool {
        self.tensors().all(|t| ops::fused(t) && t.is_contiguous())
    }

    /// Calls `f` with the norm on plain slices.
    fn with<R>(&self, f: impl FnOnce(ops::norm::Norm<'_>) -> R) -> Result<R> {
        let (weight, bias, eps) = self.parts();
        let (weight, bias) = (ops::read(weight)?, bias.map(ops::read).transpose()?);
        Ok(match self {
            Self::Rms { .. } | Self::Layer { .. } => f(ops::norm::Norm { weight: &weight, bias: bias.as_deref(), eps }),
            Self::RmsPlusOne { .. } => {
                let weight: Vec<f32> = weight.iter().map(|w| w + 1.0).collect();
                f(ops::norm::Norm { weight: &weight, bias: None, eps })
            }
            Self::LayerNoBias { .. } => {
                let zero = vec![0f32; weight.len()];
                f(ops::norm::Norm { weight: &weight, bias: Some(&zero), eps })
            }
        })
    }

    /// y = norm(x), both [n, d], on plain slices.
    pub fn run(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.with(|norm| norm.forward(x, y))
    }

    /// gx (+)= the input's gradient; adds to the gradients of the norm's variables.
    pub fn back(&self, x: &[f32], gy: &[f32], gx: &mut [f32], add: bool) -> Result<()> {
        let (weight, bias, _) = self.parts();
        let trained = self.trained();
        let grads = self.with(|norm| norm.backward(x, gy, gx, add, trained))?;
        if !trained {
            return Ok(());
        }
        let (gw, gb) = grads.split_at(weight.elem_count());
        let plus = |g: &mut [f32], by: &[f32], add: bool| match add {
            true => g.iter_mut().zip(by).for_each(|(g, v)| *g += v),
            false => g.copy_from_slice(by),
        };
        if weight.track_op() {
            grad::add(weight, |g, add| plus(g, gw, add))?;
        }
        if let Some(bias) = bias.filter(|b| b.track_op()) {
            grad::add(bias, |g, add| plus(g, gb, add))?;
        }
        Ok(())
    }
}
