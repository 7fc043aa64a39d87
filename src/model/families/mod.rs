//! The families of models that can be loaded, one table of facts each. Loader, saver, adapters, initialisation,
//! freezing and the size planner read these tables; the decoder and the encoder are built from them. A new family of
//! known parts is one file here and one line in `ALL`.

mod bert;
mod distilbert;
mod gemma;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod modernbert;
mod olmo2;
mod parameters;
mod phi3;
mod qwen;
pub(super) mod read;
mod roberta;
mod rotary;
mod smollm3;

use serde_json::Value;

pub use parameters::{Parameter, Role, block_matrices, parameters};

use super::config::{Arch, ConfigError, ModelConfig};
use crate::ops::linear::WeightLayout;

/// Every family, in the order of messages.
static ALL: [&Family; 18] = [
    &gpt2::GPT2,
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &smollm3::SMOLLM3,
    &olmo2::OLMO2,
    &phi3::PHI3,
    &granite::GRANITE,
    &gpt_neox::GPT_NEOX,
    &bert::BERT,
    &roberta::ROBERTA,
    &roberta::XLM_ROBERTA,
    &distilbert::DISTILBERT,
    &modernbert::MODERNBERT,
];

/// What one family calls its parts and how they fit together. Module names are those of Hugging Face's files,
/// without `.weight` and `.bias`.
#[derive(Debug)]
pub struct Family {
    pub arch: Arch,
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// First part of transformers' class names, as in `LlamaForCausalLM`.
    pub class: &'static str,
    /// Reads config.json, token ids left out.
    pub read: fn(&Value) -> Result<ModelConfig, ConfigError>,
    /// Prefix of all parameters but heads.
    pub base: &'static str,
    pub words: &'static str,
    /// Learned positions, if there are any.
    pub positions: Option<&'static str>,
    /// Segments of an encoder.
    pub segments: Option<&'static str>,
    pub embed_norm: Option<&'static str>,
    /// Prefix of the blocks; their number follows.
    pub blocks: &'static str,
    pub block: Block,
    pub final_norm: Option<&'static str>,
    pub norm: NormKind,
    /// How matrices lie in the file.
    pub layout: WeightLayout,
    /// What stands beside the backbone.
    pub heads: Heads,
}

/// Module names inside a block.
#[derive(Debug)]
pub struct Block {
    pub norms: Norms,
    pub qkv: Qkv,
    /// Norms of q and k, before rotary positions.
    pub qk_norm: Option<[&'static str; 2]>,
    pub out: &'static str,
    pub mlp: MlpNames,
}

/// Where a block has its norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and feed-forward part.
    Before([&'static str; 2]),
    /// Of what attention and feed-forward part give, before it is added.
    After([&'static str; 2]),
    /// Both: before and after attention, before and after the feed-forward part.
    Around([&'static str; 4]),
    /// Of the sum, as in BERT.
    OfSum([&'static str; 2]),
}

/// The projections of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    Split([&'static str; 3]),
    /// One matrix: all of q, all of k, all of v.
    Joint(&'static str),
    /// One matrix: q, k and v of the first head, then of the second, …
    ByHead(&'static str),
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpNames {
    Plain {
        up: &'static str,
        down: &'static str,
    },
    Gated {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// Gate and up in one matrix, in this order.
    JointGated {
        gate_up: &'static str,
        down: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// LayerNorm with weight and bias.
    Layer,
    /// LayerNorm without a bias.
    LayerNoBias,
    Rms,
    /// RMSNorm that scales by 1 + weight.
    RmsPlusOne,
}

/// Parts beside the backbone.
#[derive(Debug)]
pub enum Heads {
    /// The name of the output matrix in files; `lm_head` here.
    Decoder {
        output: &'static str,
    },
    Encoder(EncoderHeads),
}

#[derive(Debug)]
pub struct EncoderHeads {
    /// Masked-LM head: a dense layer, its norm, and the bias of the tied output matrix.
    pub dense: &'static str,
    pub norm: &'static str,
    pub bias: &'static str,
    /// The tied output matrix, where files repeat it.
    pub decoder: &'static str,
    /// The dense layer between the first token's hidden state and the classes; with its norm in `norm` if it is the
    /// masked-LM head's own.
    pub pooler: Pooler,
    /// (name in files, name here) of modules that are called differently here.
    pub renamed: &'static [(&'static str, &'static str)],
}

/// What a classifier reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooler {
    /// A dense layer of this name, then tanh.
    Tanh(&'static str),
    /// The same with max(0, x).
    Relu(&'static str),
    /// The masked-LM head's dense layer, activation and norm.
    MaskedLmHead,
}

impl EncoderHeads {
    /// Whether a parameter belongs to what a classifier reads.
    pub fn is_pooler(&self, name: &str) -> bool {
        let of = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        match self.pooler {
            Pooler::Tanh(module) | Pooler::Relu(module) => of(module),
            Pooler::MaskedLmHead => of(self.dense) || of(self.norm),
        }
    }

    /// Whether a parameter belongs to the masked-LM head.
    pub fn is_masked_lm(&self, name: &str) -> bool {
        let of = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        [self.dense, self.norm, self.bias, self.decoder].into_iter().any(of)
    }
}

impl Family {
    pub fn is_encoder(&self) -> bool {
        matches!(self.heads, Heads::Encoder(_))
    }

    /// The facts about an encoder's heads.
    pub fn encoder_heads(&self) -> Option<&EncoderHeads> {
        match &self.heads {
            Heads::Encoder(heads) => Some(heads),
            Heads::Decoder { .. } => None,
        }
    }

    /// Modules of input embeddings, with their norm.
    pub fn embeddings(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.words).chain(self.positions).chain(self.segments).chain(self.embed_norm)
    }

    /// The number of the block that holds a parameter.
    pub fn block_of(&self, name: &str) -> Option<usize> {
        name.strip_prefix(self.blocks)?.split('.').next()?.parse().ok()
    }

    /// True for names of heads, which stand beside the backbone and carry no prefix.
    pub fn is_head(&self, name: &str) -> bool {
        let own = self.encoder_heads().is_some_and(|heads| heads.is_pooler(name) || heads.is_masked_lm(name));
        let first = name.split('.').next().unwrap_or(name);
        own || matches!(
            first,
            "lm_head" | "score" | "classifier" | "v_head" | "value_head" | "reward_head" | "cls" | "qa_outputs"
        )
    }
}

impl Arch {
    pub fn family(self) -> &'static Family {
        // `each_architecture_has_its_family` in the tests: the position in `ALL` is the discriminant.
        ALL[self as usize]
    }

    /// Whether it reads in both directions and is trained by masked words.
    pub fn is_encoder(self) -> bool {
        self.family().is_encoder()
    }
}

impl ModelConfig {
    pub fn family(&self) -> &'static Family {
        self.arch.family()
    }

    pub fn is_encoder(&self) -> bool {
        self.arch.is_encoder()
    }

    /// The token whose input embedding does not train: transformers gives the padding token's row no gradient, in most
    /// families. The first ones here have always trained it.
    pub fn frozen_padding(&self) -> Option<u32> {
        match self.arch {
            Arch::Gpt2 | Arch::GptNeox | Arch::Llama | Arch::Qwen2 | Arch::Bert => None,
            _ => self.pad_id,
        }
    }
}

/// The family of a `model_type`.
///
/// # Errors
/// An unknown one, with the families that are known and what a model needs to be served.
pub(super) fn find(model_type: &str) -> Result<&'static Family, ConfigError> {
    ALL.into_iter().find(|family| family.model_type == model_type).ok_or_else(|| {
        let known = ALL.map(|family| family.model_type).join(", ");
        let reason = read::why_not(model_type);
        ConfigError::Unsupported(format!(
            "model type {model_type:?} ({reason}; known families: {known}). A model of one of these families, or one \
             converted to it, can be served; so can a GGUF file of one. A new family of the same parts needs a table \
             of facts in src/model/families"
        ))
    })
}

/// All families.
pub fn all() -> impl Iterator<Item = &'static Family> {
    ALL.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_has_its_family() {
        for (i, family) in all().enumerate() {
            assert_eq!(family.arch as usize, i, "{}", family.model_type);
            assert!(std::ptr::eq(family.arch.family(), family));
            assert_eq!(find(family.model_type).unwrap().arch, family.arch);
            assert!(family.blocks.starts_with(family.base) && family.blocks.ends_with('.'), "{}", family.model_type);
        }
    }

    #[test]
    fn an_unknown_model_type_is_told_what_is_known() {
        for (model_type, reason) in [
            ("mamba2", "state-space"),
            ("qwen3_moe", "mixture of experts"),
            ("t5", "cross-attention"),
            ("qwen2_5_vl", "images"),
            ("bloom", "ALiBi"),
            ("gptj", "neighbouring channels"),
            ("gpt_neo", "local layers"),
            ("olmo", "norms have no weights"),
            ("phi", "side by side"),
            ("deberta-v2", "relative positions"),
            ("never-heard-of", "its parts are not known here"),
        ] {
            let message = find(model_type).unwrap_err().to_string();
            for part in [model_type, reason, "gemma3_text", "modernbert", "src/model/families"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
