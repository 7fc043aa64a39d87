//! BERT (arXiv 1810.04805): learned positions and segments, LayerNorm after every sum (post-norm).

use serde_json::Value;

use super::read::{Result, activation, flag, get, number_opt, size, size_opt, unsupported};
use super::{Block, EncoderHeads, Family, Heads, MlpNames, NormKind, Norms, Pooler, Qkv};
use crate::model::config::{Arch, ModelConfig, PositionKind, Switches};
use crate::ops::linear::WeightLayout;

pub(super) static BERT: Family = Family {
    arch: Arch::Bert,
    model_type: "bert",
    class: "Bert",
    read: |config| read(config, Arch::Bert, 2),
    base: "bert.",
    words: "bert.embeddings.word_embeddings",
    positions: Some("bert.embeddings.position_embeddings"),
    segments: Some("bert.embeddings.token_type_embeddings"),
    embed_norm: Some("bert.embeddings.LayerNorm"),
    blocks: "bert.encoder.layer.",
    block: LIKE_BERT_BLOCK,
    final_norm: None,
    norm: NormKind::Layer,
    layout: WeightLayout::OutIn,
    heads: Heads::Encoder(EncoderHeads {
        dense: "cls.predictions.transform.dense",
        activation: None,
        norm: "cls.predictions.transform.LayerNorm",
        bias: "cls.predictions.bias",
        decoder: "cls.predictions.decoder",
        pooler: Pooler::Tanh("bert.pooler.dense"),
        renamed: &[],
    }),
    padding_trains: true,
    gguf: None,
};

pub(super) const LIKE_BERT_BLOCK: Block = Block {
    norms: Norms::OfSum(["attention.output.LayerNorm", "output.LayerNorm"]),
    qkv: Qkv::Split(["attention.self.query", "attention.self.key", "attention.self.value"]),
    qk_norm: None,
    out: "attention.output.dense",
    mlp: MlpNames::Plain { up: "intermediate.dense", down: "output.dense" },
};

pub(super) fn read(config: &Value, arch: Arch, segments: usize) -> Result<ModelConfig> {
    if let Some(kind) = get(config, "position_embedding_type").and_then(Value::as_str).filter(|k| *k != "absolute") {
        return unsupported(format!("position embedding {kind:?}"));
    }
    if flag(config, "is_decoder", false)? || flag(config, "add_cross_attention", false)? {
        return unsupported(format!("{} as a decoder", arch.family().class));
    }
    let hidden_size = size(config, "hidden_size")?;
    let n_heads = size(config, "num_attention_heads")?;
    Ok(ModelConfig {
        arch,
        vocab_size: size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: size(config, "intermediate_size")?,
        n_layers: size(config, "num_hidden_layers")?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: hidden_size / n_heads,
        max_positions: size(config, "max_position_embeddings")?,
        norm_eps: number_opt(config, "layer_norm_eps")?.unwrap_or(1e-12),
        activation: activation(config, "hidden_act", "gelu")?,
        position: PositionKind::Learned,
        qkv_bias: true,
        tie_embeddings: flag(config, "tie_word_embeddings", true)?,
        type_vocab_size: size_opt(config, "type_vocab_size")?.unwrap_or(segments),
        bos_id: None,
        eos_ids: Vec::new(),
        pad_id: None,
        switches: Switches { out_bias: true, mlp_bias: true, ..Switches::default() },
    })
}
