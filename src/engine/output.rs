//! The result of one step of the model.

use candle_core::Tensor;

use super::loaded::LoadedModel;

/// Hidden states or logits of one step.
pub(super) enum StepOutput {
    /// Hidden states `[rows, hidden]` of all rows, on the device of the model.
    Hidden(Tensor),
    /// Logits `[rows, vocab]` of the requested rows, which ascend. The device drew a token from each of the `drawn`
    /// rows, which ascend too.
    Logits { rows: Vec<u32>, logits: Vec<f32>, drawn: Vec<u32> },
}

impl StepOutput {
    /// Replaces the contents of `logits` by the logits of the `wanted` rows, `[wanted, vocab]`. The values of rows from
    /// which the device drew are unspecified.
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
            Self::Logits { rows, logits: known, drawn } => {
                let vocab = model.decoder.config.vocab_size;
                logits.resize(wanted.len() * vocab, 0.0);
                for (row, to) in wanted.iter().zip(logits.chunks_exact_mut(vocab)) {
                    match rows.binary_search(row) {
                        Ok(at) => to.copy_from_slice(&known[at * vocab..(at + 1) * vocab]),
                        Err(_) if drawn.binary_search(row).is_ok() => {}
                        Err(_) => candle_core::bail!("row {row} has no logits"),
                    }
                }
                Ok(())
            }
        }
    }
}
