//! A decoder without its blocks and its output matrix, which are added to it, or are on a device alone.

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{DType, Device, Result, Tensor};

use super::embedding_table::EmbeddingTable;
use super::{Decoder, Head, Purpose, Recompute};
use crate::model::layers::{Builder, Parameters, rope_tables};
use crate::model::load::Opened;
use crate::ops::token_logprobs::LogitShape;

impl Decoder {
    /// A decoder that computes nothing on the host: its blocks and its output matrix are on a device. Its word vectors stay
    /// in the model's file where they can be read from there.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than the configuration says.
    pub fn without_blocks(opened: &Opened) -> Result<Self> {
        let (config, parameters) = (&opened.described.config, Parameters::Files(&opened.files));
        Self::frame(&Builder { config, parameters, lora: None, purpose: Purpose::Serve })
    }

    /// Drops the weights of the host, which then refuses to compute anything. For decoders whose weights are on a device.
    ///
    /// # Errors
    /// When there is no memory for an empty table.
    pub fn leave_host(&mut self) -> Result<()> {
        self.layers.clear();
        self.positions = None;
        self.embed = EmbeddingTable::Tensor(Tensor::zeros((0, self.config.hidden_size), DType::F32, &Device::Cpu)?);
        self.head = Arc::new(Head { tensor: Mutex::default(), purpose: self.head.purpose, ready: OnceLock::new() });
        Ok(())
    }

    /// # Errors
    /// If the blocks are on a device alone.
    pub(super) fn check_host(&self) -> Result<()> {
        match self.layers.len() == self.config.n_layers {
            true => Ok(()),
            false => candle_core::bail!("the blocks of this model are on a device, not on the host"),
        }
    }

    /// The parts of a decoder around its blocks, without the output matrix.
    pub(super) fn frame(b: &Builder<'_>) -> Result<Self> {
        let (c, family) = (b.config, b.config.family());
        if family.is_encoder() {
            candle_core::bail!("{} is an encoder, not a decoder", family.class);
        }
        let d = c.hidden_size;
        let embed = EmbeddingTable::new(b, &format!("{}.weight", family.words), (c.vocab_size, d))?;
        let positions = family.positions.map(|name| b.tensor(&format!("{name}.weight"), &[c.max_positions, d]));
        let Some(final_norm) = family.final_norm else { candle_core::bail!("{} has no final norm", family.class) };
        Ok(Self {
            config: c.clone(),
            embed,
            positions: positions.transpose()?,
            layers: Vec::new(),
            final_norm: b.norm(final_norm)?,
            head: Arc::new(Head { tensor: Mutex::default(), purpose: b.purpose, ready: OnceLock::new() }),
            shape: LogitShape {
                divisor: c.switches.logit_divisor as f32,
                cap: c.switches.logit_softcap.map(|cap| cap as f32),
            },
            long_from: rope_tables::long_from(c),
            recompute: Recompute::None,
            collected: false,
            attached: None,
        })
    }
}
