//! Loading of models to a device from their files: the same logits as from memory, and little memory on the host.

use std::path::Path;

use candle_core::Device;
use instructd::gpu::sim::Sim;
use instructd::model::decoder::device::{Blocks, Room};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceModel, ModelConfig, Purpose, load, open, save_dir};
use instructd::ops::blocks::BlockType;
use instructd::ops::linear::WeightFormat;
use instructd::train::rng::{Stream, normal, rng};
use serde_json::json;

use super::formats::{Sizes, llama};
use crate::support::allocations::peak_in;
use crate::support::{DECODERS, ON_CPU_ALONE, fixture};

const ROOM: Room = Room { pages: 8, longest: 128, rows: 16, wanted: 16 };

/// The logits of some tokens.
fn logits(decoder: &Decoder, blocks: Blocks<'_>, format: WeightFormat) -> Vec<f32> {
    let mut model = DeviceModel::new(decoder, blocks, Box::new(Sim::new(256 << 20)), format, ROOM).unwrap();
    let (mut cache, mut cached) = (KvCache::on_device(128), CachedSequence::default());
    assert!(cache.reserve(&mut cached, 5));
    let mut rows = StepRows::default();
    rows.push(&[3, 1, 4, 1, 5], &cached);
    model.step(decoder, &rows, &[0, 4], &[]).unwrap().logits
}

#[test]
fn weights_from_files_are_those_from_memory() {
    for name in DECODERS {
        let opened = open(&fixture(name)).unwrap();
        let frame = Decoder::without_blocks(&opened).unwrap();
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let whole = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
        for format in [WeightFormat::F32, WeightFormat::Q8_0, WeightFormat::Q4_1] {
            let want = logits(&whole, Blocks::Held, format);
            assert!(want.iter().all(|v| v.is_finite()));
            assert_eq!(logits(&frame, Blocks::Files(&opened), format), want, "{name}, {}", format.as_str());
        }
    }
}

#[test]
fn what_has_no_kernels_is_refused() {
    let loaded = load(&fixture(ON_CPU_ALONE), &Device::Cpu).unwrap();
    let whole = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
    let device = Box::new(Sim::new(256 << 20));
    let error = DeviceModel::new(&whole, Blocks::Held, device, WeightFormat::F32, ROOM).err().unwrap().to_string();
    assert!(error.contains("ReLU"), "{error}");
}

/// Writes a random model of blocks of 1 MB each as f32.
pub(super) fn write_model(dir: &Path, blocks: usize) {
    let hf_config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4000, "hidden_size": 128,
        "intermediate_size": 512, "num_hidden_layers": blocks, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    let config = ModelConfig::from_hf(&hf_config, None).unwrap();
    let numbers = |tensor, n| {
        let mut rng = rng(1, Stream::Init, tensor);
        (0..n).map(|_| normal(&mut rng)).collect()
    };
    let weights = init(&config, Heads::Backbone, &Device::Cpu, numbers).unwrap();
    save_dir(dir, &config, &hf_config, &weights, None, None, None).unwrap();
}

#[test]
fn a_model_is_on_the_host_one_block_at_a_time_while_it_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), 16);
    // Blocks that are kept, and blocks of a type that is converted.
    let kinds = [BlockType::Q4_0, BlockType::Q6K];
    let files = kinds.map(|kind| {
        let file = dir.path().join(format!("{}.gguf", kind.as_str()));
        let sizes = Sizes { d: 256, inner: 512, vocab: 1000, blocks: 8, untied: true };
        std::fs::write(&file, llama(sizes, kind, "")).unwrap();
        (file, WeightFormat::File)
    });
    for (path, format) in files.into_iter().chain([(dir.path().to_owned(), WeightFormat::Bf16)]) {
        let (mut on_device, mut all) = (0, 0);
        let peak = peak_in(|| {
            let opened = open(&path).unwrap();
            all = opened.files.parameters() * 4;
            let decoder = Decoder::without_blocks(&opened).unwrap();
            let device = Box::new(Sim::new(256 << 20));
            let model = DeviceModel::new(&decoder, Blocks::Files(&opened), device, format, ROOM).unwrap();
            on_device = model.memory().0 as usize;
        });
        assert!(all > 20_000_000, "{all}");
        // The simulated device is in the memory of the host.
        let rest = peak.saturating_sub(on_device);
        let of = path.display();
        assert!(rest < 8_000_000, "{of}: {rest} bytes of the host beside {on_device} of the device, for {all} as f32");
    }
}
