//! Passes of a decoder on a device, with the interface of the host's: hidden states and log-probs are tensors on the host,
//! and their backward passes run on the device, where the gradients of the weights stay.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Tensor, TensorId, Var};

use super::Decoder;
use super::device::{DeviceModel, Room};
use crate::gpu::GpuError;
use crate::model::PackedBatch;
use crate::ops::token_logprobs::TokenLogprobs;

/// The rows of packed sequences that a loss reads, and the token that each of them predicts; without targets only hidden
/// states are read.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub batch: &'a PackedBatch,
    pub rows: &'a [u32],
    pub targets: Option<&'a [u32]>,
}

/// Log-probs of targets and entropies of their rows, in nats.
pub struct TargetLogprobs {
    pub logprobs: Vec<f32>,
    pub entropies: Vec<f32>,
}

/// What is saved of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    /// The hidden states, for log-probs.
    Hidden,
    /// Everything that a backward pass needs.
    All,
}

/// The result of a call of the device.
type Passed<T> = std::result::Result<T, GpuError>;

/// A decoder on a device. One pass at a time is saved; a new pass replaces it.
pub trait DevicePasses: Send {
    /// Whether any tensor is trained.
    fn is_trained(&self) -> bool;

    /// Number of passes so far.
    fn passes(&self) -> u64;

    /// Hidden states [rows, d] after the final norm.
    ///
    /// # Errors
    /// A position, an id or a row that does not exist; `OutOfMemory`; a failure of the device.
    fn hidden(&mut self, decoder: &Decoder, wanted: Wanted<'_>, keep: Keep) -> Passed<Vec<f32>>;

    /// Log-probs of the targets, with logits divided by `temperature`.
    ///
    /// # Errors
    /// Those of `hidden`.
    fn logprobs(
        &mut self,
        decoder: &Decoder,
        wanted: Wanted<'_>,
        temperature: f32,
        keep: Keep,
    ) -> Passed<TargetLogprobs>;

    /// Log-probs of the targets of the saved pass, which stays saved.
    ///
    /// # Errors
    /// Without a saved pass; `OutOfMemory`; a failure of the device.
    fn saved_logprobs(&mut self, temperature: f32) -> Passed<TargetLogprobs>;

    /// Adds the gradients of the saved pass, from that of its log-probs `[rows]`.
    ///
    /// # Errors
    /// Those of `saved_logprobs`.
    fn backward(&mut self, grad: &[f32]) -> Passed<()>;

    /// The gradient of the hidden states [rows, d] of the saved pass, from that of its log-probs `[rows]`. Adds that of the
    /// output matrix. The pass stays saved.
    ///
    /// # Errors
    /// Those of `saved_logprobs`.
    fn hidden_gradient(&mut self, grad: &[f32]) -> Passed<Vec<f32>>;

    /// Adds the gradients of the saved pass, from that of its hidden states [rows, d].
    ///
    /// # Errors
    /// Those of `saved_logprobs`.
    fn backward_hidden(&mut self, grad: &[f32]) -> Passed<()>;

    /// Sets memory aside for the hidden states of last tokens, in passes of at most `tokens` tokens. Other passes take what
    /// they need in addition from the device.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn reserve(&mut self, decoder: &Decoder, tokens: usize) -> Passed<()>;

    /// A model that advances cached sequences by the weights of now; valid until they change. The log-probs of the tokens
    /// that it draws are those at `temperature`.
    ///
    /// # Errors
    /// `OutOfMemory`; a failure of the device.
    fn stepping(&mut self, room: Room, temperature: f32) -> Passed<DeviceModel>;
}

/// A handle of a decoder on a device, which computes the passes of the decoder that holds it.
#[derive(Clone)]
pub struct Attached {
    passes: Arc<Mutex<dyn DevicePasses>>,
    /// The hidden states that this handle returned last, and the number of their pass.
    newest: Arc<Mutex<Option<(TensorId, u64)>>>,
    /// Advances cached sequences on the device, by the same weights.
    steps: Option<Arc<Mutex<DeviceModel>>>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attached")
    }
}

/// From the gradient of a pass's result to that of its argument, if it has one on the host.
type Back = dyn Fn(&[f32]) -> Result<Option<Tensor>> + Send + Sync;

/// The result of a pass as a node of the graph.
struct Node {
    values: Mutex<Vec<f32>>,
    shape: Shape,
    back: Box<Back>,
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "device pass"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(std::mem::take(&mut *locked(&self.values))), self.shape.clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.back)(&grad.contiguous()?.flatten_all()?.to_vec1::<f32>()?)
    }
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Decoder {
    /// What computes the passes of training and scoring on a device, if the decoder is there.
    pub fn attached(&self) -> Option<&Attached> {
        self.attached.as_ref()
    }

    /// Lets a device compute the passes of training and scoring.
    pub fn attach(&mut self, attached: Attached) {
        self.attached = Some(attached);
    }

    /// Frees what the device has of the decoder.
    pub fn detach(&mut self) {
        self.attached = None;
    }

    /// Frees what advances cached sequences on the device, if this decoder does: the cache, and copies of weights.
    pub fn end_steps(&mut self) {
        if let Some(attached) = &mut self.attached {
            attached.steps = None;
        }
    }

    /// Hidden states [rows, d] of some tokens after the final norm. Those that a device computes have no gradient.
    ///
    /// # Errors
    /// An id, a position or a row that does not exist; those of the device.
    pub fn hidden_at(&self, batch: &PackedBatch, rows: &[u32]) -> Result<Tensor> {
        match &self.attached {
            Some(device) => device.hidden(self, Wanted { batch, rows, targets: None }, Keep::Nothing),
            None => {
                let hidden = self.forward(batch)?;
                hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)
            }
        }
    }

    /// Log-probs, `[rows]`, of the tokens that some rows predict, in nats. Those that a device computes have no gradient.
    ///
    /// # Errors
    /// An id, a position or a row that does not exist; those of the device.
    pub fn logprobs_at(&self, batch: &PackedBatch, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
        match &self.attached {
            Some(device) => {
                let wanted = Wanted { batch, rows, targets: Some(targets) };
                Ok(device.logprobs(self, wanted, 1.0, false)?.logprobs)
            }
            None => Ok(self.token_logprobs(&self.hidden_at(batch, rows)?, targets, 1.0)?.logprobs),
        }
    }
}

impl Attached {
    pub fn new(passes: Arc<Mutex<dyn DevicePasses>>) -> Self {
        Self { passes, newest: Arc::default(), steps: None }
    }

    /// See [`DevicePasses::reserve`].
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn reserve(&self, decoder: &Decoder, tokens: usize) -> Passed<()> {
        locked(&self.passes).reserve(decoder, tokens)
    }

    /// A handle that also advances cached sequences, by the weights of now, in `room`.
    ///
    /// # Errors
    /// `OutOfMemory`; a failure of the device.
    pub fn with_steps(&self, room: Room, temperature: f32) -> Result<Self> {
        let model = locked(&self.passes).stepping(room, temperature).map_err(Error::wrap)?;
        Ok(Self { steps: Some(Arc::new(Mutex::new(model))), ..self.clone() })
    }

    /// What advances cached sequences on the device, if this handle does.
    pub fn steps(&self) -> Option<MutexGuard<'_, DeviceModel>> {
        self.steps.as_ref().map(|model| locked(model))
    }

    /// Final-norm hidden states [rows, d]. With `keep` `All` and trained tensors, their gradient is that of the weights.
    ///
    /// # Errors
    /// Those of the device.
    pub fn hidden(&self, decoder: &Decoder, wanted: Wanted<'_>, keep: Keep) -> Result<Tensor> {
        let mut passes = locked(&self.passes);
        let values = passes.hidden(decoder, wanted, keep).map_err(Error::wrap)?;
        let shape = Shape::from((wanted.rows.len(), decoder.config.hidden_size));
        let tracked = keep == Keep::All && passes.is_trained();
        let number = passes.passes();
        drop(passes);
        let hidden = match tracked {
            false => Tensor::from_vec(values, shape, &Device::Cpu)?,
            true => self.root(values, shape, number, |passes, grad| passes.backward_hidden(grad))?,
        };
        *locked(&self.newest) = Some((hidden.id(), number));
        Ok(hidden)
    }

    /// Log-probs of the targets and entropies of their rows, at `temperature`, of the pass that returned `hidden`. The
    /// entropies have no gradient.
    ///
    /// # Errors
    /// If `hidden` are the states of an older pass; those of the device.
    pub fn logprobs_of(&self, hidden: &Tensor, temperature: f32) -> Result<TokenLogprobs> {
        let mut passes = locked(&self.passes);
        // Another handle may have the same device.
        if *locked(&self.newest) != Some((hidden.id(), passes.passes())) {
            candle_core::bail!("log-probs of the hidden states of a pass that is not the newest");
        }
        let TargetLogprobs { logprobs, entropies } = passes.saved_logprobs(temperature).map_err(Error::wrap)?;
        let number = passes.passes();
        drop(passes);
        let n = logprobs.len();
        let logprobs = match hidden.track_op() {
            false => Tensor::from_vec(logprobs, n, &Device::Cpu)?,
            true => {
                let (shape, passes) = (hidden.shape().clone(), self.passes.clone());
                let back = move |grad: &[f32]| {
                    let mut passes = current(&passes, number)?;
                    let gradient = passes.hidden_gradient(grad).map_err(Error::wrap)?;
                    Ok(Some(Tensor::from_vec(gradient, shape.clone(), &Device::Cpu)?))
                };
                let node = Node { values: Mutex::new(logprobs), shape: Shape::from(n), back: Box::new(back) };
                hidden.apply_op1(node)?
            }
        };
        Ok(TokenLogprobs { logprobs, entropy: Tensor::from_vec(entropies, n, &Device::Cpu)? })
    }

    /// Log-probs of the targets and entropies of their rows, at `temperature`, without hidden states on the host. With
    /// `gradient` and trained tensors, the gradient of the log-probs is that of the weights.
    ///
    /// # Errors
    /// Those of the device.
    pub fn logprobs(
        &self,
        decoder: &Decoder,
        wanted: Wanted<'_>,
        temperature: f32,
        gradient: bool,
    ) -> Result<TokenLogprobs> {
        let mut passes = locked(&self.passes);
        let tracked = gradient && passes.is_trained();
        let keep = if tracked { Keep::All } else { Keep::Nothing };
        let found = passes.logprobs(decoder, wanted, temperature, keep).map_err(Error::wrap)?;
        let number = passes.passes();
        drop(passes);
        *locked(&self.newest) = None;
        let n = found.logprobs.len();
        let logprobs = match tracked {
            false => Tensor::from_vec(found.logprobs, n, &Device::Cpu)?,
            true => self.root(found.logprobs, Shape::from(n), number, |passes, grad| passes.backward(grad))?,
        };
        Ok(TokenLogprobs { logprobs, entropy: Tensor::from_vec(found.entropies, n, &Device::Cpu)? })
    }

    /// A tensor whose backward pass adds the gradients of pass `number` on the device.
    fn root(
        &self,
        values: Vec<f32>,
        shape: Shape,
        number: u64,
        back: impl Fn(&mut dyn DevicePasses, &[f32]) -> Passed<()> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let passes = self.passes.clone();
        let back = move |grad: &[f32]| {
            back(&mut *current(&passes, number)?, grad).map_err(Error::wrap)?;
            Ok(None)
        };
        // Stands for the weights, so that the graph has a variable.
        let weights = Var::zeros(1, DType::F32, &Device::Cpu)?;
        weights.apply_op1(Node { values: Mutex::new(values), shape, back: Box::new(back) })
    }
}

/// # Errors
/// When pass `number` is no longer the newest.
fn current(passes: &Mutex<dyn DevicePasses>, number: u64) -> Result<MutexGuard<'_, dyn DevicePasses + 'static>> {
    let passes = locked(passes);
    if passes.passes() != number {
        candle_core::bail!("a backward pass of a forward pass that a newer one has replaced");
    }
    Ok(passes)
}
