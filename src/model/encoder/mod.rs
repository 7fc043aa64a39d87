//! Bidirectional encoder of every family in `families`: blocks over packed sequences, with the masked-LM head when the
//! weights have one, on the host or on a device. Papers: BERT (arXiv 1810.04805), ModernBERT (arXiv 2412.13663).

mod device;
mod host;
pub mod text;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Error, Result, Tensor};

use self::device::DeviceEncoder;
use self::host::{HostEncoder, NO_HEAD};
use crate::gpu::GpuError;
use crate::gpu::shared::Shared;
use crate::model::decoder::device::Element;
use crate::model::families::Pooler;
use crate::model::layers::{Builder, Parameters};
use crate::model::{LoraConfig, ModelConfig, Opened, PackedBatch, Purpose, Weights};
use crate::ops::attention::{Attend, attention};
use crate::ops::token_logprobs::TokenLogprobs;

#[derive(Debug, Clone)]
pub struct Encoder {
    pub config: ModelConfig,
    place: Place,
}

/// Where the weights are.
#[derive(Debug, Clone)]
enum Place {
    Host(Box<HostEncoder>),
    Device(Arc<Mutex<DeviceEncoder>>),
}

fn locked(device: &Mutex<DeviceEncoder>) -> MutexGuard<'_, DeviceEncoder> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Encoder {
    pub fn new(config: &ModelConfig, weights: &Weights, purpose: Purpose) -> Result<Self> {
        Self::on_host(&Builder { config, parameters: Parameters::Loaded(weights), lora: None, purpose })
    }

    /// Builds an encoder with low-rank adapters (`{module}.lora_A.weight`, `{module}.lora_B.weight`) on the base
    /// weights.
    pub fn with_lora(
        config: &ModelConfig,
        weights: &Weights,
        lora: &LoraConfig,
        adapters: &Weights,
        purpose: Purpose,
    ) -> Result<Self> {
        Self::on_host(&Builder {
            config,
            parameters: Parameters::Loaded(weights),
            lora: Some((lora, adapters)),
            purpose,
        })
    }

    fn on_host(b: &Builder<'_>) -> Result<Self> {
        Ok(Self { config: b.config.clone(), place: Place::Host(Box::new(HostEncoder::new(b)?)) })
    }

    /// An encoder that `device` computes, with weights and activations in `element`. The host has no copy of its weights,
    /// and needs memory for one block as f32 while it is loaded. `logits`: whether the output matrix of the masked-LM head
    /// is loaded, without which nothing is predicted.
    ///
    /// # Errors
    /// `OutOfMemory`, after which nothing of it is on the device; heads of more than 256 channels, ReLU; a decoder; a file
    /// that cannot be read.
    pub fn on_device(
        opened: &Opened,
        logits: bool,
        device: Shared,
        element: Element,
    ) -> std::result::Result<Self, GpuError> {
        let encoder = DeviceEncoder::new(opened, logits, device, element)?;
        Ok(Self { config: opened.described.config.clone(), place: Place::Device(Arc::new(Mutex::new(encoder))) })
    }

    /// Sets memory aside on the device, if the encoder is on one, for passes of at most `tokens` tokens, and for the
    /// predictions of `predicted` tokens. Other passes take what they need in addition from the device.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn reserve(&self, tokens: usize, predicted: usize) -> std::result::Result<(), GpuError> {
        match &self.place {
            Place::Host(_) => Ok(()),
            Place::Device(device) => locked(device).reserve(tokens, predicted),
        }
    }

    /// Hidden states `[N, d]` of every token. `type_ids` `[N]` are the segments (0 or 1 in BERT; ignored where a family
    /// has none). Those that a device computes are on the host, and have no gradient.
    ///
    /// # Errors
    /// An id, a position or a segment that does not exist; those of the device.
    pub fn forward(&self, batch: &PackedBatch, type_ids: &[u32]) -> Result<Tensor> {
        match &self.place {
            Place::Host(_) => self.forward_by(batch, type_ids, &mut attention),
            Place::Device(device) => self.hidden_on(device, batch, type_ids, None),
        }
    }

    /// Hidden states [rows, d] of some tokens; see [`Encoder::forward`].
    ///
    /// # Errors
    /// Those of [`Encoder::forward`]; a row that does not exist.
    pub fn forward_at(&self, batch: &PackedBatch, type_ids: &[u32], rows: &[u32]) -> Result<Tensor> {
        match &self.place {
            Place::Host(_) => {
                let hidden = self.forward(batch, type_ids)?;
                hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)
            }
            Place::Device(device) => self.hidden_on(device, batch, type_ids, Some(rows)),
        }
    }

    /// `forward` with `attend` as the attention of every layer, called in order of layers.
    ///
    /// # Errors
    /// Those of [`Encoder::forward`]; an encoder on a device.
    pub fn forward_by(&self, batch: &PackedBatch, type_ids: &[u32], attend: &mut Attend<'_>) -> Result<Tensor> {
        self.check(batch, type_ids)?;
        self.host()?.forward(batch, type_ids, attend)
    }

    fn hidden_on(
        &self,
        device: &Mutex<DeviceEncoder>,
        batch: &PackedBatch,
        type_ids: &[u32],
        rows: Option<&[u32]>,
    ) -> Result<Tensor> {
        self.check(batch, type_ids)?;
        let (n, d) = (rows.map_or(batch.len(), <[u32]>::len), self.config.hidden_size);
        let hidden = locked(device).hidden(batch, type_ids, rows).map_err(Error::wrap)?;
        Tensor::from_vec(hidden, (n, d), &Device::Cpu)
    }

    fn check(&self, batch: &PackedBatch, type_ids: &[u32]) -> Result<()> {
        if type_ids.len() != batch.len() {
            candle_core::bail!("{} tokens, {} segment ids", batch.len(), type_ids.len());
        }
        let most = self.config.max_positions;
        match batch.positions.iter().find(|p| **p as usize >= most) {
            Some(p) => candle_core::bail!("position {p} is outside the model's {most} positions"),
            None => Ok(()),
        }
    }

    fn host(&self) -> Result<&HostEncoder> {
        match &self.place {
            Place::Host(host) => Ok(host),
            Place::Device(_) => candle_core::bail!("the weights of this encoder are on a device, not on the host"),
        }
    }

    /// The pooled input of a classifier for selected rows (the `[CLS]` rows), where the weights have the layer for it:
    /// in BERT tanh(W·hidden + b).
    ///
    /// # Errors
    /// Those of the device.
    pub fn pool(&self, cls_rows: &Tensor) -> Result<Option<Tensor>> {
        let dense = || match &self.place {
            Place::Host(host) => host.pooler(cls_rows),
            Place::Device(device) => {
                let rows = cls_rows.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                let dense = locked(device).pooler(&rows).map_err(Error::wrap)?;
                dense.map(|values| Tensor::from_vec(values, cls_rows.shape(), &Device::Cpu)).transpose()
            }
        };
        match self.config.family().encoder_heads().map(|heads| heads.pooler) {
            Some(Pooler::Tanh(_)) => dense()?.map(|x| x.tanh()).transpose(),
            Some(Pooler::Relu(_)) => dense()?.map(|x| x.relu()).transpose(),
            Some(Pooler::MaskedLmHead) if self.mlm_parts()[0] => self.mlm_transform(cls_rows).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether the dense layer of the masked-LM head is here, and its output matrix.
    fn mlm_parts(&self) -> [bool; 2] {
        match &self.place {
            Place::Host(host) => host.mlm_parts(),
            Place::Device(device) => locked(device).mlm_parts(),
        }
    }

    /// Whether the encoder has a masked-LM head.
    pub fn has_mlm_head(&self) -> bool {
        self.mlm_parts() == [true, true]
    }

    fn mlm_transform(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.place {
            Place::Host(host) => host.mlm_transform(hidden),
            Place::Device(device) => {
                let rows = hidden.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                let values = locked(device).mlm_transform(&rows).map_err(Error::wrap)?;
                Tensor::from_vec(values, hidden.shape(), &Device::Cpu)
            }
        }
    }

    /// Logits [m, vocab] of hidden rows [m, d].
    ///
    /// # Errors
    /// Without a masked-LM head; those of the device.
    pub fn mlm_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.place {
            Place::Host(host) => host.mlm_logits(hidden),
            Place::Device(_) if !self.has_mlm_head() => candle_core::bail!("{NO_HEAD}"),
            Place::Device(device) => {
                let rows = hidden.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                let logits = locked(device).mlm_logits(&rows).map_err(Error::wrap)?;
                Tensor::from_vec(logits, (hidden.dim(0)?, self.config.vocab_size), &Device::Cpu)
            }
        }
    }

    /// log p(target) at hidden rows [m, d], for the masked-LM loss.
    ///
    /// # Errors
    /// Without a masked-LM head; an encoder on a device.
    pub fn mlm_logprobs(&self, hidden: &Tensor, targets: &[u32]) -> Result<TokenLogprobs> {
        self.host()?.mlm_logprobs(hidden, targets)
    }
}
