//! Bidirectional encoder of BERT type (arXiv 1810.04805): post-norm blocks over packed sequences, with the
//! masked-LM head when the weights have one.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::layers::{Builder, Linear, Norm};
use super::{Activation, Arch, ModelConfig, PackedBatch, Weights};
use crate::ops::attention::{Attend, AttentionSpec, attention};
use crate::ops::linear::{Weight, WeightLayout};
use crate::ops::token_logprobs::{TokenLogprobs, token_logprobs};
use crate::ops::{activation, embedding::embedding};

#[derive(Debug, Clone)]
pub struct Encoder {
    pub config: ModelConfig,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    embed_norm: Norm,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
    mlm: Option<MaskedLmHead>,
}

#[derive(Debug, Clone)]
struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    attn_norm: Norm,
    up: Linear,
    down: Linear,
    mlp_norm: Norm,
}

#[derive(Debug, Clone)]
struct MaskedLmHead {
    transform: Linear,
    norm: Norm,
    decoder: Weight,
    bias: Tensor,
}

impl Encoder {
    pub fn new(config: &ModelConfig, weights: &Weights, purpose: super::Purpose) -> Result<Self> {
        Self::of(&Builder { config, weights, lora: None, purpose, stored: None })
    }

    /// The same with low-rank adapters beside the base, as for a decoder.
    pub fn with_lora(
        config: &ModelConfig,
        weights: &Weights,
        lora: &super::LoraConfig,
        adapters: &Weights,
        purpose: super::Purpose,
    ) -> Result<Self> {
        Self::of(&Builder { config, weights, lora: Some((lora, adapters)), purpose, stored: None })
    }

    fn of(b: &Builder<'_>) -> Result<Self> {
        let (config, weights) = (b.config, b.weights);
        if config.arch != Arch::Bert {
            candle_core::bail!("{:?} is not an encoder", config.arch);
        }
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let words = b.tensor("bert.embeddings.word_embeddings.weight", &[vocab, d])?;
        let pooler = match weights.contains_key("bert.pooler.dense.weight") {
            true => Some(b.linear("bert.pooler.dense", d, d, true)?),
            false => None,
        };
        let mlm = match weights.contains_key("cls.predictions.transform.dense.weight") {
            true => Some(MaskedLmHead {
                transform: b.linear("cls.predictions.transform.dense", d, d, true)?,
                norm: b.layer_norm("cls.predictions.transform.LayerNorm")?,
                decoder: b.weight("bert.embeddings.word_embeddings.weight", &words, WeightLayout::OutIn)?,
                bias: b.tensor("cls.predictions.bias", &[vocab])?,
            }),
            false => None,
        };
        Ok(Self {
            config: config.clone(),
            positions: b.tensor("bert.embeddings.position_embeddings.weight", &[config.max_positions, d])?,
            types: b.tensor("bert.embeddings.token_type_embeddings.weight", &[config.type_vocab_size, d])?,
            embed_norm: b.layer_norm("bert.embeddings.LayerNorm")?,
            layers: (0..config.n_layers).map(|i| layer(b, i)).collect::<Result<_>>()?,
            words,
            pooler,
            mlm,
        })
    }

    /// Hidden states [N, d] of every token. `type_ids` [N] are the segments (0 or 1 in BERT).
    pub fn forward(&self, batch: &PackedBatch, type_ids: &[u32]) -> Result<Tensor> {
        self.forward_by(batch, type_ids, &mut attention)
    }

    /// The same with `attend` in the place of the attention of every layer, called in order of layers.
    pub fn forward_by(&self, batch: &PackedBatch, type_ids: &[u32], attend: &mut Attend<'_>) -> Result<Tensor> {
        if type_ids.len() != batch.len() {
            candle_core::bail!("{} tokens, {} segment ids", batch.len(), type_ids.len());
        }
        let spec = AttentionSpec {
            offsets: Arc::new(batch.offsets.clone()),
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_heads,
            head_dim: self.config.head_dim,
            causal: false,
            queries: None,
        };
        let x = embedding(&self.words, &Arc::new(batch.ids.clone()))?;
        let x = (x + embedding(&self.positions, &Arc::new(batch.positions.clone()))?)?;
        let x = (x + embedding(&self.types, &Arc::new(type_ids.to_vec()))?)?;
        let mut x = self.embed_norm.forward(&x)?;
        for layer in &self.layers {
            x = self.block(layer, &x, &spec, attend)?;
        }
        Ok(x)
    }

    fn block(&self, layer: &Layer, x: &Tensor, spec: &AttentionSpec, attend: &mut Attend<'_>) -> Result<Tensor> {
        let mixed = attend(&layer.q.forward(x)?, &layer.k.forward(x)?, &layer.v.forward(x)?, spec)?;
        let x = layer.attn_norm.forward(&(x + layer.out.forward(&mixed)?)?)?;
        let inner = self.activate(&layer.up.forward(&x)?)?;
        layer.mlp_norm.forward(&(&x + layer.down.forward(&inner)?)?)
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor> {
        activation::gelu(x, self.config.activation == Activation::GeluTanh)
    }

    /// tanh(W·hidden + b) of chosen rows (the [CLS] rows), where the weights have a pooler.
    pub fn pool(&self, cls_rows: &Tensor) -> Result<Option<Tensor>> {
        self.pooler.as_ref().map(|p| p.forward(cls_rows)?.tanh()).transpose()
    }

    pub fn has_mlm_head(&self) -> bool {
        self.mlm.is_some()
    }

    /// Vocabulary logits [m, vocab] of chosen hidden rows.
    pub fn mlm_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let head = self.mlm_head()?;
        head.decoder.apply(&self.mlm_transform(head, hidden)?)?.broadcast_add(&head.bias)
    }

    /// log p(target) at chosen hidden rows, for the masked-LM loss.
    pub fn mlm_logprobs(&self, hidden: &Tensor, targets: &[u32]) -> Result<TokenLogprobs> {
        let head = self.mlm_head()?;
        // The bias joins the matrix as one more column, so that the fused op needs no special case.
        let x = self.mlm_transform(head, hidden)?;
        let ones = Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?;
        let matrix = Tensor::cat(&[head.decoder.dense()?, &head.bias.unsqueeze(1)?], 1)?;
        let joint = Weight::new(&matrix, WeightLayout::OutIn, true)?;
        token_logprobs(&Tensor::cat(&[&x, &ones], 1)?, &joint, targets, 1.0)
    }

    fn mlm_head(&self) -> Result<&MaskedLmHead> {
        match &self.mlm {
            Some(head) => Ok(head),
            None => candle_core::bail!("this encoder has no masked-LM head"),
        }
    }

    fn mlm_transform(&self, head: &MaskedLmHead, hidden: &Tensor) -> Result<Tensor> {
        head.norm.forward(&self.activate(&head.transform.forward(hidden)?)?)
    }
}

fn layer(b: &Builder<'_>, i: usize) -> Result<Layer> {
    let (d, inner, p) = (b.config.hidden_size, b.config.intermediate_size, format!("bert.encoder.layer.{i}"));
    let square = |name: &str| b.linear(&format!("{p}.attention.{name}"), d, d, true);
    Ok(Layer {
        q: square("self.query")?,
        k: square("self.key")?,
        v: square("self.value")?,
        out: square("output.dense")?,
        attn_norm: b.layer_norm(&format!("{p}.attention.output.LayerNorm"))?,
        up: b.linear(&format!("{p}.intermediate.dense"), inner, d, true)?,
        down: b.linear(&format!("{p}.output.dense"), d, inner, true)?,
        mlp_norm: b.layer_norm(&format!("{p}.output.LayerNorm"))?,
    })
}
