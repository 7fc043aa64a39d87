//! Damaged and hostile model files are refused with an error: no panic, no huge allocation.

use std::path::Path;

use candle_core::Device;
use instructd::model;
use proptest::prelude::*;

use super::super::support::{copy_dir, fixture};

fn refused(path: &Path) -> String {
    match model::load(path, &Device::Cpu) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}

/// A fixture directory whose model.safetensors is `bytes`.
fn with_weights(bytes: &[u8]) -> tempfile::TempDir {
    let dir = copy_dir(&fixture("llama-tiny"));
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn good_weights() -> Vec<u8> {
    std::fs::read(fixture("llama-tiny").join("model.safetensors")).unwrap()
}

fn header(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn damaged_safetensors() {
    let good = good_weights();
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("short length", vec![1, 2, 3]),
        ("cut in the header", good[..100].to_vec()),
        ("cut in the data", good[..good.len() - 1].to_vec()),
        ("header of 2^63 bytes", [(1u64 << 63).to_le_bytes().as_slice(), &good[8..]].concat()),
        ("header of u64::MAX bytes", [u64::MAX.to_le_bytes().as_slice(), &good[8..]].concat()),
        ("not JSON", header("{not json", 0)),
        ("offsets past the end", header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8)),
        ("offsets reversed", header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16)),
        ("shape and offsets disagree", header(r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#, 16)),
        (
            "shape overflows",
            header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}}"#, 16),
        ),
        ("no tensors", header("{}", 0)),
    ] {
        let dir = with_weights(&bytes);
        let error = refused(dir.path());
        assert!(
            error.contains("llama") || error.contains("model.safetensors") || error.contains("tensor"),
            "{what}: {error}"
        );
    }
}

#[test]
fn damaged_directories() {
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path()).contains("config.json"));
    assert!(refused(&empty.path().join("nothing-here")).contains("nothing-here"));
    for (file, text, word) in [
        ("config.json", "{", "not JSON"),
        ("config.json", "[]", "model_type"),
        ("config.json", r#"{"model_type": "llama", "hidden_size": "x"}"#, "hidden_size"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer.json", r#"{"model": {"type": "BPE"}}"#, "tokenizer"),
        ("instructd.json", "nope", "not JSON"),
        ("generation_config.json", r#"{"eos_token_id": "two"}"#, "eos_token_id"),
    ] {
        let dir = copy_dir(&fixture("llama-tiny"));
        std::fs::write(dir.path().join(file), text).unwrap();
        let error = refused(dir.path());
        assert!(error.contains(word), "{file} = {text}: {error}");
    }
    // Sound by itself, but not what the weights are.
    let dir = copy_dir(&fixture("llama-tiny"));
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("\"vocab_size\": 96", "\"vocab_size\": 97");
    std::fs::write(&path, text).unwrap();
    assert!(refused(dir.path()).contains("model.embed_tokens.weight"));
}

/// Writes GGUF headers.
#[derive(Default)]
struct Gguf(Vec<u8>);

impl Gguf {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut out = Self(b"GGUF".to_vec());
        out.u32(3);
        out.u64(tensors);
        out.u64(keys);
        out
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn str(&mut self, s: &str) -> &mut Self {
        self.u64(s.len() as u64);
        self.0.extend(s.as_bytes());
        self
    }
    fn key_u32(&mut self, key: &str, v: u32) -> &mut Self {
        self.str(key).u32(4).u32(v)
    }
    fn key_str(&mut self, key: &str, v: &str) -> &mut Self {
        self.str(key).u32(8).str(v)
    }
    fn tensor(&mut self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> &mut Self {
        self.str(name).u32(dims.len() as u32);
        for d in dims {
            self.u64(*d);
        }
        self.u32(dtype).u64(offset)
    }
    fn refused(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, &self.0).unwrap();
        refused(&path)
    }
}

#[test]
fn damaged_gguf() {
    assert!(Gguf(Vec::new()).refused().contains("ends inside"));
    assert!(Gguf(b"GGML\x03\0\0\0".to_vec()).refused().contains("begin with GGUF"));
    assert!(Gguf::new(u64::MAX, 0).refused().contains("tensors"));
    assert!(Gguf::new(0, u64::MAX).refused().contains("metadata"));
    assert!(Gguf::new(0, 5).refused().contains("ends inside"));
    assert!(Gguf::new(0, 1).u64(u64::MAX).refused().contains("ends inside"));
    let mut endless = Gguf::new(0, 1);
    endless.str("k").u32(9).u32(0).u64(u64::MAX);
    assert!(endless.refused().contains("ends inside"));
    let mut nested = Gguf::new(0, 1);
    nested.str("k").u32(9);
    for _ in 0..100 {
        nested.u32(9).u64(1);
    }
    assert!(nested.refused().contains("metadata"));
    let mut unaligned = Gguf::new(0, 1);
    unaligned.key_u32("general.alignment", 0);
    assert!(unaligned.refused().contains("alignment"));
    let mut other = Gguf::new(0, 1);
    other.key_str("general.architecture", "mamba");
    assert!(other.refused().contains("mamba"));
}

#[test]
fn damaged_gguf_tensors() {
    for (dims, dtype, offset, word) in [
        (vec![u64::MAX, u64::MAX], 0, 0, "shape"),
        (vec![1 << 40, 1 << 40], 0, 0, "shape"),
        (vec![0, 4], 0, 0, "shape"),
        (vec![31, 4], 3, 0, "shape"),
        (vec![32, 4], 99, 0, "quantisation"),
        (vec![32, 4], 0, u64::MAX, "outside"),
        (vec![32, 4], 0, 1 << 40, "outside"),
        (vec![1; 5], 0, 0, "dimensions"),
        (vec![], 0, 0, "dimensions"),
    ] {
        let mut file = Gguf::new(1, 0);
        file.tensor("token_embd.weight", &dims, dtype, offset);
        let error = file.refused();
        assert!(error.contains(word), "{dims:?}: {error}");
    }
    let mut twice = Gguf::new(2, 0);
    twice.tensor("a", &[1], 0, 0).tensor("a", &[1], 0, 0);
    twice.0.extend([0; 64]);
    assert!(twice.refused().contains("twice"));
}

/// A whole, tiny Llama in GGUF: one layer, 8 channels, byte-level vocabulary of three tokens.
pub fn tiny_gguf() -> Vec<u8> {
    let shapes: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[8, 3]),
        ("output_norm.weight", &[8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ];
    let mut file = Gguf::new(shapes.len() as u64, 12);
    file.key_str("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", 8),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        file.key_u32(&format!("llama.{key}"), value);
    }
    file.key_str("tokenizer.ggml.model", "gpt2").key_str("tokenizer.ggml.pre", "smollm");
    file.key_u32("tokenizer.ggml.eos_token_id", 2);
    file.str("tokenizer.ggml.tokens").u32(9).u32(8).u64(3).str("a").str("b").str("ab");
    file.str("tokenizer.ggml.merges").u32(9).u32(8).u64(1).str("a b");
    let mut offset = 0;
    for (name, dims) in shapes {
        file.tensor(name, dims, 0, offset);
        offset += (dims.iter().product::<u64>() * 4).next_multiple_of(32);
    }
    let start = file.0.len().next_multiple_of(32);
    file.0.resize(start, 0);
    for i in 0..offset / 4 {
        file.0.extend((i as f32).to_le_bytes());
    }
    file.0
}

#[test]
fn q_and_k_rows_are_put_back_into_halves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, tiny_gguf()).unwrap();
    let loaded = model::load(&path, &Device::Cpu).unwrap();
    let first_column = |name: &str| -> Vec<f32> {
        let rows = loaded.weights[name].to_vec2::<f32>().unwrap();
        rows.iter().map(|row| (row[0] - rows[0][0]) / 8.0).collect()
    };
    // Two heads of four rows: pairs (0,1)(2,3) become halves (0,2)(1,3).
    assert_eq!(first_column("model.layers.0.self_attn.q_proj.weight"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(first_column("model.layers.0.self_attn.k_proj.weight"), [0., 2., 1., 3.]);
    assert_eq!(first_column("model.layers.0.self_attn.v_proj.weight"), [0., 1., 2., 3.]);
    let tokenizer = loaded.tokenizer.unwrap();
    assert_eq!(tokenizer.encode("abba", true, false).unwrap(), [2, 1, 0]);
    assert_eq!(loaded.config.eos_ids, [2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any byte changed, anywhere cut: an error or a model, never a panic.
    #[test]
    fn changed_gguf_never_panics(changes in prop::collection::vec((0usize..1200, any::<u8>()), 0..4), cut in 0usize..3000) {
        let mut bytes = tiny_gguf();
        let length = bytes.len();
        for (at, value) in changes {
            bytes[at % length] = value;
        }
        bytes.truncate(length.saturating_sub(cut.saturating_sub(1500)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let _ = model::load(&path, &Device::Cpu);
    }

    #[test]
    fn changed_safetensors_never_panics(changes in prop::collection::vec((0usize..2600, any::<u8>()), 1..4)) {
        let mut bytes = good_weights();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let dir = with_weights(&bytes);
        let _ = model::load(dir.path(), &Device::Cpu);
    }
}
