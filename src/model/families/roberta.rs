//! RoBERTa (arXiv 1907.11692): BERT whose positions begin behind the padding id.

use super::bert::{LIKE_BERT_BLOCK, read};
use super::read::{ids, malformed};
use super::{Arch, EncoderHeads, Family, Heads, NormKind, Pooler};
use crate::ops::linear::WeightLayout;

pub(super) static ROBERTA: Family = Family {
    arch: Arch::Roberta,
    model_type: "roberta",
    class: "Roberta",
    read: |config| {
        let mut parsed = read(config, Arch::Roberta, 2)?;
        let pad = ids(config, "pad_token_id")?.first().copied().unwrap_or(1) as usize;
        parsed.switches.position_offset = pad + 1;
        match parsed.max_positions.checked_sub(pad + 1).filter(|left| *left > 0) {
            Some(left) => parsed.max_positions = left,
            None => return malformed(format!("`max_position_embeddings` leaves none behind the padding id {pad}")),
        }
        Ok(parsed)
    },
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
        norm: "lm_head.layer_norm",
        bias: "lm_head.bias",
        decoder: "lm_head.decoder",
        pooler: Pooler::Tanh("pooler.dense"),
        renamed: &[("classifier.dense", "pooler.dense"), ("classifier.out_proj", "classifier")],
    }),
};
