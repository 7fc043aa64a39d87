//! LoRA adapters over one base on the simulated device: against those of the CPU and against merged weights, the same
//! bits in any batch, launches and memory. With INSTRUCTD_TEST_DEVICE=cuda, on the GPU.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use instructd::gpu::sim::Sim;
use instructd::model::adapters::served::ServedAdapter;
use instructd::model::adapters::{lora, peft};
use instructd::model::decoder::device::{AdapterImage, Blocks, Draw, Element, Room};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceModel, LoraConfig, ModelConfig, PackedBatch, Purpose, Weights, load};
use instructd::ops::blocks::BlockType;
use instructd::ops::linear::WeightFormat;
use instructd::ops::quantized::QuantizedMatrix;

use super::sim::{bf16_tolerance, device, difference, fresh, pages};
use crate::support::{DECODERS, fixture, noise};

const PAGES: usize = 64;

/// The last parts of the names of the modules of a model's blocks.
fn modules(config: &ModelConfig, weights: &Weights) -> Vec<String> {
    let all = lora::target_modules(config, &LoraConfig { targets: Vec::new(), ..LoraConfig::default() }, weights);
    let last: BTreeSet<String> = all.iter().filter_map(|name| name.rsplit('.').next()).map(str::to_owned).collect();
    last.into_iter().collect()
}

/// An adapter as if it had been trained, on modules of these names.
fn adapter(config: &ModelConfig, weights: &Weights, targets: &[String], rank: usize, seed: u64) -> peft::Adapter {
    let lora = LoraConfig { rank, alpha: 2.0 * rank as f64, targets: targets.to_vec() };
    let mut factors = lora::init(config, &lora, weights, seed).unwrap();
    let size = 0.1 / (rank as f32).sqrt();
    for (stream, (_, b)) in factors.iter_mut().filter(|(name, _)| name.ends_with("lora_B.weight")).enumerate() {
        let values: Vec<f32> =
            noise(b.elem_count(), 100 * seed + stream as u64).into_iter().map(|v| v * size).collect();
        *b = Tensor::from_vec(values, b.dims(), &Device::Cpu).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    peft::write(dir.path(), config, &lora, &factors, weights, "base").unwrap();
    peft::read(dir.path(), config).unwrap()
}

/// Three adapters: of all modules, of some with a rank that is no multiple of 16, and of one.
fn three(config: &ModelConfig, weights: &Weights) -> Vec<peft::Adapter> {
    let names = modules(config, weights);
    let some: Vec<String> = names.iter().skip(1).cloned().collect();
    let of = |targets: &[String], rank, seed| adapter(config, weights, targets, rank, seed);
    vec![of(&[], 4, 1), of(&some, 20, 2), of(&names[..1], 1, 3)]
}

/// A base on a device, with adapters and a cache.
struct OnDevice {
    decoder: Decoder,
    model: DeviceModel,
    cache: KvCache,
    adapters: Vec<Arc<ServedAdapter>>,
}

/// New tokens of a sequence: ids, the sequence, its adapter.
type Part<'a> = (&'a [u32], usize, Option<usize>);

impl OnDevice {
    fn new(config: &ModelConfig, weights: &Weights, format: WeightFormat, adapters: &[peft::Adapter]) -> Self {
        let decoder = Decoder::new(config, weights, Purpose::Score).unwrap();
        let model = DeviceModel::new(&decoder, Blocks::Held, device(64 << 20), format, pages(PAGES)).unwrap();
        let mut on = Self { decoder, model, cache: KvCache::new(config, PAGES * 16), adapters: Vec::new() };
        for adapter in adapters {
            on.load(adapter);
        }
        on
    }

    fn load(&mut self, adapter: &peft::Adapter) -> usize {
        let name = Arc::new(ServedAdapter::on_devices(adapter));
        let image = AdapterImage::new(&self.decoder.config, self.model.element(), adapter).unwrap();
        let bytes = self.model.load_adapter(&self.decoder, &name, &image).unwrap();
        self.adapters.push(name);
        bytes
    }

    fn rows(&self, parts: &[Part<'_>], cached: &[CachedSequence]) -> StepRows {
        let mut rows = StepRows::default();
        for (ids, sequence, adapter) in parts {
            rows.push(ids, &cached[*sequence]);
            if let Some(adapter) = adapter {
                rows.with_adapter(&self.adapters[*adapter], ids.len());
            }
        }
        rows
    }

    /// One step; the logits of every row of each part.
    fn feed(&mut self, parts: &[Part<'_>], cached: &mut [CachedSequence]) -> Vec<Vec<f32>> {
        for (ids, sequence, _) in parts {
            assert!(self.cache.reserve(&mut cached[*sequence], ids.len()));
        }
        let rows = self.rows(parts, cached);
        let wanted: Vec<u32> = (0..rows.ids().len() as u32).collect();
        let logits = self.model.step(&self.decoder, &rows, &wanted, &[]).unwrap().logits;
        let (mut left, vocab) = (&logits[..], self.decoder.config.vocab_size);
        let mut own = Vec::new();
        for (ids, sequence, _) in parts {
            cached[*sequence].len += ids.len();
            let (mine, rest) = left.split_at(ids.len() * vocab);
            own.push(mine.to_vec());
            left = rest;
        }
        own
    }
}

fn sequences(config: &ModelConfig) -> [Vec<u32>; 2] {
    let vocab = config.vocab_size as u32;
    [(0..20).map(|i| i * 7 % vocab).collect(), vec![5 % vocab, 9 % vocab, 1]]
}

/// Rope lengths as the scheduler sets them.
fn placed(decoder: &Decoder, ids: &[&[u32]]) -> Vec<CachedSequence> {
    ids.iter().map(|ids| CachedSequence { rope: decoder.rope_length(ids.len()), ..Default::default() }).collect()
}

/// The logits of the CPU with the adapter over `decoder`, and of merged weights.
fn on_the_cpu(decoder: &Decoder, weights: &Weights, adapter: &peft::Adapter, ids: &[u32]) -> [Vec<f32>; 2] {
    let served = Arc::new(ServedAdapter::new(decoder, adapter).unwrap());
    let mut cache = KvCache::new(&decoder.config, PAGES * 16);
    let mut cached = placed(decoder, &[ids]);
    assert!(cache.reserve(&mut cached[0], ids.len()));
    let mut rows = StepRows::default();
    rows.push(ids, &cached[0]);
    rows.with_adapter(&served, ids.len());
    let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let beside = decoder.logits(&decoder.step(&rows, &mut cache).unwrap()).unwrap();
    let merged = adapter.merge(&decoder.config, weights).unwrap();
    let merged = Decoder::new(&decoder.config, &merged, Purpose::Serve).unwrap();
    let batch = PackedBatch::new(&[ids.to_vec()]);
    [flat(beside), flat(merged.logits(&merged.forward(&batch).unwrap()).unwrap())]
}

#[test]
fn rows_with_adapters_are_those_of_the_cpu_in_every_family_and_in_any_batch() {
    let mut wrong = Vec::new();
    for name in DECODERS {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let (config, weights) = (&loaded.config, &loaded.weights);
        let adapters = three(config, weights);
        let [long, short] = sequences(config);
        let exact = Decoder::new(config, weights, Purpose::Serve).unwrap();
        let parts: [(&[u32], Option<usize>); 5] =
            [(&long, Some(0)), (&short, None), (&long, None), (&short, Some(2)), (&long, Some(1))];
        let ids = parts.map(|(ids, _)| ids);
        for (format, tolerance) in [(WeightFormat::F32, 1e-5), (WeightFormat::Bf16, bf16_tolerance(name))] {
            let what = format!("{name} {}", format.as_str());
            let mut bare = OnDevice::new(config, weights, format, &[]);
            let mut on = OnDevice::new(config, weights, format, &adapters);
            let all: Vec<Part<'_>> = parts.iter().enumerate().map(|(i, (ids, own))| (*ids, i, *own)).collect();
            let before = on.model.counts();
            let got = on.feed(&all, &mut placed(&exact, &ids));
            let counts = on.model.counts() - before;
            assert_eq!((counts.uploads, counts.downloads, counts.waits), (1, 1, 1), "{what}");
            for (i, (ids, own)) in parts.iter().enumerate() {
                // A model without adapters computes the base's rows; the others are the same alone.
                let mut alone = placed(&exact, &[ids]);
                let on = if own.is_some() { &mut on } else { &mut bare };
                assert_eq!(on.feed(&[(ids, 0, *own)], &mut alone), got[i..=i], "{what}: part {i} alone");
                on.cache.release_all(&mut alone[0]);
                let Some(own) = own else { continue };
                for (want, of) in on_the_cpu(&exact, weights, &adapters[*own], ids).iter().zip(["beside", "merged"]) {
                    let off = difference(want.iter().zip(&got[i]));
                    if off >= tolerance {
                        // Random models amplify rounding: merged weights on the device are then as far off.
                        let merged = adapters[*own].merge(config, weights).unwrap();
                        let mut merged = OnDevice::new(config, &merged, format, &[]);
                        let merged = merged.feed(&[(ids, 0, None)], &mut placed(&exact, &[ids])).remove(0);
                        let theirs = difference(want.iter().zip(&merged));
                        let line =
                            format!("{what}: adapter {own} is {off:.1e} off the CPU's, {of}; merged, {theirs:.1e}");
                        println!("{line}");
                        if format == WeightFormat::F32 || off > 1.5 * theirs {
                            wrong.push(line);
                        }
                    }
                }
                let base = got.iter().zip(&parts).find(|(_, (other, own))| own.is_none() && other == ids);
                let off = difference(base.unwrap().0.iter().zip(&got[i]));
                assert!(format != WeightFormat::F32 || off > 1e-3, "{what}: adapter {own} changes the logits by {off}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tokens_with_adapters_have_the_same_bits_in_chunks_beside_others() {
    for name in ["llama-tiny", "gpt2-tiny", "families/gemma2", "families/gpt-neox", "families/phi3"] {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let adapters = three(&loaded.config, &loaded.weights);
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0] {
            let mut on = OnDevice::new(&loaded.config, &loaded.weights, format, &adapters);
            let [long, short] = sequences(&loaded.config);
            let whole = on.feed(&[(&long, 0, Some(1))], &mut fresh(1)).remove(0);
            let mut cached = fresh(3);
            let mut got = on.feed(&[(&long[..7], 0, Some(1))], &mut cached).remove(0);
            let beside = [(&short[..], 1, Some(0)), (&long[7..18], 0, Some(1)), (&short[..], 2, None)];
            got.extend(on.feed(&beside, &mut cached).swap_remove(1));
            got.extend(on.feed(&[(&long[18..19], 0, Some(1)), (&[3], 2, None)], &mut cached).remove(0));
            got.extend(
                on.feed(&[(&[3], 1, Some(0)), (&[3], 2, None), (&long[19..], 0, Some(1))], &mut cached).remove(2),
            );
            assert_eq!(got, whole, "{name} {}", format.as_str());
        }
    }
}

/// Over a base in 8 bits: the logits of the CPU with the same adapter over matrices that were rounded beforehand.
#[test]
fn adapters_over_matrices_in_eight_bits_are_those_of_the_cpu() {
    let config = serde_json::json!({
        "model_type": "qwen2", "vocab_size": 200, "hidden_size": 96, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": false,
    });
    let config = ModelConfig::from_hf(&config, None).unwrap();
    let normals = |tensor: u64, n: usize| noise(n, tensor + 1).into_iter().map(f64::from).collect::<Vec<_>>();
    let weights = init(&config, Heads::Backbone, &Device::Cpu, normals).unwrap();
    let round = |(name, tensor): (&String, &Tensor)| {
        if !name.contains("_proj.weight") && !name.contains("lm_head") {
            return (name.clone(), tensor.clone());
        }
        let (m, k) = tensor.dims2().unwrap();
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let packed = QuantizedMatrix::quantize(&values, m, k, BlockType::Q8_0).unwrap();
        (name.clone(), packed.dequantize().unwrap())
    };
    let rounded: Weights = weights.iter().map(round).collect();
    let adapters = three(&config, &weights);
    let exact = Decoder::new(&config, &rounded, Purpose::Serve).unwrap();
    let mut on = OnDevice::new(&config, &weights, WeightFormat::Q8_0, &adapters);
    let [long, short] = sequences(&config);
    let got = on.feed(&[(&long, 0, Some(0)), (&short, 1, None), (&long, 2, Some(1))], &mut fresh(3));
    for (adapter, part) in [(0, 0), (1, 2)] {
        for want in on_the_cpu(&exact, &rounded, &adapters[adapter], &long) {
            let off = difference(want.iter().zip(&got[part]));
            assert!(off < 2e-2, "adapter {adapter}: off by {off}");
        }
    }
}

/// Two launches for each matrix that an adapter of the step changes, and none in steps without adapters.
#[test]
fn adapters_add_two_launches_for_each_matrix_that_they_change() {
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let (config, weights) = (&loaded.config, &loaded.weights);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let of = |targets: &[&str]| adapter(config, weights, &names(targets), 8, 5);
    let adapters = [of(&[]), of(&["q_proj", "v_proj"]), of(&["down_proj"])];
    let mut on = OnDevice::new(config, weights, WeightFormat::Bf16, &adapters);
    let mut cached = fresh(5);
    let rows: Vec<Part<'_>> = (0..5).map(|i| (&[1, 2, 3][..], i, None)).collect();
    on.feed(&rows, &mut cached);
    for (chosen, more) in [
        (&[None, None][..], 0),
        (&[None, Some(0)], 8),
        (&[Some(1), None], 2),
        (&[Some(2), Some(1), None], 4),
        (&[Some(2), Some(1), None, Some(0), Some(0)], 8),
    ] {
        let parts: Vec<Part<'_>> = chosen.iter().enumerate().map(|(i, own)| (&[4][..], i, *own)).collect();
        let before = on.model.counts();
        on.feed(&parts, &mut cached);
        let counts = on.model.counts() - before;
        // Outside of the blocks: embedding, the last addition, picked rows, final norm, output matrix.
        assert_eq!(counts.launches - 5, (10 + more) * config.n_layers as u64, "{chosen:?}");
        assert_eq!((counts.uploads, counts.downloads, counts.waits), (1, 1, 1), "{chosen:?}");
    }
    // Tokens are drawn on the device, too.
    for (ids, sequence, _) in &rows[..1] {
        assert!(on.cache.reserve(&mut cached[*sequence], ids.len()));
    }
    let rows = on.rows(&[(&[4], 0, Some(0))], &cached);
    let draw = Draw { row: 0, inverse_temperature: 0.0, uniform: 0.5 };
    let result = on.model.step(&on.decoder, &rows, &[0], &[draw]).unwrap();
    let best = result.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(result.drawn[0].0, best as u32);
}

#[test]
fn adapters_take_memory_as_long_as_they_have_a_name() {
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let (config, weights) = (&loaded.config, &loaded.weights);
    let adapters = three(config, weights);
    let mut on = OnDevice::new(config, weights, WeightFormat::F32, &[]);
    let base = on.model.memory().0;
    let bytes: Vec<usize> = adapters.iter().map(|adapter| on.load(adapter)).collect();
    assert!(bytes[1] > bytes[2] && bytes[2] > 0, "{bytes:?}");
    let held = on.model.memory().0 - base;
    let all = bytes.iter().sum::<usize>() as u64;
    assert!((all..all + 3 * 256).contains(&held), "{held} bytes for adapters of {bytes:?}");

    let mut cached = fresh(1);
    let want = on.feed(&[(&[1, 2, 3], 0, Some(1))], &mut cached);
    // One that a step names stays; the others are freed by the next step.
    let second = on.adapters.remove(1);
    on.adapters.clear();
    on.adapters.push(second);
    let again = on.feed(&[(&[1, 2, 3], 0, Some(0))], &mut fresh(1));
    assert_eq!(again, want);
    let held = on.model.memory().0 - base;
    assert!((bytes[1] as u64..bytes[1] as u64 + 256).contains(&held), "{held} bytes for one of {bytes:?}");
    // Another one at the place of those.
    on.load(&adapters[0]);
    assert_eq!(on.feed(&[(&[1, 2, 3], 0, Some(0))], &mut fresh(1)), want);
    // A name that this device has not heard of.
    on.adapters.push(Arc::new(ServedAdapter::on_devices(&adapters[2])));
    let mut cached = fresh(1);
    assert!(on.cache.reserve(&mut cached[0], 1));
    let rows = on.rows(&[(&[1], 0, Some(2))], &cached);
    let error = on.model.step(&on.decoder, &rows, &[0], &[]).unwrap_err().to_string();
    assert!(error.contains("an adapter is not on this device"), "{error}");
    on.adapters.clear();
    on.feed(&[(&[1, 2, 3], 0, None)], &mut fresh(1));
    assert_eq!(on.model.memory().0, base);
}

/// Where memory is short an adapter is refused, also if it fits and the largest step with it does not; what is loaded
/// goes on. Once it is loaded, the largest step always fits.
#[test]
fn an_adapter_without_room_is_refused() {
    for (name, format) in [("llama-tiny", WeightFormat::F32), ("gpt2-tiny", WeightFormat::Bf16)] {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let (config, weights) = (&loaded.config, &loaded.weights);
        let decoder = Decoder::new(config, weights, Purpose::Score).unwrap();
        let room = Room { pages: 16, longest: 64, rows: 40, wanted: 40 };
        let element = if format == WeightFormat::F32 { Element::F32 } else { Element::Bf16 };
        let adapter = adapter(config, weights, &[], 40, 1);
        let image = AdapterImage::new(config, element, &adapter).unwrap();
        let name = Arc::new(ServedAdapter::on_devices(&adapter));
        let open = |bytes| DeviceModel::new(&decoder, Blocks::Held, Box::new(Sim::new(bytes)), format, room);
        let (mut no, mut yes) = (0u64, 64 << 20);
        while yes - no > 1024 {
            let middle = (no + yes) / 2;
            // A smaller cache would leave more room.
            let fits = open(middle).is_ok_and(|mut model| {
                model.page_count() == room.pages && model.load_adapter(&decoder, &name, &image).is_ok()
            });
            if fits { yes = middle } else { no = middle }
        }
        let mut model = open(no).unwrap();
        assert_eq!(model.page_count(), room.pages);
        let before = model.memory().0;
        let error = model.load_adapter(&decoder, &name, &image).unwrap_err().to_string();
        assert!(error.contains("bytes free"), "{error}");
        assert_eq!(model.memory().0, before, "a refused adapter leaves nothing behind");
        let mut cache = KvCache::on_device(room.pages * 16);
        let mut cached = fresh(40);
        assert!(cache.reserve(&mut cached[0], 3));
        let mut rows = StepRows::default();
        rows.push(&[1, 2, 3], &cached[0]);
        assert_eq!(model.step(&decoder, &rows, &[2], &[]).unwrap().logits.len(), config.vocab_size);

        let mut model = open(yes).unwrap();
        model.load_adapter(&decoder, &name, &image).unwrap();
        cache.release_all(&mut cached[0]);
        assert!(cache.reserve(&mut cached[0], 63));
        (cached[0].len, cached[0].rope) = (23, decoder.rope_length(63));
        let mut rows = StepRows::default();
        rows.push(&[1; 40], &cached[0]);
        rows.with_adapter(&name, 40);
        let wanted: Vec<u32> = (0..40).collect();
        model.step(&decoder, &rows, &wanted, &[]).unwrap();
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let of = |name| load(&fixture(name), &Device::Cpu).unwrap();
    let (one, other) = (of("llama-tiny"), of("gpt2-tiny"));
    let adapter = adapter(&other.config, &other.weights, &[], 4, 1);
    let error = AdapterImage::new(&one.config, Element::F32, &adapter).err().unwrap().to_string();
    assert!(error.contains("the adapter is for another model"), "{error}");
}
