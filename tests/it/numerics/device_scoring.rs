//! Models that only score, on the simulated device: reward models, log-probs of given tokens and evaluations have the
//! CPU's values, a text has the same bits in any company, and memory is free again after a model and after a failure.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use candle_core::Device;
use instructd::eval::place::Place;
use instructd::eval::run::{EvalArgs, EvalResult, run_at};
use instructd::generation::score::{Continuation, ContinuationScorer};
use instructd::gpu::GpuError;
use instructd::gpu::device::Device as _;
use instructd::gpu::shared::Shared;
use instructd::gpu::sim::Sim;
use instructd::model::decoder::attached::{Attached, DevicePasses, Keep, Wanted};
use instructd::model::decoder::device::{Blocks, Room};
use instructd::model::decoder::training::{Element, TrainerOptions};
use instructd::model::{
    Decoder, DeviceModel, DeviceTrainer, Encoder, PackedBatch, Purpose, Recompute, RewardModel, RopeScaling, Trunk,
    load, open,
};
use instructd::ops::linear::WeightFormat;
use instructd::train::trainable::Trainable;
use serde_json::{Value, json};

use super::device_loading::write_model;
use crate::support::allocations::peak_in;
use crate::support::devices::{self, Control};
use crate::support::{DECODERS, ENCODERS, UNLIKE, assert_near, fixture, fixtures, write_heads, write_reward_model};

const BYTES: u64 = 256 << 20;

fn sim(bytes: u64) -> Shared {
    Shared::new(Box::new(Sim::new(bytes)))
}

fn options(element: Element) -> TrainerOptions {
    TrainerOptions::new(element, Recompute::None)
}

/// Texts of many lengths, some longer than a tile of attention.
fn texts(vocab: usize) -> Vec<Vec<u32>> {
    let text = |(i, len): (usize, usize)| (0..len).map(|t| ((t * 7 + i * 3 + 1) % vocab) as u32).collect();
    [5, 40, 1, 23, 17, 2].into_iter().enumerate().map(text).collect()
}

fn reward_on(device: &Shared, dir: &Path, element: Element) -> RewardModel {
    let opened = open(dir).unwrap();
    let trunk = Trunk::on_device(&opened, device.clone(), options(element)).unwrap();
    RewardModel::over(trunk, &opened.into_heads().unwrap()).unwrap()
}

#[test]
fn rewards_are_those_of_the_cpu_with_the_same_bits_in_any_company() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let dir = tempfile::tempdir().unwrap();
        write_reward_model(name, dir.path());
        // Ends the first segment of encoders.
        std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"sep_token": "t8"}"#).unwrap();
        let loaded = load(dir.path(), &Device::Cpu).unwrap();
        let texts = texts(loaded.config.vocab_size.min(90));
        let want = RewardModel::new(&loaded).unwrap().scores(&texts, 4096).unwrap();
        let device = sim(BYTES);
        let model = reward_on(&device, dir.path(), Element::F32);
        let got = model.scores(&texts, 4096).unwrap();
        assert_near(&want, &got, 1e-5, name);
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(model.scores(std::slice::from_ref(text), 4096).unwrap()[0], got[i], "{name}: text {i} alone");
        }
        let turned: Vec<_> = texts.iter().rev().cloned().collect();
        let mut again = model.scores(&turned, 30).unwrap();
        again.reverse();
        assert_eq!(again, got, "{name}: in other batches");
        drop(model);
        assert_eq!(device.memory().0, 0, "{name}: memory after the model is dropped");
    }
}

#[test]
fn rewards_in_bf16_are_near_those_of_the_cpu() {
    for name in ["llama-tiny"].into_iter().chain(ENCODERS) {
        let dir = tempfile::tempdir().unwrap();
        write_reward_model(name, dir.path());
        let loaded = load(dir.path(), &Device::Cpu).unwrap();
        let texts = texts(90);
        let want = RewardModel::new(&loaded).unwrap().scores(&texts, 4096).unwrap();
        let model = reward_on(&sim(BYTES), dir.path(), Element::Bf16);
        assert_near(&want, &model.scores(&texts, 64).unwrap(), 3e-2, &format!("{name}, bf16"));
    }
}

/// (rows, targets) that predict every token but the first of each text.
fn predictions(batch: &PackedBatch) -> (Vec<u32>, Vec<u32>) {
    let spans = batch.offsets.windows(2);
    let rows: Vec<u32> = spans.flat_map(|span| span[0] as u32..span[1] as u32 - 1).collect();
    let targets = rows.iter().map(|row| batch.ids[*row as usize + 1]).collect();
    (rows, targets)
}

#[test]
fn logprobs_of_given_tokens_are_those_of_the_cpu() {
    for name in DECODERS {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let host = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
        let device = sim(BYTES);
        let opened = open(&fixture(name)).unwrap();
        let there = Decoder::on_device(&opened, true, device.clone(), options(Element::F32)).unwrap();
        let batch = PackedBatch::new(&texts(loaded.config.vocab_size.min(90)));
        let (rows, targets) = predictions(&batch);
        let values = |decoder: &Decoder| -> Vec<f32> {
            decoder.logprobs_at(&batch, &rows, &targets).unwrap().to_vec1().unwrap()
        };
        let (want, got) = (values(&host), values(&there));
        for (a, b) in want.iter().zip(&got) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{name}: {b}, not {a}");
        }
        // The weights have the bits that they have when they are copied from the host.
        let mut copied = DeviceTrainer::new(&host, &HashMap::new(), sim(BYTES), options(Element::F32)).unwrap();
        let wanted = Wanted { batch: &batch, rows: &rows, targets: Some(&targets) };
        assert_eq!(copied.logprobs(&host, wanted, 1.0, Keep::Nothing).unwrap().logprobs, got, "{name}");
        // The host has nothing to compute with, and says so.
        for error in [there.forward(&batch).unwrap_err(), there.forward_last_frozen(&batch, &[1; 6]).unwrap_err()] {
            assert!(error.to_string().contains("on a device"), "{name}: {error}");
        }
        drop(there);
        assert_eq!(device.memory().0, 0, "{name}");
    }
}

#[test]
fn a_model_that_only_scores_is_on_the_host_one_block_at_a_time_while_it_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), 16);
    for logits in [true, false] {
        let (mut on_device, mut all) = (0, 0);
        let peak = peak_in(|| {
            let opened = open(dir.path()).unwrap();
            all = opened.files.parameters() * 4;
            let device = sim(BYTES);
            let _decoder = Decoder::on_device(&opened, logits, device.clone(), options(Element::Bf16)).unwrap();
            on_device = device.memory().0 as usize;
        });
        // The simulated device is in the memory of the host.
        let rest = peak.saturating_sub(on_device);
        assert!(all > 17_000_000, "{all}");
        assert!(rest < 9_000_000, "{rest} bytes of the host beside {on_device} of the device, for {all} as f32");
    }
}

/// Whatever does not fit, nothing of a model stays on the device; with enough memory all of it goes when it is dropped.
#[test]
fn a_failure_to_load_leaves_no_memory_taken() {
    let loaded = load(&fixture("qwen2-tiny"), &Device::Cpu).unwrap();
    let opened = open(&fixture("qwen2-tiny")).unwrap();
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
    let host = policy.decoder();
    let weights = Decoder::new(&loaded.config, &loaded.weights, Purpose::Score).unwrap();
    let variables = policy.params.iter().map(|(name, var)| (var.id(), name.clone()));
    let (frozen, trained) = (HashMap::new(), variables.collect::<HashMap<_, _>>());
    let room = Room { pages: 8, longest: 64, rows: 16, wanted: 16 };
    let f32 = options(Element::F32);
    type Load<'a> = Box<dyn Fn(Shared) -> Result<(), GpuError> + 'a>;
    let bert = open(&fixture("bert-tiny")).unwrap();
    let loads: [(&str, Load<'_>); 6] = [
        ("an encoder", Box::new(|device| Encoder::on_device(&bert, true, device, Element::F32).map(drop))),
        ("frozen, from files", Box::new(|device| Decoder::on_device(&opened, true, device, f32).map(drop))),
        ("frozen", Box::new(|device| DeviceTrainer::new(host, &frozen, device, f32).map(drop))),
        ("trained", Box::new(|device| DeviceTrainer::new(host, &trained, device, options(Element::Bf16)).map(drop))),
        (
            "served",
            Box::new(|device| {
                let (blocks, device) = (Blocks::Held, Box::new(device));
                DeviceModel::new(&weights, blocks, device, WeightFormat::Q8_0, room).map(drop)
            }),
        ),
        (
            "a sampler of a trained model",
            Box::new(|device| {
                let mut trainer = DeviceTrainer::new(host, &frozen, device.clone(), f32)?;
                let before = device.memory().0;
                let made = trainer.stepping(room, 1.0).map(drop);
                assert_eq!(device.memory().0, before, "beside the trainer");
                made
            }),
        ),
    ];
    for (what, load) in loads {
        let mut failures = 0;
        loop {
            let device = sim((failures + 1) * (8 << 10));
            let result = load(device.clone());
            assert_eq!(device.memory().0, 0, "{what}: {:?}, {result:?}", device.memory());
            match result {
                Ok(()) => break,
                Err(GpuError::OutOfMemory { .. }) => failures += 1,
                Err(error) => panic!("{what}: {error}"),
            }
        }
        assert!(failures > 5, "{what}: {failures} failures");
    }
}

/// With memory for the weights and the largest pass alone, every batch finds its memory.
#[test]
fn passes_find_the_memory_that_was_set_aside() {
    const TOKENS: usize = 90;
    for name in UNLIKE.into_iter().chain(["gpt2-tiny", "families/qwen3"]).chain(ENCODERS) {
        for element in [Element::F32, Element::Bf16] {
            let dir = tempfile::tempdir().unwrap();
            write_reward_model(name, dir.path());
            let load_to = |device: Shared| {
                let opened = open(dir.path()).unwrap();
                let trunk = Trunk::on_device(&opened, device, options(element)).unwrap();
                (trunk, opened.into_heads().unwrap())
            };
            let device = sim(BYTES);
            let (trunk, heads) = load_to(device.clone());
            let weights = device.memory().0;
            trunk.reserve(TOKENS).unwrap();
            let all = device.memory().0;
            let model = RewardModel::over(trunk, &heads).unwrap();
            let texts = texts(90);
            let want = model.scores(&texts, TOKENS).unwrap();
            assert_eq!(device.memory().0, all, "{name}: nothing is allocated beside the block");
            drop(model);
            assert_eq!(device.memory().0, 0, "{name}");

            let full = sim(all);
            let (trunk, heads) = load_to(full.clone());
            trunk.reserve(TOKENS).unwrap();
            let model = RewardModel::over(trunk, &heads).unwrap();
            for most in [TOKENS, 30, 1] {
                assert_eq!(model.scores(&texts, most).unwrap(), want, "{name}");
            }
            let short: Vec<Vec<u32>> = (0..TOKENS as u32).map(|i| vec![i % 90]).collect();
            model.scores(&short, TOKENS).unwrap();
            drop(model);
            // A block without room is refused, and the model computes as before.
            let (trunk, heads) = load_to(sim(all - 256));
            assert!(matches!(trunk.reserve(TOKENS), Err(GpuError::OutOfMemory { .. })), "{name}");
            let model = RewardModel::over(trunk, &heads).unwrap();
            assert_eq!(model.scores(&texts, 1).unwrap(), want, "{name}");
            assert!(all > weights);
        }
    }
}

#[test]
fn sampling_gives_its_memory_back() {
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let host = Decoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    let device = sim(BYTES);
    let trainer = DeviceTrainer::new(&host, &HashMap::new(), device.clone(), options(Element::F32)).unwrap();
    let before = device.memory().0;
    let attached = Attached::new(std::sync::Arc::new(std::sync::Mutex::new(trainer)));
    let mut behaviour = host.clone();
    let room = Room { pages: 8, longest: 64, rows: 16, wanted: 16 };
    behaviour.attach(attached.with_steps(room, 1.0).unwrap());
    assert!(device.memory().0 > before);
    behaviour.end_steps();
    assert_eq!(device.memory().0, before);
    assert!(behaviour.attached().is_some_and(|device| device.steps().is_none()));
}

/// The figures as JSON, in which numbers are compared with a tolerance.
fn compare(want: &Value, got: &Value, tolerance: f64, at: &str) {
    match (want, got) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= tolerance * a.abs().max(1.0), "{at}: {b}, not {a}");
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(a, b, tolerance, &format!("{at}[{i}]")));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{at}");
            a.iter().for_each(|(name, a)| compare(a, &b[name], tolerance, &format!("{at}.{name}")));
        }
        (a, b) => assert_eq!(a, b, "{at}"),
    }
}

fn place(value: Value) -> Place {
    serde_json::from_value(value).unwrap()
}

fn evaluated(args: &Value, at: Value) -> anyhow::Result<EvalResult> {
    run_at(&serde_json::from_value::<EvalArgs>(args.clone()).unwrap(), place(at))
}

#[test]
fn evaluations_are_those_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let [reward, classifier] = ["reward", "classifier"].map(|name| dir.path().join(name));
    write_reward_model("llama-tiny", &reward);
    let about = json!({"kind": "classifier", "classifier": {"labels": ["bad", "good"], "max_length": 64}});
    write_heads("llama-tiny", &classifier, &about);
    let write = |name: &str, lines: Vec<Value>| {
        let path = dir.path().join(name);
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        path
    };
    let words =
        |i: u32, n: u32| (0..n).map(|k| format!("t{}", 3 + (i * 31 + k * 7) % 90)).collect::<Vec<_>>().join(" ");
    let label = |i: u32| if i.is_multiple_of(3) { "good" } else { "bad" };
    let written = (0..9).map(|i| json!({"prompt": words(i, 4), "completion": words(i + 1, 2 + i % 5)}));
    let written = write("written.jsonl", written.collect());
    let labelled = (0..20).map(|i| json!({"text": words(i, 3 + i % 6), "label": label(i)}));
    let labelled = write("labelled.jsonl", labelled.collect());
    let text = dir.path().join("text.txt");
    std::fs::write(&text, format!("{}\n\n{}", words(1, 200), words(2, 30))).unwrap();
    let model = fixture("llama-tiny");
    let all = [
        json!({"kind": "perplexity", "model": model, "text": text, "max_length": 48}),
        json!({"kind": "scores", "model": reward, "completions": written}),
        json!({"kind": "reward", "model": reward, "comparisons": fixtures().join("oasst-en-ranked.jsonl")}),
        json!({"kind": "classifier", "model": classifier, "labelled": labelled}),
        json!({
            "kind": "choice", "data": labelled, "template": "t90 {input} t91 {label}", "separator": " t92 ",
            "verbalizers": {"good": ["t10", "t11 t12"], "bad": ["t20"]}, "shots": [0, 2],
            "content_free": ["t50", "t51 t52"], "seed": 5,
            "systems": [{"name": "tiny", "model": model}, {"name": "head", "model": classifier}],
        }),
    ];
    for args in &all {
        let want = serde_json::to_value(evaluated(args, json!({})).unwrap()).unwrap();
        for (at, tolerance) in [(json!({"device": "sim"}), 1e-5), (json!({"device": "sim", "precision": "bf16"}), 5e-2)]
        {
            if args["kind"] != "perplexity" && at.get("precision").is_some() {
                // Counts, which rounding changes by whole texts, and scores, which are compared elsewhere.
                continue;
            }
            let got = serde_json::to_value(evaluated(args, at).unwrap()).unwrap();
            compare(&want, &got, tolerance, args["kind"].as_str().unwrap());
        }
    }
}

/// The log-probs are those of the CPU, and a prefix and a stem that the continuations share are computed once. Without room
/// for keys and values the device computes whole sequences.
#[test]
fn a_common_prefix_is_computed_once() {
    static CONTROLS: [Control; 1] = [Control::new()];
    let control = &CONTROLS[0];
    for name in DECODERS {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let host = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
        let opened = open(&fixture(name)).unwrap();
        let device = Shared::new(devices::open("sim:0", &CONTROLS).unwrap().unwrap());
        let there = Decoder::on_device(&opened, true, device.clone(), options(Element::F32)).unwrap();
        let weights = device.memory().0;
        let ids = |n: u32, by: u32| (0..n).map(move |i| (i * by + 2) % 90);
        let prefix: Vec<u32> = ids(37, 7).collect();
        let with = |own: u32, tail: &[u32]| [prefix.as_slice(), &ids(own, 5).collect::<Vec<_>>(), tail].concat();
        let tails: [&[u32]; 4] = [&[7], &[9], &[7, 8, 20], &[30, 31]];
        let from = |own: u32, earlier: usize| prefix.len() + own as usize - earlier;
        let texts = |own: u32| {
            let text = |(i, tail): (usize, &&[u32])| Continuation {
                ids: with(own, tail),
                from: from(own, usize::from(i == 3)),
            };
            tails.iter().enumerate().map(text).collect::<Vec<_>>()
        };
        let near = |want: &[Vec<f32>], got: &[Vec<f32>], what: &str| {
            assert_eq!(want.iter().map(Vec::len).collect::<Vec<_>>(), got.iter().map(Vec::len).collect::<Vec<_>>());
            for (a, b) in want.iter().flatten().zip(got.iter().flatten()) {
                assert!((a - b).abs() <= 2e-5 * a.abs().max(1.0), "{name}, {what}: {b}, not {a}");
            }
        };
        let mut on_host = ContinuationScorer::new(&host, None, 4).unwrap();
        let mut scorer = ContinuationScorer::new(&there, None, 4).unwrap();
        assert!(device.memory().0 > weights, "{name}: the cache");
        let taken = device.memory().0;
        let computed = || control.tokens.swap(0, SeqCst);
        on_host.set_prefix(&prefix).unwrap();
        computed();
        scorer.set_prefix(&prefix).unwrap();
        assert_eq!(computed(), 37, "{name}: the prefix");
        for own in [1u32, 6, 19] {
            let texts = texts(own);
            near(&on_host.score(&texts).unwrap(), &scorer.score(&texts).unwrap(), "cached");
            // From the token that predicts the first scored one or from the prefix on, and the tokens of the tails that
            // predict others. Lengths at which rotary frequencies change compute more.
            let once = own.max(2) as usize + 2 + 1;
            let grows = loaded.config.switches.rope_scaling != RopeScaling::None;
            assert!(computed() == once || grows, "{name}, {own}");
        }
        // Many tokens to score: whole sequences, whose log-probs are computed on the device.
        let long = Continuation { ids: with(6, &[3, 4]), from: 1 };
        let long = vec![long; 7];
        near(&on_host.score(&long).unwrap(), &scorer.score(&long).unwrap(), "whole");
        assert!(scorer.score(&[Continuation { ids: vec![1], from: 1 }]).is_err());
        assert_eq!(device.memory().0, taken, "{name}");
        drop(scorer);
        assert_eq!(device.memory().0, weights, "{name}: after the scorer is dropped");

        control.full.store(true, SeqCst);
        let without = ContinuationScorer::new(&there, None, 4);
        control.full.store(false, SeqCst);
        let mut without = without.unwrap();
        without.set_prefix(&prefix).unwrap();
        computed();
        near(&on_host.score(&texts(6)).unwrap(), &without.score(&texts(6)).unwrap(), "without a cache");
        assert_eq!(computed(), 4 * (37 + 6) + 2 + 1, "{name}: whole sequences");
    }
}

#[test]
fn what_a_device_does_not_evaluate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "t1 t2 t3").unwrap();
    let args = |model: &str| json!({"kind": "perplexity", "model": fixture(model), "text": text});
    let refused = |model: &str, at: Value| format!("{:#}", evaluated(&args(model), at).unwrap_err());
    let error = refused("bert-tiny", json!({"device": "sim"}));
    assert!(error.contains("Bert is an encoder, not a decoder"), "{error}");
    let error = refused("llama-tiny", json!({"precision": "bf16"}));
    assert!(error.contains("precision") && error.contains("cuda"), "{error}");
    assert!(serde_json::from_value::<Place>(json!({"device": "gpu"})).is_err());
}
