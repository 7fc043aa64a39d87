//! Encoders on the simulated device: hidden states, predictions, classes and rewards are those of the CPU, a text has the
//! same bits in any company, and a pass is one upload and one download with at most nine launches a block.

use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::gpu::device::{Counts, Device as _};
use instructd::gpu::shared::Shared;
use instructd::gpu::sim::Sim;
use instructd::model::decoder::training::{Element, TrainerOptions};
use instructd::model::encoder::text::{Pooling, TextEncoder};
use instructd::model::heads::classifier::{Classifier, add_pooler};
use instructd::model::init::{Heads, init};
use instructd::model::{Encoder, ModelConfig, PackedBatch, Purpose, Recompute, Trunk, load, open, save_dir};
use instructd::train::rng::{Stream, normal, rng};
use serde_json::{Value, json};

use crate::support::allocations::peak_in;
use crate::support::{ENCODERS, fixture, noise};

const BYTES: u64 = 256 << 20;

fn sim() -> Shared {
    Shared::new(Box::new(Sim::new(BYTES)))
}

fn on_device(dir: &Path, device: &Shared, element: Element) -> Encoder {
    Encoder::on_device(&open(dir).unwrap(), true, device.clone(), element).unwrap()
}

fn on_host(dir: &Path) -> Encoder {
    let loaded = load(dir, &Device::Cpu).unwrap();
    Encoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap()
}

/// Texts of many lengths, some longer than a tile of attention.
fn texts(config: &ModelConfig) -> Vec<Vec<u32>> {
    let lengths = [5, 150, 1, 40, 70, 33, 2].into_iter().filter(|len| *len <= config.max_positions);
    let text = |(i, len): (usize, usize)| (0..len).map(|t| ((t * 7 + i * 3 + 1) % config.vocab_size) as u32).collect();
    lengths.enumerate().map(text).collect()
}

/// Segments that change within a text.
fn segments(config: &ModelConfig, texts: &[Vec<u32>]) -> Vec<u32> {
    let last = config.type_vocab_size.saturating_sub(1) as u32;
    texts.iter().flat_map(|text| (0..text.len()).map(|t| last.min(u32::from(t > 2)))).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The difference relative to what is wanted, by Euclidean norms.
fn off(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    assert!(got.iter().all(|v| v.is_finite()));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let differences = &mut want.iter().zip(got).map(|(a, b)| f64::from(*a) - f64::from(*b));
    norm(differences) / norm(&mut want.iter().map(|v| f64::from(*v)))
}

/// Writes a random encoder with heads of sizes that published models have.
fn write_encoder(dir: &Path, hf_config: &Value) {
    let config = ModelConfig::from_hf(hf_config, None).unwrap();
    let numbers = |tensor, n| {
        let mut rng = rng(1, Stream::Init, tensor);
        // Larger than trained weights, so that attention is not the mean of all values.
        (0..n).map(|_| normal(&mut rng) * 4.0).collect()
    };
    let heads = if config.type_vocab_size > 0 { Heads::MaskedLm } else { Heads::Backbone };
    let weights = init(&config, heads, &Device::Cpu, numbers).unwrap();
    save_dir(dir, &config, hf_config, &weights, None, None, None).unwrap();
}

/// Encoders whose heads have 64 and 32 channels, one of them with windows of more than a tile.
fn wide() -> [Value; 2] {
    [
        json!({
            "model_type": "bert", "vocab_size": 300, "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 160, "type_vocab_size": 2,
        }),
        json!({
            "model_type": "modernbert", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 160, "local_attention": 90,
        }),
    ]
}

/// All encoders: fixtures, and random ones in directories that live as long as the result.
fn encoders() -> (Vec<std::path::PathBuf>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<_> = ENCODERS.map(fixture).into();
    for (i, config) in wide().iter().enumerate() {
        let own = dir.path().join(i.to_string());
        write_encoder(&own, config);
        all.push(own);
    }
    (all, dir)
}

#[test]
fn hidden_states_and_predictions_are_those_of_the_cpu() {
    let (all, _dir) = encoders();
    for dir in &all {
        let (host, name) = (on_host(dir), dir.display());
        let texts = texts(&host.config);
        let (batch, types) = (PackedBatch::new(&texts), segments(&host.config, &texts));
        let rows: Vec<u32> = (0..batch.len() as u32).step_by(9).collect();
        let [hidden, picked] =
            [host.forward(&batch, &types), host.forward_at(&batch, &types, &rows)].map(Result::unwrap);
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 2e-2)] {
            let device = sim();
            let there = on_device(dir, &device, element);
            let near = |want: &Tensor, got: &Tensor, what: &str| {
                let off = off(&values(want), &values(got));
                assert!(off <= tolerance, "{name}, {what}, {}: {off:.1e} off", element.as_str());
            };
            near(&hidden, &there.forward(&batch, &types).unwrap(), "hidden states");
            let own = there.forward_at(&batch, &types, &rows).unwrap();
            near(&picked, &own, "some hidden states");
            assert_eq!(host.has_mlm_head(), there.has_mlm_head(), "{name}");
            if host.has_mlm_head() {
                near(&host.mlm_logits(&picked).unwrap(), &there.mlm_logits(&own).unwrap(), "predictions");
            } else {
                assert!(there.mlm_logits(&own).unwrap_err().to_string().contains("no masked-LM head"));
            }
            match host.pool(&picked).unwrap() {
                Some(pooled) => near(&pooled, &there.pool(&own).unwrap().unwrap(), "pooled"),
                None => assert!(there.pool(&own).unwrap().is_none(), "{name}"),
            }
            drop(there);
            assert_eq!(device.memory().0, 0, "{name}: memory after the encoder is dropped");
        }
    }
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_any_company() {
    let (all, _dir) = encoders();
    for dir in &all {
        for element in [Element::F32, Element::Bf16] {
            let there = on_device(dir, &sim(), element);
            let texts = texts(&there.config);
            let hidden = |texts: &[Vec<u32>]| {
                let batch = PackedBatch::new(texts);
                let all = values(&there.forward(&batch, &segments(&there.config, texts)).unwrap());
                let d = there.config.hidden_size;
                batch.offsets.windows(2).map(|span| all[span[0] * d..span[1] * d].to_vec()).collect::<Vec<_>>()
            };
            let together = hidden(&texts);
            for (text, want) in texts.iter().zip(&together) {
                assert_eq!(
                    &hidden(std::slice::from_ref(text))[0],
                    want,
                    "{}: {} tokens alone",
                    dir.display(),
                    text.len()
                );
            }
            let turned: Vec<_> = texts.iter().rev().cloned().collect();
            let mut again = hidden(&turned);
            again.reverse();
            assert!(again == together, "{}: in another order", dir.display());
        }
    }
}

#[test]
fn a_pass_is_one_upload_one_download_and_at_most_nine_launches_a_block() {
    let launches = |name: &str| {
        let device = sim();
        let there = on_device(&fixture(name), &device, Element::Bf16);
        let texts = texts(&there.config);
        let (batch, types) = (PackedBatch::new(&texts), segments(&there.config, &texts));
        let before = device.counts();
        there.forward(&batch, &types).unwrap();
        let Counts { launches, uploads, downloads, waits } = device.counts() - before;
        assert_eq!((uploads, downloads, waits), (1, 1, 1), "{name}");
        launches
    };
    // Embeddings, segments and their norm; then per block.
    assert_eq!(launches("bert-tiny"), 3 + 2 * 8);
    assert_eq!(launches("families/distilbert"), 2 + 2 * 8);
    // The first block has no norm before attention; the last launch is the final norm.
    assert_eq!(launches("families/modernbert"), 2 + 4 * 9 - 1 + 1);
}

#[test]
fn embeddings_and_filled_gaps_are_those_of_the_cpu() {
    for name in ENCODERS {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let host = TextEncoder::new(&loaded).unwrap();
        let there = TextEncoder::over(on_device(&fixture(name), &sim(), Element::F32), &loaded);
        let texts = texts(&loaded.config);
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Max, Pooling::LastToken] {
            let embed = |encoder: &TextEncoder| encoder.embed(&texts, Some(pooling), true).unwrap().concat();
            let off = off(&embed(&host), &embed(&there));
            assert!(off <= 1e-5, "{name}, {pooling:?}: {off:.1e} off");
        }
        let (ids, types) = (&texts[0], segments(&loaded.config, &texts[..1]));
        let fill = |encoder: &TextEncoder| encoder.fill(ids, &types, &[1, 3]).unwrap().concat();
        let off = off(&fill(&host), &fill(&there));
        assert!(off <= 1e-5, "{name}, fill: {off:.1e} off");
    }
}

#[test]
fn classes_are_those_of_the_cpu() {
    for name in ENCODERS {
        let dir = tempfile::tempdir().unwrap();
        let mut loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let d = loaded.config.hidden_size;
        let matrix = |rows: usize, seed| Tensor::from_vec(noise(rows * d, seed), (rows, d), &Device::Cpu);
        add_pooler(&loaded.config, &mut loaded.weights, || matrix(d, 7)).unwrap();
        loaded.weights.insert("classifier.weight".to_owned(), matrix(3, 8).unwrap());
        loaded.weights.insert("classifier.bias".to_owned(), Tensor::new(&[0.3f32, -0.2, 0.1], &Device::Cpu).unwrap());
        let about = json!({"kind": "classifier", "classifier": {"labels": ["a", "b", "c"], "max_length": 48}});
        let tokenizer = loaded.tokenizer.as_ref();
        save_dir(dir.path(), &loaded.config, &loaded.hf_config, &loaded.weights, tokenizer, None, Some(&about))
            .unwrap();
        let roles = r#"{"cls_token": "t1", "sep_token": "t2"}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), roles).unwrap();
        let host = load(dir.path(), &Device::Cpu).unwrap();
        let texts = ["t5 t6 t7", "t9", "t30 t31 t32 t33 t34 t35 t36 t37 t38 t39 t40 t41 t42 t43"];
        let want = Classifier::new(&host).unwrap().classify(&texts, 4096).unwrap();
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 2e-2)] {
            let opened = open(dir.path()).unwrap();
            let trunk = Trunk::on_device(&opened, sim(), TrainerOptions::new(element, Recompute::None)).unwrap();
            let there = Classifier::over(trunk, &opened.into_heads().unwrap()).unwrap();
            let got = there.classify(&texts, 4096).unwrap();
            let off = off(&want.concat(), &got.concat());
            assert!(off <= tolerance, "{name}, {}: {off:.1e} off", element.as_str());
            assert_eq!(there.classify(&texts[1..2], 4096).unwrap()[0], got[1], "{name}");
        }
    }
}

#[test]
fn what_does_not_exist_is_refused() {
    let there = on_device(&fixture("bert-tiny"), &sim(), Element::F32);
    let refused = |ids: &[u32], types: &[u32], rows: &[u32]| {
        there.forward_at(&PackedBatch::new(&[ids]), types, rows).unwrap_err().to_string()
    };
    assert!(refused(&[1, 96], &[0, 0], &[0]).contains("token 96 is outside the vocabulary of 96"));
    assert!(refused(&[1, 2], &[0, 2], &[0]).contains("segment 2 is outside the model's 2"));
    assert!(refused(&[1, 2], &[0, 0], &[2]).contains("row 2 is outside the 2 tokens"));
    assert!(refused(&[1, 2], &[0, 0], &[]).contains("without rows"));
    assert!(refused(&[1; 65], &[0; 65], &[0]).contains("position 64 is outside the model's 64 positions"));
    assert!(refused(&[1, 2], &[0], &[0]).contains("2 tokens, 1 segment ids"));
    // The host has nothing to compute with, and says so.
    let batch = PackedBatch::new(&[[1u32, 2]]);
    let by = there.forward_by(&batch, &[0, 0], &mut |_, _, _, _| unreachable!());
    assert!(by.unwrap_err().to_string().contains("on a device"));
    // The encoder works on.
    there.forward(&batch, &[0, 0]).unwrap();
    let error = Encoder::on_device(&open(&fixture("llama-tiny")).unwrap(), true, sim(), Element::F32).unwrap_err();
    assert!(error.to_string().contains("a decoder, not an encoder"), "{error}");
    // Without its output matrix it predicts nothing.
    let opened = open(&fixture("bert-tiny")).unwrap();
    let without = Encoder::on_device(&opened, false, sim(), Element::F32).unwrap();
    assert!(!without.has_mlm_head());
}

#[test]
fn an_encoder_is_on_the_host_one_block_at_a_time_while_it_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "bert", "vocab_size": 4000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 20,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    });
    write_encoder(dir.path(), &config);
    let (mut on_device, mut all) = (0, 0);
    let peak = peak_in(|| {
        let opened = open(dir.path()).unwrap();
        all = opened.files.parameters() * 4;
        let device = sim();
        let _encoder = Encoder::on_device(&opened, true, device.clone(), Element::Bf16).unwrap();
        on_device = device.memory().0 as usize;
    });
    // The simulated device is in the memory of the host.
    let rest = peak.saturating_sub(on_device);
    assert!(all > 17_000_000, "{all}");
    assert!(rest < 9_000_000, "{rest} bytes of the host beside {on_device} of the device, for {all} as f32");
}
