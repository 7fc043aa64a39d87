//! Parameter names: conversion between the variants in published files and the form that the models use.

use super::ModelConfig;
use super::families::{self, Family, Heads};

/// The name here of a tensor found in a file, or `None` for buffers, for copies of tied weights and for the parts of a
/// multimodal model that read no text.
pub fn canonical(config: &ModelConfig, found: &str) -> Option<String> {
    let family = config.family();
    let name = text_part(family, found)?;
    if is_buffer(name) {
        return None;
    }
    match &family.heads {
        Heads::Decoder { output, .. } => {
            let name = match name.strip_prefix(output).filter(|rest| rest.starts_with('.')) {
                Some(rest) => format!("lm_head{rest}"),
                None => name.to_owned(),
            };
            if config.tie_embeddings && name == "lm_head.weight" {
                return None;
            }
            Some(with_base(family, &name))
        }
        Heads::Encoder(heads) => {
            // Files converted from TensorFlow still say gamma and beta.
            let name = match (name.strip_suffix(".gamma"), name.strip_suffix(".beta")) {
                (Some(stem), _) => format!("{stem}.weight"),
                (_, Some(stem)) => format!("{stem}.bias"),
                _ => name.to_owned(),
            };
            if name.strip_prefix(heads.decoder) == Some(".weight") && config.tie_embeddings {
                return None;
            }
            if name.strip_prefix(heads.decoder) == Some(".bias") {
                return Some(heads.bias.to_owned());
            }
            Some(with_base(family, &exchange(&name, heads.renamed, |pair| pair)))
        }
    }
}

/// The name in files of a tensor by its name here.
pub fn published(config: &ModelConfig, name: &str) -> String {
    match &config.family().heads {
        Heads::Decoder { output, .. } => match name.strip_prefix("lm_head.") {
            Some(rest) => format!("{output}.{rest}"),
            None => name.to_owned(),
        },
        Heads::Encoder(heads) => exchange(name, heads.renamed, |(file, here)| (here, file)),
    }
}

/// Replaces the module of `name` by the second name of its pair.
fn exchange(
    name: &str,
    pairs: &[(&'static str, &'static str)],
    turn: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> String {
    for pair in pairs {
        let (from, to) = turn(*pair);
        if let Some(rest) = name.strip_prefix(from).filter(|rest| matches!(*rest, ".weight" | ".bias")) {
            return format!("{to}{rest}");
        }
    }
    name.to_owned()
}

/// Causal masks, rotary frequencies and position numbers that old files store. GPT-2's `.attn.c_attn.bias` and the like
/// are parameters and do not match.
fn is_buffer(name: &str) -> bool {
    const ENDS: [&str; 7] = [
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        "rotary_emb.inv_freq",
        "embeddings.position_ids",
        "embeddings.token_type_ids",
    ];
    ENDS.iter().any(|end| name.ends_with(end))
}

/// A tensor's name without the prefix of a multimodal model's text part; `None` for tensors of its other parts.
fn text_part<'a>(family: &Family, found: &'a str) -> Option<&'a str> {
    if family.is_encoder() {
        return Some(found);
    }
    const OTHER: [&str; 8] = [
        "vision_tower.",
        "multi_modal_projector.",
        "vision_model.",
        "connector.",
        "visual.",
        "audio_tower.",
        "embed_vision.",
        "image_newline",
    ];
    let inner = found.strip_prefix("model.").unwrap_or(found);
    if OTHER.iter().any(|other| inner.starts_with(other)) {
        return None;
    }
    // `language_model.model.layers` before transformers 4.52, `model.language_model.layers` since.
    if let Some(rest) = inner.strip_prefix("language_model.").or_else(|| inner.strip_prefix("text_model.")) {
        return Some(rest);
    }
    Some(found)
}

fn with_base(family: &Family, name: &str) -> String {
    if name.starts_with(family.base) || family.is_head(name) {
        name.to_owned()
    } else {
        format!("{}{name}", family.base)
    }
}

/// Every parameter of the backbone, with its shape, in model order. Heads are not listed.
pub fn backbone(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    families::parameters(config).into_iter().map(|p| (p.name, p.shape)).collect()
}
