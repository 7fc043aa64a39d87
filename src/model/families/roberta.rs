//! RoBERTa (arXiv 1907.11692): BERT whose positions begin after the padding id.

use serde_json::Value;

use super::bert::{LIKE_BERT_BLOCK, read};
use super::read::{Result, ids, malformed};
use super::{Arch, EncoderHeads, Family, Heads, NormKind, Pooler};
use crate::model::config::{Activation, ModelConfig};
use crate::ops::linear::WeightLayout;

pub(super) static ROBERTA: Family = Family {
    model_type: "roberta",
    class: "Roberta",
    read: |config| read_roberta(config, Arch::Roberta),
    ..LIKE_ROBERTA
};

/// XLM-RoBERTa (arXiv 1911.02116): RoBERTa in a hundred languages.
pub(super) static XLM_ROBERTA: Family = Family {
    arch: Arch::XlmRoberta,
    model_type: "xlm-roberta",
    class: "XLMRoberta",
    read: |config| read_roberta(config, Arch::XlmRoberta),
    ..LIKE_ROBERTA
};

fn read_roberta(config: &Value, arch: Arch) -> Result<ModelConfig> {
    let mut parsed = read(config, arch, 2)?;
    let pad = ids(config, "pad_token_id")?.first().copied().unwrap_or(1) as usize;
    parsed.switches.position_offset = pad + 1;
    match parsed.max_positions.checked_sub(pad + 1).filter(|left| *left > 0) {
        Some(left) => parsed.max_positions = left,
        None => return malformed(format!("`max_position_embeddings` leaves none behind the padding id {pad}")),
    }
    Ok(parsed)
}

const LIKE_ROBERTA: Family = Family {
    arch: Arch::Roberta,
    model_type: "",
    class: "",
    read: |config| read_roberta(config, Arch::Roberta),
    base: "roberta.",
    words: "roberta.embeddings.word_embeddings",
    positions: Some("roberta.embeddings.position_embeddings"),
    segments: Some("roberta.embeddings.token_type_embeddings"),
    embed_norm: Some("roberta.embeddings.LayerNorm"),
    blocks: "roberta.encoder.layer.",
    block: LIKE_BERT_BLOCK,
    final_norm: None,
    norm: NormKind::Layer,
    layout: WeightLayout::OutIn,
    heads: Heads::Encoder(EncoderHeads {
        dense: "lm_head.dense",
        // Independent of `hidden_act`.
        activation: Some(Activation::GeluErf),
        norm: "lm_head.layer_norm",
        bias: "lm_head.bias",
        decoder: "lm_head.decoder",
        pooler: Pooler::Tanh("pooler.dense"),
        renamed: &[("classifier.dense", "pooler.dense"), ("classifier.out_proj", "classifier")],
    }),
    padding_trains: false,
    gguf: None,
};
