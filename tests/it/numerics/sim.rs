//! Decoders on the simulated device, with the launches that a GPU would get: against the CPU's kernels, and against
//! themselves in other batches. With INSTRUCTD_TEST_DEVICE=cuda, on the GPU.

use candle_core::{Device, Tensor};
use instructd::generation::sampling::{DrawContext, Warpers, draw};
use instructd::gpu::cuda::Cuda;
use instructd::gpu::device;
use instructd::gpu::sim::Sim;
use instructd::model::decoder::device::{Blocks, Draw, Room};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceModel, ModelConfig, PackedBatch, Purpose, Weights, load};
use instructd::ops::blocks::BlockType;
use instructd::ops::linear::WeightFormat;
use instructd::ops::quantized::QuantizedMatrix;
use rand::{Rng, SeedableRng};

use crate::support::{DECODERS, fixture};

const PAGES: usize = 64;
const FEW_BITS: [WeightFormat; 2] = [WeightFormat::Q8_0, WeightFormat::Q4_1];

/// A device with `bytes` of memory.
pub(super) fn device(bytes: u64) -> Box<dyn device::Device> {
    match std::env::var("INSTRUCTD_TEST_DEVICE").as_deref() {
        Ok("cuda") => Box::new(Cuda::open(0, Some(bytes)).unwrap()),
        _ => Box::new(Sim::new(bytes)),
    }
}

/// Room for pages alone.
pub(super) fn pages(pages: usize) -> Room {
    Room { pages, longest: usize::MAX, rows: 0, wanted: 0 }
}

/// A model on a device of its own, with its cache.
struct OnDevice {
    decoder: Decoder,
    model: DeviceModel,
    cache: KvCache,
}

impl OnDevice {
    fn new(name: &str, format: WeightFormat) -> Self {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
        let model = DeviceModel::new(&decoder, Blocks::Held, device(64 << 20), format, pages(PAGES)).unwrap();
        let cache = KvCache::new(&loaded.config, PAGES * 16);
        Self { decoder, model, cache }
    }

    fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    /// Feeds tokens to sequences in one step; the logits of every row.
    fn feed(&mut self, parts: &[(&[u32], usize)], cached: &mut [CachedSequence]) -> Vec<Vec<f32>> {
        let mut rows = StepRows::default();
        for (ids, sequence) in parts {
            assert!(self.cache.reserve(&mut cached[*sequence], ids.len()));
            rows.push(ids, &cached[*sequence]);
        }
        let wanted: Vec<u32> = (0..rows.ids().len() as u32).collect();
        let logits = self.model.step(&self.decoder, &rows, &wanted, &[]).unwrap().logits;
        for (ids, sequence) in parts {
            cached[*sequence].len += ids.len();
        }
        logits.chunks_exact(self.config().vocab_size).map(<[f32]>::to_vec).collect()
    }
}

pub(super) fn fresh(n: usize) -> Vec<CachedSequence> {
    (0..n).map(|_| CachedSequence::default()).collect()
}

/// Two sequences, one of them longer than a page.
fn sequences(config: &ModelConfig) -> [Vec<u32>; 2] {
    let vocab = config.vocab_size as u32;
    [(0..20).map(|i| i * 7 % vocab).collect(), vec![5 % vocab, 9 % vocab, 1]]
}

/// The difference relative to the first of each pair, by Euclidean norms as `kernels/check.py` takes them.
pub(super) fn difference<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f64 {
    let (mut off, mut size) = (0f64, 0f64);
    for (a, b) in pairs {
        assert!(b.is_finite(), "not finite");
        off += f64::from(a - b).powi(2);
        size += f64::from(*a).powi(2);
    }
    (off / size).sqrt()
}

/// What rounding to bfloat16 may do to the logits. Three of the random models amplify it; the CPU's own bfloat16 format
/// is further from f32 in them too (1.0e-2 to 1.5e-2, and 6e-3 in the others).
pub(super) fn bf16_tolerance(name: &str) -> f64 {
    match name {
        "families/qwen2-window" => 6e-2,
        "families/phi4-mini" | "families/smollm3-window" => 3e-2,
        _ => 2e-2,
    }
}

#[test]
fn logits_are_those_of_the_cpu_for_every_family() {
    for name in DECODERS {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let exact = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
        let [long, short] = sequences(&loaded.config);
        let batch = PackedBatch::new(&[long.clone(), short.clone()]);
        let want = exact.logits(&exact.forward(&batch).unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let half = bf16_tolerance(name);
        for (format, tolerance) in
            [(WeightFormat::F32, 1e-5), (WeightFormat::Bf16, half), (WeightFormat::F16, half / 8.0)]
        {
            let mut on = OnDevice::new(name, format);
            let mut cached = fresh(2);
            for (i, ids) in [&long, &short].into_iter().enumerate() {
                cached[i].rope = on.decoder.rope_length(ids.len());
            }
            let before = on.model.counts();
            let got = on.feed(&[(&long, 0), (&short, 1)], &mut cached);
            let counts = on.model.counts() - before;
            let off = difference(want.iter().flatten().zip(got.iter().flatten()));
            assert!(off < tolerance, "{name} {}: off by {off}", format.as_str());
            assert_eq!((counts.uploads, counts.downloads, counts.waits), (1, 1, 1), "{name}");
        }
    }
}

/// Numbers [m, k] as the CPU rounds them for serving in 8 or in 4 bits.
fn rounded(values: &[f32], [m, k]: [usize; 2], format: WeightFormat) -> Tensor {
    if format == WeightFormat::Q8_0 {
        return QuantizedMatrix::quantize(values, m, k, BlockType::Q8_0).unwrap().dequantize().unwrap();
    }
    let f16 = |x: f32| half::f16::from_f32(x).to_f32();
    let block = |block: &[f32]| {
        let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        let (scale, minimum) = (f16((high - low) / 15.0), f16(low));
        let one = |v: &f32| ((v - minimum) / scale).round_ties_even().clamp(0.0, 15.0) * scale + minimum;
        block.iter().map(one).collect::<Vec<_>>()
    };
    Tensor::from_vec(values.chunks(32).flat_map(block).collect::<Vec<_>>(), (m, k), &Device::Cpu).unwrap()
}

/// Matrices in 8 or 4 bits: the logits are those of the CPU with the matrices rounded beforehand, and the memory is less
/// than in bf16.
#[test]
fn matrices_in_few_bits_are_those_that_were_rounded_beforehand() {
    for (tied, format) in [true, false].into_iter().flat_map(|tied| FEW_BITS.map(|format| (tied, format))) {
        let config = serde_json::json!({
            "model_type": "qwen2", "vocab_size": 200, "hidden_size": 96, "intermediate_size": 160,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "tie_word_embeddings": tied,
        });
        let config = ModelConfig::from_hf(&config, None).unwrap();
        let normals = |tensor: u64, n: usize| -> Vec<f64> {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(tensor);
            (0..n).map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 4.0 - 2.0).collect()
        };
        let weights = init(&config, Heads::Backbone, &Device::Cpu, normals).unwrap();
        let beforehand: Weights = weights
            .iter()
            .map(|(name, tensor)| {
                let matrix = name.contains("_proj.weight") || name.contains("lm_head");
                if !matrix {
                    return (name.clone(), tensor.clone());
                }
                let (m, k) = tensor.dims2().unwrap();
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                (name.clone(), rounded(&values, [m, k], format))
            })
            .collect();
        let exact = Decoder::new(&config, &beforehand, Purpose::Serve).unwrap();
        let [long, short] = sequences(&config);
        let batch = PackedBatch::new(&[long.clone(), short.clone()]);
        let want = exact.logits(&exact.forward(&batch).unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let decoder = Decoder::new(&config, &weights, Purpose::Score).unwrap();
        let open = |format| DeviceModel::new(&decoder, Blocks::Held, device(64 << 20), format, pages(PAGES)).unwrap();
        let (dense, model) = (open(WeightFormat::Bf16), open(format));
        assert!(model.memory().0 < dense.memory().0, "{} bytes, {} in bf16", model.memory().0, dense.memory().0);
        let mut on = OnDevice { decoder, model, cache: KvCache::new(&config, PAGES * 16) };
        let got = on.feed(&[(&long, 0), (&short, 1)], &mut fresh(2));
        let off = difference(want.iter().flatten().zip(got.iter().flatten()));
        assert!(off < 1e-2, "tied {tied}, {}: off by {off}", format.as_str());
        // Alone, the short sequence gets the same bits.
        let mut other = fresh(1);
        let alone = on.feed(&[(&short, 0)], &mut other);
        assert_eq!(alone[..], got[long.len()..], "tied {tied}, {}", format.as_str());
    }
}

#[test]
fn a_step_is_ten_launches_a_block() {
    for (name, at_most) in [("llama-tiny", 10), ("qwen2-tiny", 10), ("families/qwen3", 10), ("gpt2-tiny", 10)] {
        let mut on = OnDevice::new(name, WeightFormat::Bf16);
        let mut cached = fresh(1);
        on.feed(&[(&[1, 2, 3], 0)], &mut cached);
        let before = on.model.counts();
        on.feed(&[(&[4], 0)], &mut cached);
        let counts = on.model.counts() - before;
        // Outside of the blocks: embedding, the last addition, picked rows, final norm, output matrix.
        let blocks = counts.launches - 5;
        assert!(blocks <= at_most * on.config().n_layers as u64, "{name}: {blocks} launches");
        assert_eq!((counts.uploads, counts.downloads, counts.waits), (1, 1, 1), "{name}");
    }
}

#[test]
fn a_token_has_the_same_bits_alone_in_a_batch_and_in_chunks() {
    for name in ["llama-tiny", "families/gemma2", "families/gpt-neox", "families/qwen3-window"] {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
            let mut on = OnDevice::new(name, format);
            let [long, short] = sequences(on.config());
            let mut together = fresh(2);
            let both = on.feed(&[(&short, 0), (&long, 1)], &mut together);
            let whole = &both[short.len()..];
            let mut alone = fresh(1);
            assert_eq!(on.feed(&[(&long, 0)], &mut alone), whole, "{name}: alone");
            // Chunks whose ends are not those of pages, then token by token, beside another sequence.
            let mut chunks = fresh(2);
            let mut got = on.feed(&[(&long[..7], 0)], &mut chunks);
            got.extend(on.feed(&[(&short, 1), (&long[7..18], 0)], &mut chunks).split_off(short.len()));
            for id in &long[18..] {
                got.extend(on.feed(&[(&[*id], 0)], &mut chunks));
            }
            assert_eq!(got, whole, "{name}: in chunks");
        }
    }
}

#[test]
fn a_copied_page_continues_independently() {
    let mut on = OnDevice::new("llama-tiny", WeightFormat::F32);
    let [long, _] = sequences(on.config());
    let mut first = fresh(1);
    on.feed(&[(&long, 0)], &mut first);
    let (from, to) = (first[0].pages[1], 40);
    on.model.copy_page(from, to).unwrap();
    let mut second =
        vec![CachedSequence { pages: vec![first[0].pages[0], to], len: long.len(), ..CachedSequence::default() }];
    let (a, b) = (on.feed(&[(&[3], 0)], &mut first), on.feed(&[(&[3], 0)], &mut second));
    assert_eq!(a, b);
    // What one writes, the other does not see.
    on.feed(&[(&[4], 0)], &mut first);
    let mut third =
        vec![CachedSequence { pages: second[0].pages.clone(), len: long.len() + 1, ..CachedSequence::default() }];
    assert_eq!(on.feed(&[(&[5], 0)], &mut second), on.feed(&[(&[5], 0)], &mut third));
}

#[test]
fn models_without_room_are_refused_when_a_device_loads_them() {
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
    let open = |format, bytes| {
        DeviceModel::new(&decoder, Blocks::Held, Box::new(Sim::new(bytes)), format, pages(4)).err().unwrap().to_string()
    };
    let error = open(WeightFormat::F32, 10_000);
    assert!(error.contains("bytes free"), "{error}");
    // Out of memory in a step is an error of the step; a smaller one succeeds.
    let mut on = OnDevice::new("llama-tiny", WeightFormat::F32);
    let held = on.model.memory().0;
    on.model = DeviceModel::new(
        &decoder,
        Blocks::Held,
        Box::new(Sim::new(held + (24 << 10))),
        WeightFormat::F32,
        pages(PAGES),
    )
    .unwrap();
    let mut rows = StepRows::default();
    let mut cached = fresh(2);
    assert!(on.cache.reserve(&mut cached[0], 60) && on.cache.reserve(&mut cached[1], 1));
    rows.push(&[1; 60], &cached[0]);
    let error = on.model.step(&decoder, &rows, &[59], &[]).unwrap_err().to_string();
    assert!(error.contains("bytes free"), "{error}");
    assert_eq!(on.model.memory().0, held, "a failed step gives everything back");
    let mut rows = StepRows::default();
    rows.push(&[1], &cached[1]);
    assert_eq!(on.model.step(&decoder, &rows, &[0], &[]).unwrap().logits.len(), on.config().vocab_size);
}

/// Where memory is short, the cache is what remains beside the largest step, which then always fits.
#[test]
fn a_smaller_cache_leaves_room_for_the_largest_step() {
    for (name, format) in [("llama-tiny", WeightFormat::F32), ("families/gemma2", WeightFormat::Bf16)] {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
        let context = loaded.config.max_positions;
        let room = Room { pages: 100_000, longest: usize::MAX, rows: 40, wanted: 40 };
        let open = |bytes| DeviceModel::new(&decoder, Blocks::Held, Box::new(Sim::new(bytes)), format, room);
        // The least that is enough.
        let (mut no, mut yes) = (0u64, 64 << 20);
        while yes - no > 4096 {
            let middle = (no + yes) / 2;
            if open(middle).is_ok() { yes = middle } else { no = middle }
        }
        let error = open(no).err().unwrap().to_string();
        assert!(error.contains("bytes free"), "{error}");
        let mut model = open(yes).unwrap();
        assert!(model.page_count() >= context.div_ceil(16) && model.page_count() < 100_000, "{}", model.page_count());
        let mut cache = KvCache::on_device(model.page_count() * 16);
        let mut cached = fresh(1);
        // One sequence to the end of its context, 40 tokens at a time and the last 40 rows wanted.
        let ids: Vec<u32> = (0..context as u32).map(|i| i % loaded.config.vocab_size as u32).collect();
        for chunk in ids.chunks(40) {
            assert!(cache.reserve(&mut cached[0], chunk.len()));
            let mut rows = StepRows::default();
            rows.push(chunk, &cached[0]);
            let wanted: Vec<u32> = (0..chunk.len() as u32).collect();
            model.step(&decoder, &rows, &wanted, &[]).unwrap();
            cached[0].len += chunk.len();
        }
    }
}

/// Draws on the device are those of the host's sampler from the same logits.
#[test]
fn tokens_are_drawn_on_the_device_as_on_the_host() {
    let mut on = OnDevice::new("llama-tiny", WeightFormat::F32);
    let vocab = on.config().vocab_size;
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % vocab as u32).collect();
    let mut rows = StepRows::default();
    let mut cached = CachedSequence::default();
    assert!(on.cache.reserve(&mut cached, ids.len()));
    rows.push(&ids, &cached);
    let every: Vec<u32> = (0..ids.len() as u32).collect();
    let logits = on.model.step(&on.decoder, &rows, &every, &[]).unwrap().logits;
    let temperature = |row: u32| [0.0, 0.5, 1.0, 1.7][row as usize % 4];
    let context = |row: u32| DrawContext {
        prompt: &ids,
        generated: &ids[..row as usize],
        forbidden: &[],
        seed: 11,
        stream: 3,
        logprob_temperature: 1.0,
        top: 0,
    };
    let warpers = |row| Warpers { temperature: temperature(row), ..Warpers::default() };
    let draws: Vec<Draw> = every
        .iter()
        .map(|row| {
            let (inverse_temperature, uniform) = warpers(*row).plain_draw(&context(*row)).unwrap();
            Draw { row: *row, inverse_temperature, uniform }
        })
        .collect();
    let before = on.model.counts();
    // Some logits are requested too; their rows overlap.
    let result = on.model.step(&on.decoder, &rows, &[2, 7], &draws).unwrap();
    let counts = on.model.counts() - before;
    assert_eq!((counts.uploads, counts.downloads, counts.waits), (1, 2, 1));
    assert_eq!(result.logits, [&logits[2 * vocab..3 * vocab], &logits[7 * vocab..8 * vocab]].concat());
    assert_eq!(result.drawn.len(), draws.len());
    for (row, (id, logprob)) in every.iter().zip(&result.drawn) {
        let at = *row as usize * vocab;
        let want = draw(&logits[at..at + vocab], &warpers(*row), &context(*row));
        assert_eq!(*id, want.id, "row {row}");
        assert!((logprob - want.logprob).abs() < 1e-5 * want.logprob.abs().max(1.0), "row {row}");
    }
    let ids: std::collections::BTreeSet<_> = result.drawn.iter().map(|(id, _)| id).collect();
    assert!(ids.len() > 5, "draws differ between rows");
    // Without requested logits, one download.
    let before = on.model.counts();
    let again = on.model.step(&on.decoder, &rows, &[], &draws[3..]).unwrap();
    assert_eq!((on.model.counts() - before).downloads, 1);
    assert_eq!(again.drawn, result.drawn[3..]);
}

/// Whatever truncates or changes the distribution is the host's.
#[test]
fn only_plain_draws_are_made_on_the_device() {
    let context = DrawContext {
        prompt: &[1],
        generated: &[2],
        forbidden: &[],
        seed: 1,
        stream: 0,
        logprob_temperature: 1.0,
        top: 0,
    };
    let plain = Warpers::default();
    assert!(plain.plain_draw(&context).is_some());
    let greedy = Warpers { temperature: 0.0, top_k: 5, top_p: 0.5, ..plain.clone() };
    assert_eq!(greedy.plain_draw(&context), Some((0.0, 0.0)), "the most likely token is never dropped");
    for warpers in [
        Warpers { top_k: 5, ..plain.clone() },
        Warpers { top_p: 0.9, ..plain.clone() },
        Warpers { min_p: 0.1, ..plain.clone() },
        Warpers { repetition_penalty: 1.1, ..plain.clone() },
        Warpers { presence_penalty: 0.1, ..plain.clone() },
        Warpers { frequency_penalty: 0.1, ..plain.clone() },
        Warpers { temperature: 0.0, logit_bias: vec![(1, 2.0)], ..plain },
    ] {
        assert!(warpers.plain_draw(&context).is_none(), "{warpers:?}");
    }
}
