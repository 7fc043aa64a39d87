//! The weights of an encoder on the host, and its passes.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::model::families::{EncoderHeads, Norms, Pooler};
use crate::model::layers::block::{Layer, layer};
use crate::model::layers::rope_tables;
use crate::model::layers::{Builder, Linear, Norm};
use crate::model::{ModelConfig, PackedBatch};
use crate::ops::activation;
use crate::ops::attention::{Attend, AttentionSpec};
use crate::ops::embedding::{embedding, embedding_with_padding};
use crate::ops::linear::{Weight, WeightLayout};
use crate::ops::rope::Row;
use crate::ops::token_logprobs::{TokenLogprobs, token_logprobs};

/// Why a prediction is refused.
pub(super) const NO_HEAD: &str = "this encoder has no masked-LM head";

/// An encoder on the host.
#[derive(Debug, Clone)]
pub(super) struct HostEncoder {
    config: ModelConfig,
    words: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
    embed_norm: Option<Norm>,
    layers: Vec<Layer>,
    /// Norms follow the sums, as in BERT (post-norm).
    of_sum: bool,
    final_norm: Option<Norm>,
    pooler: Option<Linear>,
    /// The masked-LM head's dense layer and norm.
    transform: Option<(Linear, Norm)>,
    output: Option<Output>,
}

#[derive(Debug, Clone)]
struct Output {
    decoder: Weight,
    bias: Tensor,
}

impl HostEncoder {
    pub fn new(b: &Builder<'_>) -> Result<Self> {
        let (config, family) = (b.config, b.config.family());
        let Some(heads) = family.encoder_heads() else {
            candle_core::bail!("{} is a decoder, not an encoder", family.class)
        };
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let words_name = format!("{}.weight", family.words);
        let words = b.tensor(&words_name, &[vocab, d])?;
        let table = |name: Option<&str>, rows: usize| {
            name.map(|name| b.tensor(&format!("{name}.weight"), &[rows, d])).transpose()
        };
        let ropes = rope_tables::tables(config);
        Ok(Self {
            config: config.clone(),
            positions: table(family.positions, config.max_positions + config.switches.position_offset)?,
            types: table(family.segments, config.type_vocab_size)?,
            embed_norm: family.embed_norm.map(|name| b.norm(name)).transpose()?,
            layers: (0..config.n_layers).map(|i| layer(b, i, &ropes)).collect::<Result<_>>()?,
            of_sum: matches!(family.block.norms, Norms::OfSum(_)),
            final_norm: family.final_norm.map(|name| b.norm(name)).transpose()?,
            pooler: match heads.pooler {
                Pooler::Tanh(name) | Pooler::Relu(name) => dense(b, name)?,
                Pooler::MaskedLmHead => None,
            },
            transform: match dense(b, heads.dense)? {
                Some(dense) => Some((dense, b.norm(heads.norm)?)),
                None => None,
            },
            output: output(b, heads, &words_name)?,
            words,
        })
    }

    /// Hidden states `[N, d]` of every token, with `attend` as the attention of every layer.
    pub fn forward(&self, batch: &PackedBatch, type_ids: &[u32], attend: &mut Attend<'_>) -> Result<Tensor> {
        let spec = AttentionSpec {
            offsets: Arc::new(batch.offsets.clone()),
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_heads,
            head_dim: self.config.head_dim,
            ..AttentionSpec::default()
        };
        let positions = Arc::new(batch.positions.clone());
        let rotary = Arc::new(batch.positions.iter().map(|p| Row::from(*p)).collect::<Vec<_>>());
        let mut x = embedding_with_padding(&self.words, &Arc::new(batch.ids.clone()), self.config.frozen_padding())?;
        if let Some(table) = &self.positions {
            let offset = self.config.switches.position_offset as u32;
            let rows = if offset == 0 { positions.clone() } else { Arc::new(shifted(&positions, offset)) };
            x = (x + embedding(table, &rows)?)?;
        }
        if let Some(table) = &self.types {
            x = (x + embedding(table, &Arc::new(type_ids.to_vec()))?)?;
        }
        if let Some(norm) = &self.embed_norm {
            x = norm.forward(&x)?;
        }
        for layer in &self.layers {
            x = self.block(layer, &x, &rotary, &spec, attend)?;
        }
        self.final_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    fn block(
        &self,
        layer: &Layer,
        x: &Tensor,
        rotary: &Arc<Vec<Row>>,
        spec: &AttentionSpec,
        attend: &mut Attend<'_>,
    ) -> Result<Tensor> {
        let (q, k, v) = layer.qkv(&self.config, x, rotary)?;
        let given = layer.out.forward(&attend(&q, &k, &v, &layer.attention(spec))?)?;
        let x = self.add(x, &given, layer.attn_post.as_ref())?;
        let normed = match &layer.mlp_norm {
            Some(norm) => norm.forward(&x)?,
            None => x.clone(),
        };
        self.add(&x, &layer.mlp.forward(&normed)?, layer.mlp_post.as_ref())
    }

    fn add(&self, x: &Tensor, given: &Tensor, post: Option<&Norm>) -> Result<Tensor> {
        match post {
            Some(norm) if self.of_sum => norm.forward(&(x + given)?),
            Some(norm) => x + norm.forward(given)?,
            None => x + given,
        }
    }

    /// The layer before a classifier, of rows [m, d], without its activation. `None` where the weights have none, or where
    /// it is part of the masked-LM head.
    pub fn pooler(&self, rows: &Tensor) -> Result<Option<Tensor>> {
        self.pooler.as_ref().map(|pooler| pooler.forward(rows)).transpose()
    }

    /// Whether the weights have the masked-LM head's dense layer, and its output matrix.
    pub fn mlm_parts(&self) -> [bool; 2] {
        [self.transform.is_some(), self.output.is_some()]
    }

    /// Logits [m, vocab] of hidden rows [m, d].
    pub fn mlm_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let output = self.output()?;
        output.decoder.apply(&self.mlm_transform(hidden)?)?.broadcast_add(&output.bias)
    }

    /// log p(target) at hidden rows [m, d], for the masked-LM loss.
    pub fn mlm_logprobs(&self, hidden: &Tensor, targets: &[u32]) -> Result<TokenLogprobs> {
        let output = self.output()?;
        // The bias joins the matrix as one more column, so that the fused op needs no special case.
        let x = self.mlm_transform(hidden)?;
        let ones = Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?;
        let matrix = Tensor::cat(&[output.decoder.dense()?, &output.bias.unsqueeze(1)?], 1)?;
        let joint = Weight::new(&matrix, WeightLayout::OutIn, true)?;
        token_logprobs(&Tensor::cat(&[&x, &ones], 1)?, &joint, targets, 1.0)
    }

    fn output(&self) -> Result<&Output> {
        match &self.output {
            Some(output) => Ok(output),
            None => candle_core::bail!("{NO_HEAD}"),
        }
    }

    /// The masked-LM head without its output matrix, of rows [m, d].
    pub fn mlm_transform(&self, hidden: &Tensor) -> Result<Tensor> {
        let Some((dense, norm)) = &self.transform else { candle_core::bail!("{NO_HEAD}") };
        let own = self.config.family().encoder_heads().and_then(|heads| heads.activation);
        norm.forward(&activation::activate(own.unwrap_or(self.config.activation), &dense.forward(hidden)?)?)
    }
}

fn shifted(positions: &[u32], offset: u32) -> Vec<u32> {
    positions.iter().map(|p| p + offset).collect()
}

/// An optional square layer, with a bias if the weights have one.
pub(super) fn dense(b: &Builder<'_>, name: &str) -> Result<Option<Linear>> {
    if !b.parameters.has(&format!("{name}.weight")) {
        return Ok(None);
    }
    let d = b.config.hidden_size;
    b.linear(name, d, d, b.parameters.has(&format!("{name}.bias"))).map(Some)
}

fn output(b: &Builder<'_>, heads: &EncoderHeads, words_name: &str) -> Result<Option<Output>> {
    let (d, vocab) = (b.config.hidden_size, b.config.vocab_size);
    if !b.parameters.has(heads.bias) {
        return Ok(None);
    }
    let own = format!("{}.weight", heads.decoder);
    let decoder = match b.config.tie_embeddings || !b.parameters.has(&own) {
        true => b.weight(words_name, (vocab, d), WeightLayout::OutIn)?,
        false => b.weight(&own, (vocab, d), WeightLayout::OutIn)?,
    };
    Ok(Some(Output { decoder, bias: b.tensor(heads.bias, &[vocab])? }))
}
