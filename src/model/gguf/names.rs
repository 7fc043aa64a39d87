//! Parameters in GGUF files: their names, and how their layout differs.
//!
//! Most of it is derived from a family's table; this file adds llama.cpp's conventions.

use std::collections::BTreeMap;

use crate::model::config::ModelConfig;
use crate::model::families::{MlpNames, NormKind, Norms, Qkv};
use crate::ops::linear::WeightLayout;

/// The layout of a parameter in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Change {
    None,
    /// Rows of each head are ordered for interleaved rotary pairs.
    Rotary {
        heads: usize,
    },
    /// All of q, all of k, all of v, instead of q, k and v of each head.
    ByHead {
        heads: usize,
    },
    /// A gain stored with 1 added.
    PlusOne,
    /// A matrix stored as [out, in] that is [in, out] here.
    Transposed,
}

/// A parameter of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model) struct Named {
    /// The name in the file.
    pub file: String,
    pub change: Change,
}

/// Every parameter that a model of this configuration may have, by its name here.
pub(in crate::model) fn all(config: &ModelConfig) -> BTreeMap<String, Named> {
    let family = config.family();
    let mut found = BTreeMap::new();
    let mut add = |file: &str, name: &str, change: Change| {
        for part in ["weight", "bias"] {
            // Only weights are transposed or have 1 added; biases are reordered with the rows.
            let change = match change {
                Change::PlusOne | Change::Transposed if part == "bias" => Change::None,
                change => change,
            };
            found.insert(format!("{name}.{part}"), Named { file: format!("{file}.{part}"), change });
        }
    };
    let gain = if family.norm == NormKind::RmsPlusOne { Change::PlusOne } else { Change::None };
    let matrix = if family.layout == WeightLayout::InOut { Change::Transposed } else { Change::None };
    add("token_embd", family.words, Change::None);
    if let Some(positions) = family.positions {
        add("position_embd", positions, Change::None);
    }
    if let Some(norm) = family.final_norm {
        add("output_norm", norm, gain);
    }
    add("output", "lm_head", Change::None);
    let interleaved = family.gguf.as_ref().is_some_and(|gguf| gguf.interleaved);
    let rotary = |heads: usize| if interleaved { Change::Rotary { heads } } else { matrix };
    for i in 0..config.n_layers {
        let mut add = |file: &str, module: &str, change: Change| {
            add(&format!("blk.{i}.{file}"), &format!("{}{i}.{module}", family.blocks), change);
        };
        match family.block.qkv {
            Qkv::Split([q, k, v]) => {
                add("attn_q", q, rotary(config.n_heads));
                add("attn_k", k, rotary(config.n_kv_heads));
                add("attn_v", v, matrix);
            }
            Qkv::Joint(all) => add("attn_qkv", all, matrix),
            Qkv::ByHead(all) => add("attn_qkv", all, Change::ByHead { heads: config.n_heads }),
        }
        add("attn_output", family.block.out, matrix);
        match family.block.mlp {
            MlpNames::Gated { gate, up, down } => {
                add("ffn_gate", gate, matrix);
                add("ffn_up", up, matrix);
                add("ffn_down", down, matrix);
            }
            MlpNames::JointGated { gate_up: up, down } | MlpNames::Plain { up, down } => {
                add("ffn_up", up, matrix);
                add("ffn_down", down, matrix);
            }
        }
        let places: &[(&str, &str)] = &match &family.block.norms {
            Norms::Before([attn, mlp]) => vec![("attn_norm", *attn), ("ffn_norm", *mlp)],
            Norms::After([attn, mlp]) => vec![("post_attention_norm", *attn), ("post_ffw_norm", *mlp)],
            Norms::Around([attn, attn_post, mlp, mlp_post]) => vec![
                ("attn_norm", *attn),
                ("post_attention_norm", *attn_post),
                ("ffn_norm", *mlp),
                ("post_ffw_norm", *mlp_post),
            ],
            // Encoders are not read from GGUF files.
            Norms::OfSum(_) => Vec::new(),
        };
        for (file, module) in places {
            add(file, module, gain);
        }
        if let Some([q, k]) = family.block.qk_norm {
            add("attn_q_norm", q, gain);
            add("attn_k_norm", k, gain);
        }
    }
    found
}

impl Change {
    /// The file's row number of each of `rows` rows; `None` where the order is the same.
    ///
    /// # Errors
    /// When the rows do not divide into the heads.
    pub fn rows(self, rows: usize) -> Result<Option<Vec<usize>>, String> {
        let parts = match self {
            Self::None | Self::PlusOne | Self::Transposed => return Ok(None),
            Self::Rotary { heads } => 2 * heads,
            Self::ByHead { heads } => 3 * heads,
        };
        if rows == 0 || parts == 0 || !rows.is_multiple_of(parts) {
            return Err(format!("{rows} rows do not divide into {} heads", parts / 2));
        }
        let size = rows / parts;
        Ok(Some(match self {
            // Row (head, half, pair) lies at (head, pair, half).
            Self::Rotary { .. } => (0..rows)
                .map(|row| {
                    let (head, inside) = (row / (2 * size), row % (2 * size));
                    head * 2 * size + 2 * (inside % size) + inside / size
                })
                .collect(),
            // Row (head, part, i) lies at (part, head, i).
            _ => (0..rows)
                .map(|row| {
                    let (head, part, i) = (row / (3 * size), row / size % 3, row % size);
                    (part * (parts / 3) + head) * size + i
                })
                .collect(),
        }))
    }
}
