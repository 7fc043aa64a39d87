//! AdamW (arXiv 1711.05101) with public state, parameter groups and gradient clipping; fused and in place on the CPU.
//! Every entry is computed separately, so results do not depend on the number of threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, TensorId, Var, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::optim_bytes::{BLOCK, MIN_QUANTIZED, QuantizedMoments, SIGNED, UNSIGNED};
use crate::ops::simd::multiversion;

/// Trainable parameters by name.
pub type Params = BTreeMap<String, Var>;
/// Gradients by parameter name. A parameter that does not affect the loss has none.
pub type Grads = BTreeMap<String, Tensor>;

/// The position of ε.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdamForm {
    /// m̂ / (√v̂ + ε), as in Algorithm 1 of the paper (arXiv 1412.6980) and in PyTorch.
    #[default]
    Torch,
    /// lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε): ε is not rescaled by the bias correction, as in TensorFlow and in OpenAI's
    /// lm-human-preferences.
    Tf,
}

/// The format of moments between updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AdamStates {
    /// Exact: 8 bytes per parameter.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// Rounded to 8 bits in blocks of 256 (arXiv 2110.02861): 2 bytes per parameter. Tensors of fewer than 4096 entries
    /// and those on a GPU stay exact.
    #[serde(rename = "8bit")]
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub form: AdamForm,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-5, form: AdamForm::Torch }
    }
}

/// Settings for the parameters whose name contains `contains`. The first matching group applies.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// An empty text matches every name.
    pub contains: String,
    /// Only tensors of at least this rank match: 2 excludes biases and norm gains.
    pub min_rank: usize,
    pub lr_scale: f64,
    /// Decoupled weight decay: p ← p·(1 − lr·decay) before the Adam update.
    pub weight_decay: f64,
}

impl Group {
    /// Weight decay for matrices, none for biases and gains.
    pub fn standard(weight_decay: f64) -> Vec<Group> {
        vec![
            Group { contains: String::new(), min_rank: 2, lr_scale: 1.0, weight_decay },
            Group { contains: String::new(), min_rank: 0, lr_scale: 1.0, weight_decay: 0.0 },
        ]
    }
}

/// First and second moments of one parameter, in its layout.
#[derive(Clone, Debug)]
pub enum Moments {
    /// f32 on the host, for the fused update.
    Host { m: Vec<f32>, v: Vec<f32> },
    /// 8 bits on the host, for the fused update with rounding.
    Bytes { m: QuantizedMoments, v: QuantizedMoments },
    /// Tensors on the parameter's device.
    Device { m: Tensor, v: Tensor },
}

#[derive(Clone, Debug)]
pub struct AdamW {
    pub config: AdamConfig,
    pub groups: Vec<Group>,
    /// The format of new moments.
    pub states: AdamStates,
    /// Number of updates.
    pub step: u64,
    pub moments: BTreeMap<String, Moments>,
}

/// The constants of one update of a parameter.
#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    /// Factor of m / (√(v·v_scale) + ε).
    rate: f32,
    v_scale: f32,
    eps: f32,
    /// 1 − lr·weight_decay
    keep: f32,
    /// Factor of the gradient (clipping).
    grad_scale: f32,
}

impl AdamW {
    pub fn new(config: AdamConfig, groups: Vec<Group>) -> Self {
        Self { config, groups, states: AdamStates::F32, step: 0, moments: BTreeMap::new() }
    }

    pub fn with_states(self, states: AdamStates) -> Self {
        Self { states, ..self }
    }

    /// One update with learning rate `lr`. Gradients are first scaled down to a global norm of `max_grad_norm`, if
    /// given. Returns the norm before clipping.
    ///
    /// # Errors
    /// If a gradient is not finite; the message names the parameter, and nothing is changed.
    pub fn update(&mut self, params: &Params, grads: &Grads, lr: f64, max_grad_norm: Option<f64>) -> Result<f64> {
        let norm = global_norm(grads)?;
        self.update_scaled(params, grads, lr, clipping(norm, max_grad_norm))?;
        Ok(norm)
    }

    /// One update with learning rate `lr` by the gradients times `grad_scale`.
    ///
    /// # Errors
    /// If a gradient belongs to no parameter.
    pub fn update_scaled(&mut self, params: &Params, grads: &Grads, lr: f64, grad_scale: f64) -> Result<()> {
        self.step += 1;
        for (name, grad) in grads {
            let Some(param) = params.get(name) else { bail!("gradient of unknown parameter {name}") };
            self.apply(name, param, grad, lr, grad_scale)?;
        }
        Ok(())
    }

    /// An optimizer with these settings and without moments.
    pub fn clone_settings(&self) -> Self {
        let (config, groups, states, step) = (self.config, self.groups.clone(), self.states, self.step);
        Self { config, groups, states, step, moments: BTreeMap::new() }
    }

    /// Update number `step` of one parameter.
    fn apply(&mut self, name: &str, param: &Var, grad: &Tensor, lr: f64, grad_scale: f64) -> Result<()> {
        let t = self.step as f64;
        let (bias1, bias2) = (1.0 - self.config.beta1.powf(t), 1.0 - self.config.beta2.powf(t));
        let group = self.groups.iter().find(|g| name.contains(&g.contains) && param.rank() >= g.min_rank);
        let (lr_scale, weight_decay) = group.map_or((1.0, 0.0), |g| (g.lr_scale, g.weight_decay));
        let lr = lr * lr_scale;
        let (rate, v_scale) = match self.config.form {
            AdamForm::Torch => (lr / bias1, 1.0 / bias2),
            AdamForm::Tf => (lr * bias2.sqrt() / bias1, 1.0),
        };
        let update = Update {
            beta1: self.config.beta1 as f32,
            beta2: self.config.beta2 as f32,
            rate: rate as f32,
            v_scale: v_scale as f32,
            eps: self.config.eps as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            grad_scale: grad_scale as f32,
        };
        let moments = match self.moments.entry(name.to_owned()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Moments::zeros(param, self.states)?),
        };
        match moments {
            Moments::Host { m, v } => {
                let fused = Fused { update, moments: Mutex::new((m, v)) };
                param.as_tensor().inplace_op2(&grad.contiguous()?, &fused)
            }
            Moments::Bytes { m, v } => {
                let fused = Rounded { update, moments: Mutex::new((m, v)) };
                param.as_tensor().inplace_op2(&grad.contiguous()?, &fused)
            }
            Moments::Device { m, v } => update.on_tensors(param, grad, m, v),
        }
    }

    /// The moments as tensors `m.<name>` and `v.<name>`, for a checkpoint. Rounded moments are U8 tensors, with the
    /// scales of their blocks in `m_scale.<name>` and `v_scale.<name>`.
    pub fn state(&self, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (name, moments) in &self.moments {
            let Some(param) = params.get(name) else { bail!("moments of unknown parameter {name}") };
            let (m, v) = match moments {
                Moments::Host { m, v } => (
                    Tensor::from_slice(m, param.shape(), param.device())?,
                    Tensor::from_slice(v, param.shape(), param.device())?,
                ),
                Moments::Bytes { m, v } => {
                    let (shape, device) = (param.shape(), param.device());
                    for (of, bytes) in [("m", m), ("v", v)] {
                        let scales = Tensor::from_slice(&bytes.scales, bytes.scales.len(), device)?;
                        out.insert(format!("{of}_scale.{name}"), scales);
                    }
                    (Tensor::from_slice(&m.codes, shape, device)?, Tensor::from_slice(&v.codes, shape, device)?)
                }
                Moments::Device { m, v } => (m.clone(), v.clone()),
            };
            out.insert(format!("m.{name}"), m);
            out.insert(format!("v.{name}"), v);
        }
        Ok(out)
    }

    /// Restores the moments that `state` returned after `step` updates.
    pub fn restore(&mut self, params: &Params, state: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        self.moments.clear();
        self.step = step;
        for (key, m) in state {
            let Some(name) = key.strip_prefix("m.") else { continue };
            let (Some(param), Some(v)) = (params.get(name), state.get(&format!("v.{name}"))) else {
                bail!(
                    "the optimizer state has {key}, but the model has no such parameter or the state no second moment of it"
                )
            };
            if m.shape() != param.shape() || v.shape() != param.shape() {
                bail!("optimizer state {key} has shape {:?}, the parameter {:?}", m.shape(), param.shape())
            }
            let scale = |of: &str| state.get(&format!("{of}_scale.{name}"));
            let moments = if let (Some(m_scale), Some(v_scale)) = (scale("m"), scale("v")) {
                let bytes = |codes: &Tensor, scales: &Tensor| -> Result<QuantizedMoments> {
                    QuantizedMoments::restored(codes.flatten_all()?.to_vec1()?, scales.to_vec1()?)
                };
                Moments::Bytes { m: bytes(m, m_scale)?, v: bytes(v, v_scale)? }
            } else if on_host(param) {
                Moments::Host { m: m.flatten_all()?.to_vec1()?, v: v.flatten_all()?.to_vec1()? }
            } else {
                Moments::Device { m: m.to_device(param.device())?, v: v.to_device(param.device())? }
            };
            self.moments.insert(name.to_owned(), moments);
        }
        Ok(())
    }
}

/// An update during the backward pass: each gradient is applied as soon as it is complete, and then freed, so that not
/// all gradients are in memory at once. There is no clipping, which needs all of them.
pub struct OptimizerInBackward {
    optimizer: AdamW,
    params: HashMap<TensorId, (String, Var)>,
    lr: f64,
    squares: f64,
}

impl OptimizerInBackward {
    /// Begins update `optimizer.step + 1` of `params`.
    pub fn begin(mut optimizer: AdamW, params: &Params, lr: f64) -> Self {
        optimizer.step += 1;
        let params = params.iter().map(|(name, var)| (var.id(), (name.clone(), var.clone()))).collect();
        Self { optimizer, params, lr, squares: 0.0 }
    }

    /// Applies the gradient of the variable `id`, at most once per variable.
    ///
    /// # Errors
    /// If a gradient is not finite. Other parameters may have been updated already, so the run cannot continue.
    pub fn apply(&mut self, id: TensorId, grad: &Tensor) -> Result<()> {
        let Some((name, param)) = self.params.remove(&id) else {
            bail!("a gradient was passed twice, or belongs to no parameter")
        };
        let squares = squared_sum(grad)?;
        if !squares.is_finite() {
            bail!("the gradient of {name} is not finite")
        }
        self.squares += squares;
        self.optimizer.apply(&name, &param, grad, self.lr, 1.0)
    }

    /// The optimizer after the update, and the norm of all gradients.
    pub fn finish(self) -> (AdamW, f64) {
        (self.optimizer, self.squares.sqrt())
    }
}

/// The factor of gradients with a global norm, as torch.nn.utils.clip_grad_norm_: max / (norm + 1e-6), never above 1.
pub fn clipping(norm: f64, max: Option<f64>) -> f64 {
    max.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

fn on_host(param: &Var) -> bool {
    param.device().is_cpu() && param.dtype() == DType::F32 && param.is_contiguous()
}

impl Moments {
    fn zeros(param: &Var, states: AdamStates) -> Result<Self> {
        let n = param.elem_count();
        if on_host(param) && states == AdamStates::Bytes && n >= MIN_QUANTIZED {
            return Ok(Self::Bytes { m: QuantizedMoments::zeros(n), v: QuantizedMoments::zeros(n) });
        }
        if on_host(param) {
            return Ok(Self::Host { m: vec![0.0; n], v: vec![0.0; n] });
        }
        let zeros = || Tensor::zeros(param.shape(), DType::F32, param.device());
        Ok(Self::Device { m: zeros()?, v: zeros()? })
    }
}

/// √Σ g² over all parameters, in f64.
///
/// # Errors
/// If a gradient is not finite; the message names the parameter.
pub fn global_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.0;
    for (name, grad) in grads {
        let part = squared_sum(grad)?;
        if !part.is_finite() {
            bail!("the gradient of {name} is not finite")
        }
        sum += part;
    }
    Ok(sum.sqrt())
}

fn squared_sum(grad: &Tensor) -> Result<f64> {
    if grad.device().is_cpu() && grad.dtype() == DType::F32 && grad.is_contiguous() {
        let (storage, layout) = grad.storage_and_layout();
        if let candle_core::Storage::Cpu(CpuStorage::F32(data)) = &*storage {
            let slice = &data[layout.start_offset()..layout.start_offset() + grad.elem_count()];
            // Fixed chunks that are summed in order give the same bits for any number of threads.
            let parts: Vec<f64> = slice.par_chunks(1 << 16).map(squares).collect();
            return Ok(parts.iter().sum());
        }
    }
    grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()
}

/// The fused update on the host, as an in-place operation on the parameter.
struct Fused<'a> {
    update: Update,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (CpuStorage::F32(p), CpuStorage::F32(g)) = (s1, s2) else { bail!("adamw: f32 only") };
        let (Some((p0, p1)), Some((g0, g1))) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
            bail!("adamw: parameter and gradient must be contiguous")
        };
        let Ok(mut moments) = self.moments.lock() else { bail!("adamw: moments are poisoned") };
        let (m, v) = &mut *moments;
        if p1 - p0 != g1 - g0 || m.len() != p1 - p0 {
            bail!("adamw: gradient or moments have another size than the parameter")
        }
        const CHUNK: usize = 1 << 15;
        p[p0..p1]
            .par_chunks_mut(CHUNK)
            .zip(g[g0..g1].par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .for_each(|(((p, g), m), v)| update_slices(self.update, p, g, m, v));
        Ok(())
    }
}

/// The fused update on the host for 8-bit moments, a block at a time.
struct Rounded<'a> {
    update: Update,
    moments: Mutex<(&'a mut QuantizedMoments, &'a mut QuantizedMoments)>,
}

impl InplaceOp2 for Rounded<'_> {
    fn name(&self) -> &'static str {
        "adamw-8bit"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (CpuStorage::F32(p), CpuStorage::F32(g)) = (s1, s2) else { bail!("adamw: f32 only") };
        let (Some((p0, p1)), Some((g0, g1))) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
            bail!("adamw: parameter and gradient must be contiguous")
        };
        let Ok(mut moments) = self.moments.lock() else { bail!("adamw: moments are poisoned") };
        let (m, v) = &mut *moments;
        if p1 - p0 != g1 - g0 || m.codes.len() != p1 - p0 {
            bail!("adamw: gradient or moments have another size than the parameter")
        }
        let blocks = m.codes.par_chunks_mut(BLOCK).zip(&mut m.scales);
        let blocks = blocks.zip(v.codes.par_chunks_mut(BLOCK).zip(&mut v.scales));
        p[p0..p1].par_chunks_mut(BLOCK).zip(g[g0..g1].par_chunks(BLOCK)).zip(blocks).for_each(
            |((p, g), ((m_codes, m_scale), (v_codes, v_scale)))| {
                let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
                let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
                SIGNED.read(m_codes, *m_scale, m);
                UNSIGNED.read(v_codes, *v_scale, v);
                update_slices(self.update, p, g, m, v);
                *m_scale = SIGNED.write(m, m_codes);
                *v_scale = UNSIGNED.write(v, v_codes);
            },
        );
        Ok(())
    }
}

multiversion! {
    fn update_slices(u: Update, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = p.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = g[i] * u.grad_scale;
            m[i] = u.beta1 * m[i] + (1.0 - u.beta1) * g;
            v[i] = u.beta2 * v[i] + (1.0 - u.beta2) * g * g;
            p[i] = p[i] * u.keep - u.rate * m[i] / ((v[i] * u.v_scale).sqrt() + u.eps);
        }
    }
}

multiversion! {
    /// Σ x², in f64 with 16 strided chains.
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0f64; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for c in chunks {
            for l in 0..16 {
                lanes[l] += f64::from(c[l]) * f64::from(c[l]);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

impl Update {
    /// The update of one parameter on any device, with temporary tensors.
    fn on_tensors(self, param: &Var, grad: &Tensor, m: &mut Tensor, v: &mut Tensor) -> Result<()> {
        let g = (grad.detach().to_dtype(DType::F32)? * f64::from(self.grad_scale))?;
        *m = ((&*m * f64::from(self.beta1))? + (&g * f64::from(1.0 - self.beta1))?)?;
        *v = ((&*v * f64::from(self.beta2))? + (g.sqr()? * f64::from(1.0 - self.beta2))?)?;
        let denominator = ((&*v * f64::from(self.v_scale))?.sqrt()? + f64::from(self.eps))?;
        let step = ((&*m / denominator)? * f64::from(self.rate))?;
        let decayed = (param.as_detached_tensor().to_dtype(DType::F32)? * f64::from(self.keep))?;
        param.set(&(decayed - step)?.to_dtype(param.dtype())?)
    }
}
