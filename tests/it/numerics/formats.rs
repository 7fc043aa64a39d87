//! Serving formats: how far each is from f32, that company and caching change nothing in any of them, and
//! that blocks of a GGUF file are served as they are.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::gguf::write::{self, Meta};
use instructd::model::{Decoder, Loaded, ModelConfig, Opened, PackedBatch, Purpose, load, open};
use instructd::ops::blocks::BlockType;
use instructd::ops::kv_blocks::KvFormat;
use instructd::ops::linear::WeightFormat;

use crate::support::fixtures;

fn tiny(name: &str) -> Loaded {
    load(&fixtures().join(name), &Device::Cpu).unwrap()
}

fn opened(name: &str) -> Opened {
    open(&fixtures().join(name)).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    (0..5u32).map(|i| (0..7 + 8 * i).map(|t| (t * 7 + i * 13) % 96).collect()).collect()
}

pub(super) fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn logits(decoder: &Decoder, sequences: &[Vec<u32>]) -> Vec<f32> {
    flat(&decoder.logits(&decoder.forward(&PackedBatch::new(sequences)).unwrap()).unwrap())
}

/// Root mean square of the difference, relative to that of `want`.
pub(super) fn distance(got: &[f32], want: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let difference: f32 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (difference / want.iter().map(|w| square(*w)).sum::<f32>()).sqrt()
}

#[test]
fn every_format_is_within_its_bound_of_f32() {
    for name in ["gpt2-tiny", "llama-tied-tiny", "qwen2-tiny"].into_iter().chain(crate::support::UNLIKE) {
        let loaded = tiny(name);
        let exact = logits(&Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap(), &sequences());
        for (format, most, least) in [
            (WeightFormat::F32, 0.0, 0.0),
            (WeightFormat::File, 0.0, 0.0),
            (WeightFormat::Exact, 0.0, 0.0),
            (WeightFormat::F16, 0.002, 1e-7),
            (WeightFormat::Bf16, 0.02, 1e-5),
            (WeightFormat::Q8_0, 0.04, 1e-4),
            (WeightFormat::Q4_1, 0.4, 1e-3),
        ] {
            let far = distance(&logits(&Decoder::serve(&opened(name), format).unwrap(), &sequences()), &exact);
            assert!((least..=most).contains(&far), "{name} {}: {far}", format.as_str());
        }
    }
}

#[test]
fn every_format_is_batch_invariant_and_cacheable() {
    let loaded = tiny("llama-tiny");
    let sequences = sequences();
    for format in WeightFormat::ALL {
        let decoder = Decoder::serve(&opened("llama-tiny"), format).unwrap();
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

#[test]
fn a_cache_in_fewer_bits_takes_less_memory() {
    // The shape of SmolLM2 135M: 30 layers, 3 key/value heads of 64 dimensions.
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    });
    let config = ModelConfig::from_hf(&config, None).unwrap();
    let numbers = 2 * 30 * 3 * 64 * 1024;
    for (format, bytes) in
        [(KvFormat::F32, 4 * numbers), (KvFormat::F16, 2 * numbers), (KvFormat::Q8_0, numbers * 9 / 8)]
    {
        assert_eq!(KvCache::with_format(&config, format, 1024, 1024).bytes(), bytes, "{}", format.as_str());
    }
    assert_eq!(KvCache::on_device(1024).bytes(), 0);
}

/// Sizes of a Llama with four heads.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    /// Channels, a multiple of 256.
    pub d: usize,
    /// Channels inside the feed-forward network.
    pub inner: usize,
    pub vocab: usize,
    pub blocks: usize,
    /// Whether the output matrix is another one than the word vectors.
    pub untied: bool,
}

/// A Llama of one block whose matrices are stored as `kind`, except `odd`, stored as Q5_0.
fn gguf(kind: BlockType, odd: &str) -> Vec<u8> {
    llama(Sizes { d: 256, inner: 256, vocab: 96, blocks: 1, untied: false }, kind, odd)
}

/// A GGUF file of a Llama whose matrices are noise stored as `kind`, except the tensor `odd`, stored as Q5_0.
pub(crate) fn llama(Sizes { d, inner, vocab, blocks, untied }: Sizes, kind: BlockType, odd: &str) -> Vec<u8> {
    let mut shapes = vec![("token_embd.weight".to_owned(), vec![vocab, d]), ("output_norm.weight".to_owned(), vec![d])];
    if untied {
        shapes.push(("output.weight".to_owned(), vec![vocab, d]));
    }
    for block in 0..blocks {
        let parts: [(&str, &[usize]); 9] = [
            ("attn_norm", &[d]),
            ("ffn_norm", &[d]),
            ("attn_q", &[d, d]),
            ("attn_k", &[d / 2, d]),
            ("attn_v", &[d / 2, d]),
            ("attn_output", &[d, d]),
            ("ffn_gate", &[inner, d]),
            ("ffn_up", &[inner, d]),
            ("ffn_down", &[d, inner]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("blk.{block}.{name}.weight"), shape.to_vec())));
    }
    let kind_of = |name: &str, shape: &[usize]| match shape.len() {
        1 => BlockType::F32,
        _ if name == odd => BlockType::Q5_0,
        _ => kind,
    };
    let table: Vec<write::Tensor> =
        shapes.into_iter().map(|(name, shape)| write::Tensor { kind: kind_of(&name, &shape), name, shape }).collect();
    let count = |key: &str, n: usize| (format!("llama.{key}"), Meta::U32(n as u32));
    let metadata = [
        ("general.architecture".to_owned(), Meta::Str("llama".into())),
        count("embedding_length", d),
        count("feed_forward_length", inner),
        count("block_count", blocks),
        count("attention.head_count", 4),
        count("attention.head_count_kv", 2),
        count("context_length", 64),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Meta::F32(1e-5)),
    ];
    let mut file = Vec::new();
    write::write(&mut file, &metadata, &table, |i| Ok(stored(&table[i], i))).unwrap();
    file
}

/// The bytes of noise in ±0.1 as `tensor` is stored.
fn stored(tensor: &write::Tensor, seed: usize) -> Vec<u8> {
    let n: usize = tensor.shape.iter().product();
    let noise: Vec<f32> = (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0) * 0.1).collect();
    let dtype = match tensor.kind {
        BlockType::F32 => GgmlDType::F32,
        BlockType::F16 => GgmlDType::F16,
        BlockType::BF16 => GgmlDType::BF16,
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2K => GgmlDType::Q2K,
        BlockType::Q3K => GgmlDType::Q3K,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q5K => GgmlDType::Q5K,
        BlockType::Q6K => GgmlDType::Q6K,
        // candle does not write these: any steps do, with scales that give values of the same size.
        BlockType::IQ4NL => return steps(n / 32, |i| half(0.1 / 113.0 * (0.5 + (i % 5) as f32 / 8.0)), 16, seed),
        BlockType::IQ4XS => {
            // Every one of the eight six-bit scales is 32 + 17.
            let head = |i: usize| {
                let high: u16 = (0..8).map(|j| (49 >> 4) << (2 * j)).sum();
                let low = (49u8 & 15) | (49 & 15) << 4;
                [half(0.1 / 113.0 / 17.0 * (0.5 + (i % 5) as f32 / 8.0)), high.to_le_bytes().to_vec(), vec![low; 4]]
                    .concat()
            };
            return steps(n / 256, head, 128, seed);
        }
    };
    let w = Tensor::from_vec(noise, tensor.shape.as_slice(), &Device::Cpu).unwrap();
    QTensor::quantize(&w, dtype).unwrap().data().unwrap().into_owned()
}

fn half(x: f32) -> Vec<u8> {
    half::f16::from_f32(x).to_le_bytes().to_vec()
}

/// Blocks of a head and as many bytes of steps.
fn steps(blocks: usize, head: impl Fn(usize) -> Vec<u8>, bytes: usize, seed: usize) -> Vec<u8> {
    let byte = |i: usize| (i * 7919 + seed * 104_729 + i / 7 * 31) as u8;
    (0..blocks).flat_map(|b| [head(b), (0..bytes).map(|i| byte(b * bytes + i)).collect()].concat()).collect()
}

#[test]
fn every_type_of_a_gguf_file_is_served_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for kind in BlockType::ALL {
        // A tensor of another kind among q, k, v: they stay apart.
        for odd in ["", "blk.0.attn_v.weight"] {
            let path = dir.path().join("model.gguf");
            std::fs::write(&path, gguf(kind, odd)).unwrap();
            let opened = open(&path).unwrap();
            // What the file's numbers give exactly, and what rounding activations to eight bits costs alone.
            let exact = logits(&Decoder::serve(&opened, WeightFormat::F32).unwrap(), &sequences());
            let in_blocks = logits(&Decoder::serve(&opened, WeightFormat::Exact).unwrap(), &sequences());
            assert!(in_blocks == exact, "{kind:?} {odd}: the bits of f32, without a matrix in f32");
            let decoder = Decoder::serve(&opened, WeightFormat::File).unwrap();
            let served = logits(&decoder, &sequences());
            let far = distance(&served, &exact);
            let most = if kind.quantised() || !odd.is_empty() { 0.02 } else { 1e-6 };
            assert!(far <= most, "{kind:?} {odd}: {far}");
            assert_eq!(far > 0.0, kind.quantised() || !odd.is_empty(), "{kind:?} {odd}: {far}");
            let alone: Vec<f32> = sequences().iter().flat_map(|s| logits(&decoder, std::slice::from_ref(s))).collect();
            assert_eq!(alone, served, "{kind:?}: company changes nothing");
        }
    }
}
