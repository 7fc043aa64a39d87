//! The decoder on every device there is, in every dense format it takes there, against f32 on the CPU.

use candle_core::Device;
use instructd::engine::device;
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::{Decoder, PackedBatch, Purpose, load};

use crate::support::fixture;

/// The CPU, and a GPU where this build and machine have one.
fn devices() -> Vec<(&'static str, Device)> {
    let mut all = vec![("cpu", Device::Cpu)];
    match device::open("cuda") {
        Ok(gpu) => all.push(("cuda", gpu)),
        Err(why) => eprintln!("skipped on cuda: {why}"),
    }
    all
}

fn logits(decoder: &Decoder, hidden: &candle_core::Tensor) -> Vec<f32> {
    let logits = decoder.logits(hidden).unwrap();
    logits.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
}

#[test]
fn dense_weights_of_any_format_on_any_device() {
    let sequences = [(0..20u32).map(|i| i * 7 % 96).collect::<Vec<_>>(), vec![5, 9, 1]];
    for model in ["qwen2-tiny", "gpt2-tiny"].into_iter().chain(crate::support::UNLIKE) {
        let base = load(&fixture(model), &Device::Cpu).unwrap();
        let exact = Decoder::new(&base.config, &base.weights, Purpose::Serve).unwrap();
        let batch = PackedBatch::new(&sequences);
        let want = logits(&exact, &exact.forward(&batch).unwrap());
        for (name, device) in devices() {
            // The CPU's matrix product has no bfloat16.
            let formats: &[(&str, f32)] = if device.is_cpu() {
                &[("f32", 1e-5), ("f16", 1e-2)]
            } else {
                &[("f32", 1e-4), ("f16", 1e-2), ("bf16", 5e-2)]
            };
            let loaded = load(&fixture(model), &device).unwrap();
            for (format, tolerance) in formats {
                let decoder = device::dense(&loaded.config, &loaded.weights, format).unwrap();
                let whole = logits(&decoder, &decoder.forward(&batch).unwrap());
                let off = largest_difference(&want, &whole);
                assert!(off < *tolerance, "{model} {name} {format}: off by {off}");
                // As serving computes it: prompts in chunks over the cache.
                let mut cache = KvCache::new(&base.config, 256);
                let mut cached: Vec<CachedSequence> = sequences.iter().map(|_| CachedSequence::default()).collect();
                let mut last = Vec::new();
                for chunk in 0..4 {
                    let mut rows = StepRows::default();
                    let mut ends = Vec::new();
                    for (i, ids) in sequences.iter().enumerate() {
                        let (from, to) = ((chunk * 5).min(ids.len()), ((chunk + 1) * 5).min(ids.len()));
                        if from < to {
                            assert!(cache.reserve(&mut cached[i], to - from));
                            ends.push((i, rows.push(&ids[from..to], &cached[i]), to));
                        }
                    }
                    let hidden = decoder.step(&rows, &mut cache).unwrap();
                    for (i, row, to) in ends {
                        cached[i].len = to;
                        if to == sequences[i].len() {
                            last.push((i, logits(&decoder, &hidden.narrow(0, row, 1).unwrap())));
                        }
                    }
                }
                let vocab = base.config.vocab_size;
                for (i, got) in last {
                    let end: usize = sequences[..=i].iter().map(Vec::len).sum();
                    let off = largest_difference(&want[(end - 1) * vocab..end * vocab], &got);
                    assert!(off < *tolerance, "{model} {name} {format}, cached: off by {off}");
                }
            }
            assert!(device::dense(&loaded.config, &loaded.weights, "q8_0").is_err());
        }
    }
}
