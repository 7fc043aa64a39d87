//! Exported files in the `gguf` package and in llama.cpp, where `INSTRUCTD_TEST_LLAMA_CPP` names a Python that has
//! `gguf` and `xllamacpp`.

use candle_core::{Device, Tensor};
use instructd::generation::{GenParams, Warpers, generate};
use instructd::model::gguf::export::{GgufFormat, export};
use instructd::model::{self, Arch, Decoder, Loaded, Purpose};
use serde_json::{Map, Value, json};

use super::gguf::{NO_PLACE, tiny_models};
use super::tokens::byte_tokenizer;
use crate::support::noise;

/// Models that llama.cpp computes otherwise, or not: it ignores windows of Mistral and Phi-3, takes Phi-3's long factors
/// whenever the context is longer than the original one, and rejects an odd number of rotary channels.
const OTHERWISE: [&str; 5] = ["mistral-window", "mistral-head", "phi4-mini", "phi3-longrope", "gpt-neox"];
const VOCABULARY: usize = 264;
/// Tensors with a row for every token.
const TABLES: [&str; 4] = ["embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.weight"];

/// A tiny model with a vocabulary of bytes: llama.cpp opens no file without one.
fn with_bytes(path: &std::path::Path) -> Option<Loaded> {
    let mut loaded = model::load(path, &Device::Cpu).unwrap();
    let words = loaded.config.vocab_size;
    let config = &mut loaded.config;
    if config.is_encoder() || config.arch == Arch::Gemma {
        return None;
    }
    if matches!(config.arch, Arch::Gemma2 | Arch::Gemma3) {
        config.switches.attention_scale = Some((config.head_dim as f64).powf(-0.5));
    }
    let tables = loaded.weights.iter_mut().filter(|(name, _)| TABLES.iter().any(|table| name.ends_with(table)));
    for (i, (_, tensor)) in tables.enumerate() {
        let (more, width) = (VOCABULARY - words, tensor.dims().iter().skip(1).product::<usize>());
        let rows = Tensor::from_vec(noise(more * width, i as u64 + 1), (more, width), &Device::Cpu).unwrap();
        let rows = (rows * 0.4).unwrap();
        *tensor = Tensor::cat(&[&tensor.clone(), &rows], 0).unwrap();
    }
    config.vocab_size = VOCABULARY;
    loaded.tokenizer = Some(byte_tokenizer());
    Some(loaded)
}

#[test]
fn exported_files_give_the_same_tokens_in_llama_cpp() {
    let Some(python) = std::env::var_os("INSTRUCTD_TEST_LLAMA_CPP") else {
        eprintln!("skipped: INSTRUCTD_TEST_LLAMA_CPP names no Python with gguf and xllamacpp");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Map::new();
    for path in tiny_models() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if NO_PLACE.iter().any(|(known, _)| *known == name) || OTHERWISE.contains(&name.as_str()) {
            continue;
        }
        let Some(loaded) = with_bytes(&path) else { continue };
        for format in [GgufFormat::F16, GgufFormat::Q8_0] {
            let file = format!("{name}-{}.gguf", format.as_str());
            // Not the fixture's name: llama.cpp expects special tokens of a model that is called Phi-3.
            export(&loaded, "tiny", &dir.path().join(&file), format).unwrap();
            // The numbers that the file holds.
            let again = model::load(&dir.path().join(&file), &Device::Cpu).unwrap();
            let decoder = Decoder::new(&again.config, &again.weights, Purpose::Serve).unwrap();
            let prompt: Vec<u32> = (0..9).map(|i| 2 + (i * 37 + 11) % 250).collect();
            let params = GenParams {
                max_new_tokens: 12,
                warpers: Warpers { temperature: 0.0, ..Warpers::default() },
                ..GenParams::default()
            };
            let sample = generate(&decoder, std::slice::from_ref(&prompt), &params, &|| false).unwrap().remove(0);
            expected.insert(file, json!({"prompt": prompt, "greedy": sample.ids, "logprobs": sample.logprobs}));
        }
    }
    assert!(expected.len() > 30);
    std::fs::write(dir.path().join("expected.json"), Value::from(expected).to_string()).unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/exported_gguf.py");
    let run = std::process::Command::new(python).arg(script).arg(dir.path()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&run.stdout));
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
