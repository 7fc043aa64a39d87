//! Serving formats: how far each is from f32, that company and caching change nothing in any of them, and
//! that blocks of a GGUF file are served as they are.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use instructd::model::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::{Decoder, Loaded, PackedBatch, Purpose, load};
use instructd::ops::linear::WeightFormat;

use crate::support::fixtures;

fn tiny(name: &str) -> Loaded {
    load(&fixtures().join(name), &Device::Cpu).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    (0..5u32).map(|i| (0..7 + 8 * i).map(|t| (t * 7 + i * 13) % 96).collect()).collect()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn logits(decoder: &Decoder, sequences: &[Vec<u32>]) -> Vec<f32> {
    flat(&decoder.logits(&decoder.forward(&PackedBatch::new(sequences)).unwrap()).unwrap())
}

/// Root mean square of the difference, relative to that of `want`.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let difference: f32 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (difference / want.iter().map(|w| square(*w)).sum::<f32>()).sqrt()
}

#[test]
fn every_format_is_as_near_to_f32_as_its_bits_allow() {
    for name in ["gpt2-tiny", "llama-tied-tiny", "qwen2-tiny"].into_iter().chain(crate::support::UNLIKE) {
        let loaded = tiny(name);
        let exact = logits(&Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap(), &sequences());
        for (format, most, least) in [
            (WeightFormat::F32, 0.0, 0.0),
            (WeightFormat::File, 0.0, 0.0),
            (WeightFormat::F16, 0.002, 1e-7),
            (WeightFormat::Bf16, 0.02, 1e-5),
            (WeightFormat::Q8_0, 0.04, 1e-4),
            (WeightFormat::Q4_1, 0.4, 1e-3),
        ] {
            let far = distance(&logits(&Decoder::serve(&loaded, format).unwrap(), &sequences()), &exact);
            assert!((least..=most).contains(&far), "{name} {}: {far}", format.as_str());
        }
    }
}

#[test]
fn in_every_format_company_and_caching_change_nothing() {
    let loaded = tiny("llama-tiny");
    let sequences = sequences();
    for format in WeightFormat::ALL {
        let decoder = Decoder::serve(&loaded, format).unwrap();
        let together = flat(&decoder.forward(&PackedBatch::new(&sequences)).unwrap());
        let alone: Vec<f32> = sequences
            .iter()
            .flat_map(|s| flat(&decoder.forward(&PackedBatch::new(std::slice::from_ref(s))).unwrap()))
            .collect();
        assert_eq!(together, alone, "{}", format.as_str());
        let mut cache = KvCache::new(&loaded.config, 64);
        let (mut cached, mut stepped, s) = (CachedSequence::default(), Vec::new(), &sequences[2]);
        for chunk in s.chunks(5) {
            let mut rows = StepRows::default();
            assert!(cache.reserve(&mut cached, chunk.len()));
            rows.push(chunk, &cached);
            stepped.extend(flat(&decoder.step(&rows, &mut cache).unwrap()));
            cached.len += chunk.len();
        }
        let d = loaded.config.hidden_size;
        let before: usize = sequences[..2].iter().map(Vec::len).sum();
        assert_eq!(stepped, alone[before * d..(before + s.len()) * d], "{}", format.as_str());
    }
}

/// A Llama of one block whose matrices are stored as `dtype`, except `odd`, stored as Q5_0.
fn gguf(dtype: GgmlDType, odd: &str) -> Vec<u8> {
    let (d, inner, vocab) = (256usize, 256usize, 96usize);
    let noise = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0) * 0.1).collect()
    };
    let tensor = |name: &str, dims: &[usize], seed: usize| {
        let w = Tensor::from_vec(noise(dims.iter().product(), seed), dims, &Device::Cpu).unwrap();
        let kind = match (dims.len(), name == odd) {
            (1, _) => GgmlDType::F32,
            (_, true) => GgmlDType::Q5_0,
            _ => dtype,
        };
        (name.to_owned(), QTensor::quantize(&w, kind).unwrap())
    };
    let tensors = [
        tensor("token_embd.weight", &[vocab, d], 1),
        tensor("output_norm.weight", &[d], 2),
        tensor("blk.0.attn_norm.weight", &[d], 3),
        tensor("blk.0.ffn_norm.weight", &[d], 4),
        tensor("blk.0.attn_q.weight", &[d, d], 5),
        tensor("blk.0.attn_k.weight", &[d / 2, d], 6),
        tensor("blk.0.attn_v.weight", &[d / 2, d], 7),
        tensor("blk.0.attn_output.weight", &[d, d], 8),
        tensor("blk.0.ffn_gate.weight", &[inner, d], 9),
        tensor("blk.0.ffn_up.weight", &[inner, d], 10),
        tensor("blk.0.ffn_down.weight", &[d, inner], 11),
    ];
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.embedding_length", Value::U32(d as u32)),
        ("llama.feed_forward_length", Value::U32(inner as u32)),
        ("llama.block_count", Value::U32(1)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.context_length", Value::U32(64)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

#[test]
fn blocks_of_a_gguf_file_are_served_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q4K] {
        // A tensor of another kind among q, k, v: they stay apart, and that one is served in eight bits.
        for odd in ["", "blk.0.attn_v.weight"] {
            let path = dir.path().join("model.gguf");
            std::fs::write(&path, gguf(dtype, odd)).unwrap();
            let loaded = load(&path, &Device::Cpu).unwrap();
            // What the file's numbers give exactly, and what rounding activations to eight bits costs alone.
            let exact = logits(&Decoder::serve(&loaded, WeightFormat::F32).unwrap(), &sequences());
            let served = logits(&Decoder::serve(&loaded, WeightFormat::File).unwrap(), &sequences());
            let far = distance(&served, &exact);
            assert!(far > 0.0 && far < 0.02, "{dtype:?} {odd}: {far}");
        }
    }
}
