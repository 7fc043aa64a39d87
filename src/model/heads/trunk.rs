//! The backbone that scores and classes are computed on: a causal decoder's last token, or an encoder's first.

use candle_core::{Result, Tensor};

use crate::gpu::GpuError;
use crate::gpu::shared::Shared;
use crate::model::adapters::lora::LoraConfig;
use crate::model::decoder::attached::{Keep, Wanted};
use crate::model::decoder::training::TrainerOptions;
use crate::model::{Decoder, Encoder, ModelConfig, Opened, PackedBatch, Purpose, Recompute, Weights};

/// A model that training and scoring can build from a configuration and its weights.
pub trait Build: Sized {
    /// Builds the model; `lora` are adapters on the base, with the names of `lora::init`.
    ///
    /// # Errors
    /// When the weights do not fit the configuration.
    fn build(
        config: &ModelConfig,
        weights: &Weights,
        lora: Option<(&LoraConfig, &Weights)>,
        purpose: Purpose,
    ) -> Result<Self>;

    /// Applies options of training, which only decoders have.
    fn for_training(self, _recompute: Recompute) -> Self {
        self
    }

    /// Its decoder; `None` for encoders.
    fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        None
    }
}

impl Build for Decoder {
    fn build(
        config: &ModelConfig,
        weights: &Weights,
        lora: Option<(&LoraConfig, &Weights)>,
        purpose: Purpose,
    ) -> Result<Self> {
        match lora {
            None => Self::new(config, weights, purpose),
            Some((lora, adapters)) => Self::with_lora(config, weights, lora, adapters, purpose),
        }
    }

    /// Enables gradient sums; gradients must then be computed as in `train::step::Accumulator`.
    fn for_training(self, recompute: Recompute) -> Self {
        let mut decoder = self.collected();
        decoder.recompute = recompute;
        decoder
    }

    fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        Some(self)
    }
}

impl Build for Encoder {
    fn build(
        config: &ModelConfig,
        weights: &Weights,
        lora: Option<(&LoraConfig, &Weights)>,
        purpose: Purpose,
    ) -> Result<Self> {
        match lora {
            None => Self::new(config, weights, purpose),
            Some((lora, adapters)) => Self::with_lora(config, weights, lora, adapters, purpose),
        }
    }
}

/// A decoder or an encoder, by its architecture.
#[derive(Debug, Clone)]
pub enum Trunk {
    Decoder(Decoder),
    Encoder(Encoder),
}

impl Build for Trunk {
    fn build(
        config: &ModelConfig,
        weights: &Weights,
        lora: Option<(&LoraConfig, &Weights)>,
        purpose: Purpose,
    ) -> Result<Self> {
        Ok(match config.is_encoder() {
            true => Self::Encoder(<Encoder as Build>::build(config, weights, lora, purpose)?),
            false => Self::Decoder(<Decoder as Build>::build(config, weights, lora, purpose)?),
        })
    }

    fn for_training(self, recompute: Recompute) -> Self {
        match self {
            Self::Decoder(decoder) => Self::Decoder(decoder.for_training(recompute)),
            encoder => encoder,
        }
    }

    fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        match self {
            Self::Decoder(decoder) => Some(decoder),
            Self::Encoder(_) => None,
        }
    }
}

impl Trunk {
    /// A backbone whose passes without gradients `device` computes, without output matrix. The host has no copy of its
    /// weights, and needs memory for one block as f32 while it is loaded.
    ///
    /// # Errors
    /// `OutOfMemory`, after which nothing of it is on the device; heads of more than 256 channels, ReLU; a file that cannot
    /// be read.
    pub fn on_device(opened: &Opened, device: Shared, options: TrainerOptions) -> std::result::Result<Self, GpuError> {
        Ok(match opened.described.config.is_encoder() {
            true => Self::Encoder(Encoder::on_device(opened, false, device, options.element)?),
            false => Self::Decoder(Decoder::on_device(opened, false, device, options)?),
        })
    }

    /// Sets memory aside on the device, if the backbone is on one, for passes of at most `tokens` tokens. Longer ones take what
    /// they need in addition from the device.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn reserve(&self, tokens: usize) -> std::result::Result<(), GpuError> {
        match self {
            Self::Decoder(decoder) => decoder.attached().map_or(Ok(()), |device| device.reserve(decoder, tokens)),
            Self::Encoder(encoder) => encoder.reserve(tokens, 0),
        }
    }

    /// The hidden state [n, d] of every sequence at the token that a head reads. `separator` ends segment 0
    /// of an encoder's input; decoders have no segments.
    pub fn summaries(&self, batch: &PackedBatch, separator: Option<u32>) -> Result<Tensor> {
        self.summed_up(batch, separator, Keep::All, |decoder, last| decoder.forward_last(batch, last))
    }

    /// `summaries` without a gradient, also where the trunk has variables.
    pub fn frozen_summaries(&self, batch: &PackedBatch, separator: Option<u32>) -> Result<Tensor> {
        let decode = |decoder: &Decoder, last: &[usize]| decoder.forward_last_frozen(batch, last);
        Ok(self.summed_up(batch, separator, Keep::Nothing, decode)?.detach())
    }

    fn summed_up(
        &self,
        batch: &PackedBatch,
        separator: Option<u32>,
        keep: Keep,
        decode: impl FnOnce(&Decoder, &[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Decoder(decoder) => match decoder.attached() {
                Some(device) => {
                    let rows: Vec<u32> = batch.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
                    device.hidden(decoder, Wanted { batch, rows: &rows, targets: None }, keep)
                }
                None => decode(decoder, &vec![1; batch.n_sequences()]),
            },
            Self::Encoder(encoder) => {
                let separator = separator.filter(|_| encoder.config.type_vocab_size > 1);
                encoder.forward_at(batch, &segments(batch, separator), &batch.first_rows())
            }
        }
    }
}

/// Segment of every token: 0 up to the first separator of its sequence, 1 after it (BERT, section 3).
fn segments(batch: &PackedBatch, separator: Option<u32>) -> Vec<u32> {
    let mut segments = Vec::with_capacity(batch.len());
    for sequence in batch.offsets.windows(2) {
        let mut segment = 0;
        for id in &batch.ids[sequence[0]..sequence[1]] {
            segments.push(segment);
            if Some(*id) == separator {
                segment = 1;
            }
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_segment_begins_after_the_first_separator_of_each_sequence() {
        let batch = PackedBatch::new(&[vec![1, 9, 2, 9], vec![3, 4]]);
        assert_eq!(segments(&batch, Some(9)), [0, 0, 1, 1, 0, 0]);
        assert_eq!(segments(&batch, None), [0; 6]);
    }
}
