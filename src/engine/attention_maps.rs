//! Which tokens each position attends to: the probabilities of every layer and head, by the plain attention
//! on the model's own queries and keys.

use candle_core::{DType, Device, Result, Tensor};

use crate::model::{Decoder, Encoder, PackedBatch};
use crate::ops::attention::AttentionSpec;
use crate::ops::plain::attention_watched;

/// Probabilities of one sequence; every row of `n_tokens` sums to 1.
#[derive(Clone, Debug)]
pub struct AttentionMaps {
    pub n_heads: usize,
    pub n_tokens: usize,
    /// Whether positions see only themselves and what is before them.
    pub causal: bool,
    /// For each layer `[heads][queries][keys]`, flat.
    pub layers: Vec<Vec<f32>>,
    /// What came out of this pass, [n_tokens, d]: the model's own hidden states, computed along the maps.
    pub hidden: Tensor,
}

impl AttentionMaps {
    /// What the query at `from` gives to each position.
    pub fn row(&self, layer: usize, head: usize, from: usize) -> &[f32] {
        let at = (head * self.n_tokens + from) * self.n_tokens;
        &self.layers[layer][at..at + self.n_tokens]
    }
}

/// The attention maps of one pass of a decoder over one sequence.
pub fn of_decoder(decoder: &Decoder, ids: &[u32]) -> Result<AttentionMaps> {
    let batch = PackedBatch::new(&[ids]);
    watched(ids.len(), decoder.config.n_heads, true, |attend| decoder.forward_by(&batch, attend))
}

/// The attention maps of one pass of an encoder over one sequence; all tokens belong to the first segment.
pub fn of_encoder(encoder: &Encoder, ids: &[u32]) -> Result<AttentionMaps> {
    let (batch, types) = (PackedBatch::new(&[ids]), vec![0; ids.len()]);
    watched(ids.len(), encoder.config.n_heads, false, |attend| encoder.forward_by(&batch, &types, attend))
}

type Attend<'a> = crate::ops::attention::Attend<'a>;

fn watched(
    n_tokens: usize,
    n_heads: usize,
    causal: bool,
    pass: impl FnOnce(&mut Attend<'_>) -> Result<Tensor>,
) -> Result<AttentionMaps> {
    let mut layers = Vec::new();
    let hidden = pass(&mut |q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec| {
        attention_watched(q, k, v, spec, &mut |probabilities| {
            let home = probabilities.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            layers.push(home.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        })
    })?;
    Ok(AttentionMaps { n_heads, n_tokens, causal, layers, hidden })
}
