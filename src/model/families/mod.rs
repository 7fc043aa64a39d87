//! The supported model families, one table each. Loader, saver, adapters, initialisation,
//! freezing, GGUF files and the size planner read these tables; the decoder and the encoder are built from them. A new
//! family of known parts is one file here, its `mod` line and its line in `families!`.

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

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use parameters::{Parameter, Role, block_matrices, parameters};

use super::config::{Activation, ConfigError, ModelConfig};
use super::gguf::metadata::Metadata;
use super::gguf::write::Meta;
use crate::ops::linear::WeightLayout;

/// Declares the architectures and the list of their tables, in the order of messages.
macro_rules! families {
    ($($arch:ident => $table:path,)*) => {
        /// The family that defines parameter names and block layout; `Arch::family` is its table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Arch { $($arch),* }

        static ALL: &[&Family] = &[$(&$table),*];
    };
}

families! {
    Gpt2 => gpt2::GPT2,
    Llama => llama::LLAMA,
    Mistral => mistral::MISTRAL,
    Qwen2 => qwen::QWEN2,
    Qwen3 => qwen::QWEN3,
    Gemma => gemma::GEMMA,
    Gemma2 => gemma::GEMMA2,
    Gemma3 => gemma::GEMMA3,
    SmolLm3 => smollm3::SMOLLM3,
    Olmo2 => olmo2::OLMO2,
    Phi3 => phi3::PHI3,
    Granite => granite::GRANITE,
    GptNeox => gpt_neox::GPT_NEOX,
    Bert => bert::BERT,
    Roberta => roberta::ROBERTA,
    XlmRoberta => roberta::XLM_ROBERTA,
    DistilBert => distilbert::DISTILBERT,
    ModernBert => modernbert::MODERNBERT,
}

/// The table of a family: names of its modules and their arrangement. Module names are those of Hugging Face's files,
/// without `.weight` and `.bias`.
#[derive(Debug)]
pub struct Family {
    pub arch: Arch,
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// First part of transformers' class names, as in `LlamaForCausalLM`.
    pub class: &'static str,
    /// Reads config.json, without token ids.
    pub read: fn(&Value) -> Result<ModelConfig, ConfigError>,
    /// Prefix of all parameters except heads.
    pub base: &'static str,
    pub words: &'static str,
    /// Module of learned positions, if there are any.
    pub positions: Option<&'static str>,
    /// Module of an encoder's segments.
    pub segments: Option<&'static str>,
    pub embed_norm: Option<&'static str>,
    /// Prefix of the blocks, before their number.
    pub blocks: &'static str,
    pub block: Block,
    pub final_norm: Option<&'static str>,
    pub norm: NormKind,
    /// The layout of matrices in the file.
    pub layout: WeightLayout,
    /// The heads on the backbone.
    pub heads: Heads,
    /// Whether the padding token's input embedding trains. transformers gives that row no gradient in most families.
    pub padding_trains: bool,
    /// The family's GGUF files; `None` where they are neither read nor written.
    pub gguf: Option<Gguf>,
}

/// A function that passes each entry of a model's GGUF metadata, by name, to its argument.
type WriteMeta = fn(&ModelConfig, &mut dyn FnMut(&str, Meta));

/// Metadata and tensor layout of llama.cpp's files of a family.
#[derive(Debug)]
pub struct Gguf {
    /// `general.architecture`. The first family of a name is the one that files of this name are read as.
    pub name: &'static str,
    /// Whether the rows of q and k are in the order of interleaved rotary pairs.
    pub interleaved: bool,
    /// Whether the files can hold biases.
    pub biases: bool,
    /// The metadata as the fields of config.json that the family's table reads.
    pub(in crate::model) read: fn(&Metadata<'_>) -> Result<Value, String>,
    /// Metadata of the family in addition to that of all families.
    pub(in crate::model) write: WriteMeta,
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

/// The positions of the norms in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and the feed-forward network.
    Before([&'static str; 2]),
    /// On the outputs of attention and the feed-forward network, before they are added.
    After([&'static str; 2]),
    /// Both: before and after attention, before and after the feed-forward network.
    Around([&'static str; 4]),
    /// On the sum, as in BERT.
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

/// The feed-forward network.
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

/// Heads on the backbone.
#[derive(Debug)]
pub enum Heads {
    Decoder {
        /// The name of the output matrix in files; `lm_head` here.
        output: &'static str,
        /// Last part of transformers' class name of the language model.
        class: &'static str,
        /// The same of the classifier of sequences.
        classifier: &'static str,
    },
    Encoder(EncoderHeads),
}

#[derive(Debug)]
pub struct EncoderHeads {
    /// Masked-LM head: a dense layer, its norm, and the bias of the tied output matrix.
    pub dense: &'static str,
    /// The activation between dense layer and norm, where it differs from that of the blocks.
    pub activation: Option<Activation>,
    pub norm: &'static str,
    pub bias: &'static str,
    /// The name of the tied output matrix, where files repeat it.
    pub decoder: &'static str,
    /// The dense layer between the first token's hidden state and the classes; with its norm in `norm` if it is the
    /// masked-LM head's own.
    pub pooler: Pooler,
    /// (name in files, name here) of modules that have another name here.
    pub renamed: &'static [(&'static str, &'static str)],
}

/// The input of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooler {
    /// A dense layer of this name, then tanh.
    Tanh(&'static str),
    /// A dense layer of this name, then max(0, x).
    Relu(&'static str),
    /// The masked-LM head's dense layer, activation and norm.
    MaskedLmHead,
}

impl EncoderHeads {
    /// Whether a parameter belongs to the layer before a classifier.
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

    /// An encoder's heads.
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

    /// transformers' class of the language model.
    pub fn causal_class(&self) -> String {
        match self.heads {
            Heads::Decoder { class, .. } => format!("{}{class}", self.class),
            Heads::Encoder(_) => format!("{}ForMaskedLM", self.class),
        }
    }

    /// transformers' class of the classifier of sequences.
    pub fn classifier_class(&self) -> String {
        match self.heads {
            Heads::Decoder { classifier, .. } => format!("{}{classifier}", self.class),
            Heads::Encoder(_) => format!("{}ForSequenceClassification", self.class),
        }
    }

    /// True for names of heads, which have no backbone prefix.
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

    /// Whether it is bidirectional and trained as a masked language model.
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

    /// The id of the token whose input embedding is not trained.
    pub fn frozen_padding(&self) -> Option<u32> {
        self.pad_id.filter(|_| !self.family().padding_trains)
    }
}

/// The family of a `model_type`.
///
/// # Errors
/// When the type is not known; the message lists the known families and the requirement of the model.
pub(super) fn find(model_type: &str) -> Result<&'static Family, ConfigError> {
    all().find(|family| family.model_type == model_type).ok_or_else(|| {
        let known = ALL.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
        let reason = read::why_not(model_type);
        ConfigError::Unsupported(format!(
            "model type {model_type:?} ({reason}; known families: {known}). A model of one of these families, or one \
             converted to it, can be served; so can a GGUF file of one. A new family of the same parts needs a table \
             of facts in src/model/families"
        ))
    })
}

/// The family of a GGUF architecture.
///
/// # Errors
/// When the architecture is not known; the message lists the known ones.
pub(super) fn of_gguf(name: &str) -> Result<(&'static Family, &'static Gguf), String> {
    let mut pairs = all().filter_map(|family| Some((family, family.gguf.as_ref()?)));
    pairs.find(|(_, gguf)| gguf.name == name).ok_or_else(|| {
        format!(
            "architecture {name:?} is not supported (known: {}). A model of one of these families, or one converted to \
             it, can be served",
            gguf_names().join(", ")
        )
    })
}

/// The architectures of GGUF files that are read and written.
pub(super) fn gguf_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for gguf in all().filter_map(|family| family.gguf.as_ref()) {
        if !names.contains(&gguf.name) {
            names.push(gguf.name);
        }
    }
    names
}

/// All families.
pub fn all() -> impl Iterator<Item = &'static Family> {
    ALL.iter().copied()
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
    fn an_unknown_model_type_is_refused_with_the_known_ones() {
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
