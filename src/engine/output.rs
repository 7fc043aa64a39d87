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
    /// Puts the logits of some rows end to end into `logits`, in place of what it holds.
    pub fn logits_into(&self, model: &LoadedModel, wanted: &[u32], logits: &mut Vec<f32>) -> candle_core::Result<()> {
        logits.truncate(wanted.len() * model.decoder.config.vocab_size);
        if wanted.is_empty() {
            return Ok(());
        }
        match self {
            Self::Hidden(hidden) => model.decoder.logits_into(hidden, wanted, logits),
            Self::Logits { rows, logits: known } => {
                let vocab = model.decoder.config.vocab_size;
                logits.clear();
                for row in wanted {
                    let Ok(at) = rows.binary_search(row) else { candle_core::bail!("row {row} has no logits") };
                    logits.extend_from_slice(&known[at * vocab..(at + 1) * vocab]);
                }
                Ok(())
            }
        }
    }
}
