//! Formats of weights on the simulated device: the logits of the CPU with the same numbers, and the same bits alone. With
//! INSTRUCTD_TEST_DEVICE=cuda, on the GPU.

use instructd::model::decoder::device::{Blocks, Room};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::{Decoder, DeviceModel, Opened, PackedBatch, open};
use instructd::ops::blocks::BlockType;
use instructd::ops::linear::WeightFormat;

use super::device_loading::write_model;
use super::formats::{Sizes, distance, flat, llama};
use super::sim::device;

const ROOM: Room = Room { pages: 16, longest: 64, rows: 64, wanted: 64 };

fn sequences() -> Vec<Vec<u32>> {
    (0..3u32).map(|i| (0..5 + 15 * i).map(|t| (t * 7 + i * 13) % 96).collect()).collect()
}

/// A model on a device and its decoder on the host.
struct Served {
    decoder: Decoder,
    model: DeviceModel,
}

impl Served {
    fn new(opened: &Opened, format: WeightFormat) -> Self {
        let decoder = Decoder::without_blocks(opened).unwrap();
        let model = DeviceModel::new(&decoder, Blocks::Files(opened), device(64 << 20), format, ROOM).unwrap();
        Self { decoder, model }
    }

    /// The logits of every token of sequences in one step.
    fn logits(&mut self, sequences: &[Vec<u32>]) -> Vec<f32> {
        let (mut cache, mut rows, mut count) = (KvCache::on_device(16 * 16), StepRows::default(), 0);
        let mut cached: Vec<_> = sequences.iter().map(|_| CachedSequence::default()).collect();
        for (ids, cached) in sequences.iter().zip(&mut cached) {
            cached.rope = self.decoder.rope_length(ids.len());
            assert!(cache.reserve(cached, ids.len()));
            rows.push(ids, cached);
            count += ids.len() as u32;
        }
        let wanted: Vec<u32> = (0..count).collect();
        self.model.step(&self.decoder, &rows, &wanted, &[]).unwrap().logits
    }
}

fn on_cpu(opened: &Opened, format: WeightFormat) -> Vec<f32> {
    let decoder = Decoder::serve(opened, format).unwrap();
    flat(&decoder.logits(&decoder.forward(&PackedBatch::new(&sequences())).unwrap()).unwrap())
}

/// Of a model whose matrices have whole blocks, and an output matrix of its own: what a device rounds is what the CPU
/// rounds. In formats of integers the CPU also rounds the inputs of products to 8 bits, where a device has bf16.
#[test]
fn every_format_gives_the_logits_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), 2);
    let opened = open(dir.path()).unwrap();
    for format in WeightFormat::ALL {
        let most = match format {
            WeightFormat::Exact | WeightFormat::File | WeightFormat::F32 => 1e-5,
            WeightFormat::F16 => 2.5e-3,
            WeightFormat::Bf16 | WeightFormat::Q8_0 | WeightFormat::Q4_1 => 2e-2,
        };
        let far = distance(&Served::new(&opened, format).logits(&sequences()), &on_cpu(&opened, format));
        assert!(far < most, "{}: {far}", format.as_str());
    }
}

/// Matrices of a GGUF file keep their integers.
#[test]
fn every_type_of_a_gguf_file_is_served_on_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for kind in BlockType::ALL {
        // A tensor of another kind among q, k, v: they are joined in a type that holds both.
        for odd in ["", "blk.0.attn_v.weight"] {
            let sizes = Sizes { d: 256, inner: 256, vocab: 96, blocks: 1, untied: odd.is_empty() };
            std::fs::write(&path, llama(sizes, kind, odd)).unwrap();
            let opened = open(&path).unwrap();
            let mut served = Served::new(&opened, WeightFormat::File);
            let got = served.logits(&sequences());
            let most = match kind {
                BlockType::F32 => 1e-5,
                BlockType::F16 => 2.5e-3,
                _ => 2e-2,
            };
            // A quantised tensor makes all others bf16.
            let most = if odd.is_empty() { most } else { 2e-2 };
            let far = distance(&got, &on_cpu(&opened, WeightFormat::Exact));
            assert!(far < most, "{kind:?} {odd}: {far}");
            let far = distance(&got, &on_cpu(&opened, WeightFormat::File));
            assert!(far < most.max(2e-2), "{kind:?} {odd}, with inputs in 8 bits: {far}");
            let alone: Vec<f32> = sequences().iter().flat_map(|s| served.logits(std::slice::from_ref(s))).collect();
            assert_eq!(alone, got, "{kind:?} {odd}: company changes nothing");
            if odd.is_empty() && kind.quantised() {
                let (held, dense) =
                    (served.model.memory().0, Served::new(&opened, WeightFormat::Bf16).model.memory().0);
                assert!(held < dense, "{kind:?}: {held} bytes, {dense} in bf16");
            }
        }
    }
}
