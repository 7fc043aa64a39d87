//! Attention maps: the attention probabilities of every layer and head, computed by the reference attention of
//! `ops::plain` from the model's queries and keys.

use candle_core::{DType, Device, Result, Tensor};

use crate::model::{Decoder, Encoder, PackedBatch};
use crate::ops::attention::{Attend, AttentionSpec};
use crate::ops::plain::attention_with_probabilities;

/// The attention probabilities of one sequence. Every row of `n_tokens` values sums to 1.
#[derive(Clone, Debug)]
pub struct AttentionMaps {
    pub n_heads: usize,
    pub n_tokens: usize,
    /// Whether positions attend only to themselves and to earlier positions.
    pub causal: bool,
    /// The probabilities of each layer, `[heads, queries, keys]`, flat.
    pub layers: Vec<Vec<f32>>,
    /// The hidden states of this pass, `[n_tokens, hidden]`.
    pub hidden: Tensor,
}

impl AttentionMaps {
    /// The probabilities of the query at position `from`, `[keys]`.
    pub fn row(&self, layer: usize, head: usize, from: usize) -> &[f32] {
        let at = (head * self.n_tokens + from) * self.n_tokens;
        &self.layers[layer][at..at + self.n_tokens]
    }
}

/// The attention maps of one pass of a decoder over one sequence.
pub fn of_decoder(decoder: &Decoder, ids: &[u32]) -> Result<AttentionMaps> {
    let batch = PackedBatch::new(&[ids]);
    record(ids.len(), decoder.config.n_heads, true, |attend| decoder.forward_by(&batch, attend))
}

/// The attention maps of one pass of an encoder over one sequence; all tokens belong to the first segment.
pub fn of_encoder(encoder: &Encoder, ids: &[u32]) -> Result<AttentionMaps> {
    let (batch, types) = (PackedBatch::new(&[ids]), vec![0; ids.len()]);
    record(ids.len(), encoder.config.n_heads, false, |attend| encoder.forward_by(&batch, &types, attend))
}

fn record(
    n_tokens: usize,
    n_heads: usize,
    causal: bool,
    pass: impl FnOnce(&mut Attend<'_>) -> Result<Tensor>,
) -> Result<AttentionMaps> {
    let mut layers = Vec::new();
    let hidden = pass(&mut |q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec| {
        attention_with_probabilities(q, k, v, spec, &mut |probabilities| {
            let on_cpu = probabilities.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            layers.push(on_cpu.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        })
    })?;
    Ok(AttentionMaps { n_heads, n_tokens, causal, layers, hidden })
}
