//! Tokens per second of the model itself, without HTTP: prefill, and decode at 1, 8 and 32 streams.
//! `INSTRUCTD_BENCH_MODEL=FILE.gguf cargo bench --bench decode`; prints one line per measurement.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{Device, Tensor};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::{Decoder, ModelConfig, open};
use instructd::ops::linear::WeightFormat;
use rayon::prelude::*;

fn step(decoder: &Decoder, cache: &mut KvCache, sequences: &mut [CachedSequence], tokens: usize) -> Vec<f32> {
    let mut rows = StepRows::default();
    let ids: Vec<u32> = (0..tokens as u32).map(|t| 1000 + t * 37 % 5000).collect();
    let mut last = Vec::new();
    for s in sequences.iter_mut() {
        assert!(cache.reserve(s, tokens), "cache too small");
        last.push(rows.push(&ids, s) as u32);
    }
    let logits = rayon::scope(|_| {
        let hidden = decoder.step(&rows, cache).expect("step");
        let picked = hidden.index_select(&Tensor::new(last, &Device::Cpu).expect("rows"), 0).expect("select");
        decoder.logits(&picked).expect("logits")
    });
    for s in sequences.iter_mut() {
        s.len += tokens;
    }
    logits.flatten_all().and_then(|l| l.to_vec1()).expect("read")
}

/// What reading memory with all threads brings, in bytes per second: the bound of decoding one stream.
fn read_bandwidth() -> f64 {
    let data = vec![1u64; 64 << 20];
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let sum: u64 = data.par_chunks(1 << 20).map(|c| c.iter().fold(0u64, |a, v| a.wrapping_add(*v))).sum();
        assert_eq!(sum, data.len() as u64);
        best = best.max((data.len() * 8) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

fn measure(decoder: &Decoder, config: &ModelConfig, kind: &str) {
    for streams in [1usize, 8, 32] {
        let mut cache = KvCache::new(config, streams * 224);
        let mut sequences: Vec<_> = (0..streams).map(|_| CachedSequence::default()).collect();
        for s in sequences.chunks_mut(1) {
            step(decoder, &mut cache, s, 64);
        }
        let n = if streams == 32 { 32 } else { 64 };
        let start = Instant::now();
        for _ in 0..n {
            step(decoder, &mut cache, &mut sequences, 1);
        }
        let rate = (n * streams) as f64 / start.elapsed().as_secs_f64();
        println!("{kind:4} decode, {streams:2} streams: {rate:7.1} tokens/s");
    }
    let mut cache = KvCache::new(config, 1024);
    let mut best = 0f64;
    for _ in 0..3 {
        let mut s = [CachedSequence::default()];
        let start = Instant::now();
        step(decoder, &mut cache, &mut s, 512);
        best = best.max(512.0 / start.elapsed().as_secs_f64());
        cache.release_all(&mut s[0]);
    }
    println!("{kind:4} prefill 512: {best:7.1} tokens/s");
}

fn main() {
    let Some(path) = std::env::var_os("INSTRUCTD_BENCH_MODEL").map(PathBuf::from) else {
        println!("set INSTRUCTD_BENCH_MODEL to a model directory or .gguf file; nothing measured");
        return;
    };
    let opened = open(&path).expect("model");
    let (bandwidth, weights) = (read_bandwidth(), 4 * opened.files.parameters());
    let bound = bandwidth / weights as f64;
    println!(
        "reading memory: {:.1} GB/s; f32 weights of {:.0} MB, so at most {bound:.1} tokens/s for one stream",
        bandwidth / 1e9,
        weights as f64 / 1e6
    );
    let only = std::env::var("INSTRUCTD_BENCH_FORMATS").unwrap_or_default();
    for format in WeightFormat::ALL.into_iter().filter(|f| only.is_empty() || only.split(',').any(|o| o == f.as_str()))
    {
        let decoder = Decoder::serve(&opened, format).expect("decoder");
        measure(&decoder, &opened.described.config, format.as_str());
    }
}
