//! The GPT family and BERT as configurations: the sizes of the published models, with the published numbers of
//! parameters.

use super::families::{self, Pooler};
use crate::model::{Activation, Arch, ModelConfig, PositionKind, Switches, names};

/// A published architecture.
#[derive(Clone, Debug)]
pub struct Preset {
    pub name: &'static str,
    pub title: &'static str,
    pub config: ModelConfig,
    /// The published number of parameters, as rounded by its authors.
    pub published: &'static str,
    /// Number of parameters of the published architecture, where this crate's blocks differ from it.
    pub original: Option<u64>,
    /// A note on the difference between the numbers.
    pub note: &'static str,
}

/// Parameters of a model with its language-model head; BERT's pooler counts, its masked-LM head does not.
pub fn parameters(config: &ModelConfig) -> u64 {
    let backbone: u64 = names::backbone(config).iter().map(|(_, shape)| product(shape)).sum();
    let (d, vocab) = (config.hidden_size as u64, config.vocab_size as u64);
    let extra = match config.family().encoder_heads() {
        // Poolers that belong to a task's head are not counted.
        Some(heads) if heads.pooler == Pooler::Tanh("bert.pooler.dense") => d * d + d,
        Some(_) => 0,
        None if config.tie_embeddings => 0,
        None => d * vocab,
    };
    backbone + extra
}

/// Weights of the matrices of all blocks.
pub fn block_parameters(config: &ModelConfig) -> u64 {
    let one = families::block_matrices(config).into_iter().map(|(out, input)| (out * input) as u64).sum::<u64>();
    config.n_layers as u64 * one
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().map(|n| *n as u64).product()
}

/// Every preset, in the order of their publication.
pub fn all() -> Vec<Preset> {
    let mut list = vec![
        Preset {
            original: Some(116_534_784),
            ..gpt(
                "gpt1",
                "GPT-1",
                (12, 768, 12, 512, 40_478),
                "117M",
                "trained here with GPT-2's block: the norm before each part, and a last one (1 536 more)",
            )
        },
        bert("bert-base", "BERT base", (12, 768, 12), "110M", "uncased vocabulary, with the pooler"),
        bert("bert-large", "BERT large", (24, 1024, 16), "340M", "uncased vocabulary, with the pooler"),
        gpt(
            "gpt2",
            "GPT-2 small",
            (12, 768, 12, 1024, 50_257),
            "124M",
            "the paper says 117M; the released weights count",
        ),
        gpt("gpt2-medium", "GPT-2 medium", (24, 1024, 16, 1024, 50_257), "355M", "the paper says 345M"),
        gpt("gpt2-large", "GPT-2 large", (36, 1280, 20, 1024, 50_257), "774M", "the paper says 762M"),
        gpt("gpt2-xl", "GPT-2 XL", (48, 1600, 25, 1024, 50_257), "1.5B", "the paper says 1542M"),
    ];
    let gpt3 = [
        ("gpt3-small", "GPT-3 Small", (12, 768, 12), "125M", ""),
        ("gpt3-medium", "GPT-3 Medium", (24, 1024, 16), "350M", "356M by count"),
        ("gpt3-large", "GPT-3 Large", (24, 1536, 16), "760M", ""),
        (
            "gpt3-xl",
            "GPT-3 XL",
            (24, 2048, 16),
            "1.3B",
            "the paper prints 24 heads of 128, which are not 2048 channels; 16 heads are, and give the printed size",
        ),
        ("gpt3-2.7b", "GPT-3 2.7B", (32, 2560, 32), "2.7B", ""),
        ("gpt3-6.7b", "GPT-3 6.7B", (32, 4096, 32), "6.7B", ""),
        (
            "gpt3-13b",
            "GPT-3 13B",
            (40, 5120, 40),
            "13.0B",
            "the paper prints 5140 channels, which do not divide into its 40 heads of 128; 5120 do (12.85B)",
        ),
        ("gpt3-175b", "GPT-3 175B", (96, 12_288, 96), "175.0B", "174.6B by count; the paper rounds"),
    ];
    list.extend(gpt3.map(|(name, title, (layers, d, heads), published, note)| {
        gpt(name, title, (layers, d, heads, 2048, 50_257), published, note)
    }));
    list.extend([
        smollm2("smollm2-135m", "SmolLM2 135M", (30, 576, 9, 3, 1536), 100_000.0, "135M"),
        smollm2("smollm2-360m", "SmolLM2 360M", (32, 960, 15, 5, 2560), 100_000.0, "360M"),
        smollm2("smollm2-1.7b", "SmolLM2 1.7B", (24, 2048, 32, 32, 8192), 130_000.0, "1.7B"),
    ]);
    list
}

/// The preset with a name.
pub fn find(name: &str) -> Option<Preset> {
    all().into_iter().find(|p| p.name == name)
}

/// `shape`: layers, channels, heads, positions, vocabulary.
fn gpt(
    name: &'static str,
    title: &'static str,
    shape: (usize, usize, usize, usize, usize),
    published: &'static str,
    note: &'static str,
) -> Preset {
    let (n_layers, hidden_size, n_heads, max_positions, vocab_size) = shape;
    let config = ModelConfig {
        arch: Arch::Gpt2,
        vocab_size,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: hidden_size / n_heads,
        max_positions,
        norm_eps: 1e-5,
        activation: Activation::GeluTanh,
        position: PositionKind::Learned,
        qkv_bias: true,
        tie_embeddings: true,
        type_vocab_size: 0,
        bos_id: None,
        eos_ids: Vec::new(),
        pad_id: None,
        switches: Switches { out_bias: true, mlp_bias: true, ..Switches::default() },
    };
    Preset { name, title, config, published, original: None, note }
}

fn bert(
    name: &'static str,
    title: &'static str,
    (layers, d, heads): (usize, usize, usize),
    published: &'static str,
    note: &'static str,
) -> Preset {
    let preset = gpt(name, title, (layers, d, heads, 512, 30_522), published, note);
    let config = ModelConfig {
        arch: Arch::Bert,
        norm_eps: 1e-12,
        activation: Activation::GeluErf,
        type_vocab_size: 2,
        ..preset.config
    };
    Preset { config, ..preset }
}

/// `shape`: layers, channels, heads, key heads, inner channels.
fn smollm2(
    name: &'static str,
    title: &'static str,
    shape: (usize, usize, usize, usize, usize),
    theta: f64,
    published: &'static str,
) -> Preset {
    let (n_layers, d, n_heads, n_kv_heads, intermediate_size) = shape;
    let preset = gpt(name, title, (n_layers, d, n_heads, 8192, 49_152), published, "");
    let config = ModelConfig {
        arch: Arch::Llama,
        intermediate_size,
        n_kv_heads,
        activation: Activation::Silu,
        position: PositionKind::Rope { theta },
        qkv_bias: false,
        switches: Switches::default(),
        ..preset.config
    };
    Preset { config, ..preset }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the released checkpoints, and of the papers' tables by their formula.
    #[test]
    fn counts_are_the_published_ones() {
        for (name, count) in [
            ("gpt1", 116_534_784 + 2 * 768),
            ("bert-base", 109_482_240),
            ("bert-large", 335_141_888),
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("gpt2-xl", 1_557_611_200),
            ("smollm2-135m", 134_515_008),
            ("smollm2-360m", 361_821_120),
            ("smollm2-1.7b", 1_711_376_384),
        ] {
            let preset = find(name).unwrap_or_else(|| panic!("no preset {name}"));
            assert_eq!(parameters(&preset.config), count, "{name}");
        }
    }

    /// 12·L·d² + 13·L·d for the blocks, and embeddings: within the paper's own rounding.
    #[test]
    fn gpt3_agrees_with_its_table() {
        let sizes = [125e6, 350e6, 760e6, 1.3e9, 2.7e9, 6.7e9, 13.0e9, 175.0e9];
        let presets: Vec<Preset> = all().into_iter().filter(|p| p.name.starts_with("gpt3")).collect();
        assert_eq!(presets.len(), sizes.len());
        for (preset, published) in presets.iter().zip(sizes) {
            let (l, d) = (preset.config.n_layers as u64, preset.config.hidden_size as u64);
            let formula = 12 * l * d * d + 13 * l * d + 2 * d + (50_257 + 2048) * d;
            let count = parameters(&preset.config);
            assert_eq!(count, formula, "{}", preset.name);
            assert!((count as f64 / published - 1.0).abs() < 0.02, "{}: {count}", preset.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().iter().map(|p| p.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }
}
