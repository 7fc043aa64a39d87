//! The result of one step of the model.

use candle_core::Tensor;

use super::loaded::LoadedModel;

/// Hidden states or logits of one step.
pub(super) enum StepOutput {
    /// Hidden states `[rows, hidden]` of all rows, on the device of the model.
    Hidden(Tensor),
    /// Logits `[rows, vocab]` of the requested rows, which ascend.
    Logits { rows: Vec<u32>, logits: Vec<f32> },
}

impl StepOutput {
    /// Replaces the contents of `logits` by the logits of the `wanted` rows, `[wanted, vocab]`.
    ///
    /// # Errors
    /// If a row has no logits, and those of the model.
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
