//! The result of one step of the model.

use candle_core::Tensor;

use super::loaded::LoadedModel;

/// What a step gave.
pub(super) enum Output {
    /// Hidden states of all rows, where the model is.
    Hidden(Tensor),
    /// Logits of the rows that were asked for, ascending.
    Logits { rows: Vec<u32>, logits: Vec<f32> },
}

impl Output {
    /// Logits of some rows, end to end.
    pub fn logits(&self, model: &LoadedModel, wanted: &[u32]) -> candle_core::Result<Vec<f32>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Hidden(hidden) => {
                let picked = hidden.index_select(&Tensor::new(wanted, hidden.device())?, 0)?;
                model.decoder.logits(&picked)?.flatten_all()?.to_vec1::<f32>()
            }
            Self::Logits { rows, logits } => {
                let vocab = model.decoder.config.vocab_size;
                let mut picked = Vec::with_capacity(wanted.len() * vocab);
                for row in wanted {
                    let Ok(at) = rows.binary_search(row) else { candle_core::bail!("row {row} has no logits") };
                    picked.extend_from_slice(&logits[at * vocab..(at + 1) * vocab]);
                }
                Ok(picked)
            }
        }
    }
}
