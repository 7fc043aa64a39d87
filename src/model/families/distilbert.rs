//! DistilBERT (arXiv 1910.01108): BERT without segments and pooler, with other parameter names.

use serde_json::Value;

use super::read::{Result, activation, flag, size};
use super::{Block, EncoderHeads, Family, Heads, MlpNames, NormKind, Norms, Pooler, Qkv};
use crate::model::config::{Arch, ModelConfig, PositionKind, Switches};
use crate::ops::linear::WeightLayout;

pub(super) static DISTILBERT: Family = Family {
    arch: Arch::DistilBert,
    model_type: "distilbert",
    class: "DistilBert",
    read,
    base: "distilbert.",
    words: "distilbert.embeddings.word_embeddings",
    positions: Some("distilbert.embeddings.position_embeddings"),
    segments: None,
    embed_norm: Some("distilbert.embeddings.LayerNorm"),
    blocks: "distilbert.transformer.layer.",
    block: Block {
        norms: Norms::OfSum(["sa_layer_norm", "output_layer_norm"]),
        qkv: Qkv::Split(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        qk_norm: None,
        out: "attention.out_lin",
        mlp: MlpNames::Plain { up: "ffn.lin1", down: "ffn.lin2" },
    },
    final_norm: None,
    norm: NormKind::Layer,
    layout: WeightLayout::OutIn,
    heads: Heads::Encoder(EncoderHeads {
        dense: "vocab_transform",
        activation: None,
        norm: "vocab_layer_norm",
        bias: "vocab_projector.bias",
        decoder: "vocab_projector",
        pooler: Pooler::Relu("pre_classifier"),
        renamed: &[],
    }),
    padding_trains: false,
    gguf: None,
};

fn read(config: &Value) -> Result<ModelConfig> {
    let hidden_size = size(config, "dim")?;
    let n_heads = size(config, "n_heads")?;
    Ok(ModelConfig {
        arch: Arch::DistilBert,
        vocab_size: size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: size(config, "hidden_dim")?,
        n_layers: size(config, "n_layers")?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: hidden_size / n_heads,
        max_positions: size(config, "max_position_embeddings")?,
        norm_eps: 1e-12,
        activation: activation(config, "activation", "gelu")?,
        position: PositionKind::Learned,
        qkv_bias: true,
        tie_embeddings: flag(config, "tie_word_embeddings", true)?,
        type_vocab_size: 0,
        bos_id: None,
        eos_ids: Vec::new(),
        pad_id: None,
        switches: Switches { out_bias: true, mlp_bias: true, ..Switches::default() },
    })
}
