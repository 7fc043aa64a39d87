//! Gradients and updates of decoders on the simulated device, with the launches that a GPU would get, against the CPU's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use instructd::gpu::GpuError;
use instructd::gpu::shared::Shared;
use instructd::gpu::sim::Sim;
use instructd::model::decoder::attached::{Attached, DevicePasses, Keep, Wanted};
use instructd::model::decoder::training::{AdamStep, BaseOf, Element, State, TrainerOptions};
use instructd::model::init::{Heads, init};
use instructd::model::{Decoder, DeviceTrainer, ModelConfig, Recompute, load};
use instructd::objective::causal_lm;
use instructd::train::args::{FrozenPrecision, LoraArgs};
use instructd::train::device_tensors::adam_step;
use instructd::train::optim::{AdamConfig, AdamForm, AdamW, Grads, Group, clipping, global_norm};
use instructd::train::rng::{Stream, normal, rng};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence};
use instructd::train::trainable::{Freeze, Trainable};

use crate::support::{DECODERS, fixture};

const BYTES: u64 = 256 << 20;

/// Two sequences, one of them longer than a tile of attention and than most windows.
fn sequences(vocab: usize) -> Vec<Sequence> {
    let id = |i: usize| ((i * 7 + 3) % vocab) as u32;
    vec![Sequence { ids: (0..40).map(id).collect(), start: 4 }, Sequence { ids: (50..57).map(id).collect(), start: 1 }]
}

fn policy(name: &str, lora: Option<&LoraArgs>, freeze: Freeze) -> Trainable {
    let loaded = load(&fixture(name), &Device::Cpu).unwrap();
    let precision = FrozenPrecision::F32;
    let policy = Trainable::of(&loaded.config, loaded.weights, lora, freeze, Recompute::None, precision, 0).unwrap();
    // A second factor of zeros would hide the gradient of the first.
    for (name, var) in policy.params.iter().filter(|(name, _)| name.contains("lora_B")) {
        let noise: Vec<f32> = (0..var.elem_count()).map(|i| ((i + name.len()) as f32).sin() * 0.05).collect();
        var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    policy
}

fn options(element: Element) -> TrainerOptions {
    TrainerOptions::new(element, Recompute::None)
}

fn trainer_with(policy: &Trainable, options: TrainerOptions) -> Result<DeviceTrainer, String> {
    let names: HashMap<_, _> = policy.params.iter().map(|(name, var)| (var.id(), name.clone())).collect();
    DeviceTrainer::new(policy.decoder(), &names, Shared::new(Box::new(Sim::new(BYTES))), options)
        .map_err(|e| e.to_string())
}

fn trainer(policy: &Trainable, element: Element) -> DeviceTrainer {
    trainer_with(policy, options(element)).unwrap()
}

/// Log-probs and gradients of the language-model loss on the CPU.
fn on_host(policy: &Trainable, sequences: &[&Sequence], total: f64) -> (Vec<f32>, Grads) {
    let packed = PredictionBatch::new(sequences);
    let hidden = packed.hidden(policy.decoder()).unwrap();
    let logprobs = packed.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs;
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &causal_lm::loss(&logprobs, total).unwrap().0).unwrap();
    (logprobs.to_vec1().unwrap(), sum.grads)
}

/// One update with clipped gradients; returns their norm.
fn update(trainer: &mut DeviceTrainer, step: &AdamStep, max: Option<f64>) -> Result<f64, GpuError> {
    let norm = trainer.gradient_norm()?;
    trainer.apply(step, clipping(norm, max))?;
    Ok(norm)
}

fn wanted(packed: &PredictionBatch) -> Wanted<'_> {
    Wanted { batch: &packed.batch, rows: &packed.rows, targets: Some(&packed.targets) }
}

/// The same on a device; gradients are added to those that are there.
fn on_device(trainer: &mut DeviceTrainer, policy: &Trainable, sequences: &[&Sequence], total: f64) -> Vec<f32> {
    let packed = PredictionBatch::new(sequences);
    let scores = trainer.logprobs(policy.decoder(), wanted(&packed), 1.0, Keep::All).unwrap();
    trainer.backward(&vec![-1.0 / total as f32; packed.rows.len()]).unwrap();
    scores.logprobs
}

fn difference(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let (mut off, mut size) = (0f64, 0f64);
    for (a, b) in want.iter().zip(got) {
        assert!(b.is_finite(), "not finite");
        off += f64::from(a - b).powi(2);
        size += f64::from(*a).powi(2);
    }
    (off / size.max(1e-30)).sqrt()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares all gradients: each tensor with `each`, all together with `all`. A tensor whose gradient is smaller than a
/// thousandth of the whole is compared relative to that: the bias of keys without rotary positions, for instance, has
/// no effect on attention, and its gradient is what rounding leaves.
fn compare(name: &str, want: &Grads, got: &BTreeMap<String, Vec<f32>>, each: f64, all: f64) {
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{name}");
    let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let whole = want.values().map(|grad| norm(&flat(grad)).powi(2)).sum::<f64>().sqrt();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (tensor, grad) in want {
        let (grad, own) = (flat(grad), &got[tensor]);
        assert!(own.iter().any(|v| *v != 0.0), "{name}: the gradient of {tensor} is zero");
        let size = norm(&grad);
        let off = difference(&grad, own) * size / size.max(1e-3 * whole);
        assert!(off < each, "{name}: {tensor} is off by {off:.1e}");
        theirs.extend(grad);
        ours.extend_from_slice(own);
    }
    let off = difference(&theirs, &ours);
    assert!(off < all, "{name}: all gradients are off by {off:.1e}");
}

#[test]
fn gradients_are_those_of_the_cpu_for_every_family() {
    let mut trained = 0;
    for name in DECODERS {
        let policy = policy(name, None, Freeze::default());
        trained += 1;
        let sequences = sequences(policy.config.vocab_size);
        let sequences: Vec<_> = sequences.iter().collect();
        let total = sequences.iter().map(|s| s.predicted()).sum::<usize>() as f64;
        let (want, grads) = on_host(&policy, &sequences, total);
        // Random models amplify the rounding of bfloat16. Three do so most, in their logits too (`numerics::sim`).
        let rounded = match name {
            "families/phi4-mini" | "families/smollm3-window" | "families/qwen2-window" => {
                (Element::Bf16, 6e-2, 6e-1, 2e-1)
            }
            _ => (Element::Bf16, 3e-2, 3e-1, 1e-1),
        };
        for (element, near, each, all) in [(Element::F32, 1e-5, 1e-5, 1e-5), rounded] {
            let mut trainer = trainer(&policy, element);
            let got = on_device(&mut trainer, &policy, &sequences, total);
            assert!(difference(&want, &got) < near, "{name}: {}", difference(&want, &got));
            let own = trainer.read(State::Gradients).unwrap();
            compare(&format!("{name}, {}", element.as_str()), &grads, &own, each, all);
        }
    }
    assert!(trained >= 28, "{trained}");
}

/// A random model whose heads have `head_dim` channels.
fn of_heads(head_dim: usize) -> Trainable {
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let config = ModelConfig { head_dim, n_heads: 2, n_kv_heads: 1, ..loaded.config };
    let numbers = |tensor, n| {
        let mut rng = rng(5, Stream::Init, tensor);
        (0..n).map(|_| normal(&mut rng)).collect()
    };
    let weights = init(&config, Heads::Backbone, &Device::Cpu, numbers).unwrap();
    Trainable::new(&config, weights, None, 0).unwrap()
}

#[test]
fn gradients_of_wide_heads_are_those_of_the_cpu() {
    for head_dim in [104, 160, 256] {
        let policy = of_heads(head_dim);
        let sequences = sequences(policy.config.vocab_size);
        let sequences: Vec<_> = sequences.iter().collect();
        let (_, grads) = on_host(&policy, &sequences, 42.0);
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 1e-1)] {
            let mut trainer = trainer(&policy, element);
            on_device(&mut trainer, &policy, &sequences, 42.0);
            let name = format!("heads of {head_dim} channels");
            compare(&name, &grads, &trainer.read(State::Gradients).unwrap(), tolerance * 3.0, tolerance);
        }
    }
}

#[test]
fn gradients_of_adapters_are_those_of_the_cpu() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    // q, k and v, gate and up: apart, in one matrix, and by head; norms of q and k; parallel blocks; biases.
    for name in [
        "llama-tiny",
        "gpt2-tiny",
        "qwen2-tiny",
        "families/gemma2",
        "families/gemma3",
        "families/gpt-neox",
        "families/phi3",
    ] {
        let policy = policy(name, Some(&lora), Freeze::default());
        let sequences = sequences(policy.config.vocab_size);
        let sequences: Vec<_> = sequences.iter().collect();
        let (_, grads) = on_host(&policy, &sequences, 42.0);
        for (element, each) in [(Element::F32, 1e-5), (Element::Bf16, 2e-1)] {
            let mut trainer = trainer(&policy, element);
            on_device(&mut trainer, &policy, &sequences, 42.0);
            compare(name, &grads, &trainer.read(State::Gradients).unwrap(), each, each.min(5e-2));
        }
    }
}

#[test]
fn frozen_tensors_take_their_weights_alone() {
    let frozen = policy("llama-tiny", None, Freeze { embeddings: true, layers: 1 });
    let whole = policy("llama-tiny", None, Freeze::default());
    let count = |policy: &Trainable| policy.params.values().map(|var| var.elem_count()).sum::<usize>() as u64;
    let (all, trained) = (count(&whole), count(&frozen));
    assert!(trained < all);
    // Four values of f32 of what is trained, one of the element type of the rest, and ends of allocations.
    for (element, size) in [(Element::F32, 4), (Element::Bf16, 2)] {
        let half = if element == Element::Bf16 { 2 } else { 0 };
        let used = trainer(&frozen, element).memory().0;
        let needed = (16 + half) * trained + size * (all - trained);
        assert!(used >= needed && used < needed + 32 * 256, "{used} bytes for {needed}");
    }
    // The gradient passes through frozen parts, and reaches what is trained.
    let sequences = sequences(frozen.config.vocab_size);
    let sequences: Vec<_> = sequences.iter().collect();
    let (_, grads) = on_host(&frozen, &sequences, 42.0);
    let mut trainer = trainer(&frozen, Element::F32);
    on_device(&mut trainer, &frozen, &sequences, 42.0);
    compare("frozen", &grads, &trainer.read(State::Gradients).unwrap(), 1e-5, 1e-5);
}

#[test]
fn micro_batches_and_chunks_of_logits_change_nothing() {
    let policy = policy("families/qwen3", None, Freeze::default());
    let sequences = sequences(policy.config.vocab_size);
    let every: Vec<_> = sequences.iter().collect();
    let mut whole = trainer(&policy, Element::F32);
    let logprobs = on_device(&mut whole, &policy, &every, 42.0);
    let want: Grads = whole
        .read(State::Gradients)
        .unwrap()
        .into_iter()
        .map(|(name, grad)| (name, Tensor::new(grad, &Device::Cpu).unwrap()))
        .collect();
    // The same bits again; gradients are added until they are cleared.
    whole.clear_gradients().unwrap();
    assert_eq!(on_device(&mut whole, &policy, &every, 42.0), logprobs);
    for (name, grad) in whole.read(State::Gradients).unwrap() {
        assert_eq!(grad, flat(&want[&name]), "{name}");
    }
    let mut parts = trainer(&policy, Element::F32);
    let apart: Vec<f32> = every.iter().flat_map(|s| on_device(&mut parts, &policy, &[s], 42.0)).collect();
    assert_eq!(apart, logprobs, "a sequence has the same bits in any batch");
    compare("micro-batches", &want, &parts.read(State::Gradients).unwrap(), 1e-5, 1e-5);
    let mut chunks = trainer_with(&policy, TrainerOptions { logit_bytes: 1, ..options(Element::F32) }).unwrap();
    assert_eq!(on_device(&mut chunks, &policy, &every, 42.0), logprobs);
    compare("chunks", &want, &chunks.read(State::Gradients).unwrap(), 1e-5, 1e-5);
}

#[test]
fn recomputed_activations_give_the_same_bits_in_less_memory() {
    // Norms of the parts' outputs, which are kept or recomputed too.
    let policy = policy("families/gemma3", None, Freeze::default());
    let sequences = sequences(policy.config.vocab_size);
    let every: Vec<_> = sequences.iter().collect();
    for element in [Element::F32, Element::Bf16] {
        let (mut grads, mut peaks) = (Vec::new(), Vec::new());
        for recompute in [Recompute::None, Recompute::Mlp, Recompute::Block] {
            let mut trainer = trainer_with(&policy, TrainerOptions::new(element, recompute)).unwrap();
            let held = trainer.memory().0;
            trainer.take_peak();
            let packed = PredictionBatch::new(&every);
            trainer.logprobs(policy.decoder(), wanted(&packed), 1.0, Keep::All).unwrap();
            peaks.push(trainer.memory().0 - held);
            trainer.backward(&vec![-1.0 / 42.0; packed.rows.len()]).unwrap();
            grads.push(trainer.read(State::Gradients).unwrap());
            assert_eq!(trainer.memory().0, held, "a backward pass frees everything");
        }
        assert!(grads[1] == grads[0] && grads[2] == grads[0]);
        assert!(peaks[2] < peaks[1] && peaks[1] < peaks[0], "{peaks:?}");
    }
}

#[test]
fn memory_is_linear_in_length() {
    let policy = policy("llama-tiny", None, Freeze::default());
    let mut trainer = trainer(&policy, Element::F32);
    let mut peak = |n: usize| {
        let ids = (0..n).map(|i| (i % policy.config.vocab_size) as u32).collect();
        let sequence = Sequence { ids, start: n - 8 };
        let before = trainer.memory().0;
        trainer.take_peak();
        on_device(&mut trainer, &policy, &[&sequence], 8.0);
        trainer.clear_gradients().unwrap();
        (trainer.take_peak() - before) as f64
    };
    let context = policy.config.max_positions.min(120);
    let [short, middle, long] = [context / 4, context / 2, context].map(&mut peak);
    let growth = (long - middle) / (middle - short);
    assert!((1.7..2.3).contains(&growth), "{short}, {middle}, {long}: {growth}");
}

#[test]
fn a_step_of_adamw_is_that_of_the_cpu() {
    for form in [AdamForm::Torch, AdamForm::Tf] {
        // q, k and v of GPT-2 are in one matrix [in, out], so states are converted both ways.
        let policy = policy("gpt2-tiny", None, Freeze::default());
        let every = sequences(policy.config.vocab_size);
        let every: Vec<_> = every.iter().collect();
        let config = AdamConfig { form, ..AdamConfig::default() };
        let mut optimizer = AdamW::new(config, Group::standard(0.1));
        let mut trainer = trainer(&policy, Element::F32);
        for step in 1..=3 {
            on_device(&mut trainer, &policy, &every, 42.0);
            let grads: Grads = trainer
                .read(State::Gradients)
                .unwrap()
                .into_iter()
                .map(|(name, g)| {
                    (name.clone(), Tensor::from_vec(g, policy.params[&name].shape(), &Device::Cpu).unwrap())
                })
                .collect();
            let norm = update(&mut trainer, &adam_step(config, step, 1e-2, 0.1), Some(0.05)).unwrap();
            let want = global_norm(&grads).unwrap();
            assert!((norm - want).abs() < 1e-5 * want && want > 0.05, "{norm}, {want}");
            optimizer.update(&policy.params, &grads, 1e-2, Some(0.05)).unwrap();
            let state = optimizer.state(&policy.params).unwrap();
            let [weights, m, v] = [State::Weights, State::M, State::V].map(|state| trainer.read(state).unwrap());
            for (name, var) in &policy.params {
                assert!(difference(&flat(var), &weights[name]) < 1e-6, "{name}");
                assert!(difference(&flat(&state[&format!("m.{name}")]), &m[name]) < 1e-5, "m of {name}");
                assert!(difference(&flat(&state[&format!("v.{name}")]), &v[name]) < 1e-5, "v of {name}");
            }
            assert!(trainer.read(State::Gradients).unwrap().values().flatten().all(|g| *g == 0.0));
        }
    }
}

#[test]
fn states_that_are_written_are_read() {
    for name in ["gpt2-tiny", "families/gpt-neox", "families/phi3", "llama-tied-tiny"] {
        let policy = policy(name, None, Freeze::default());
        for element in [Element::F32, Element::Bf16] {
            let mut trainer = trainer(&policy, element);
            let start = trainer.read(State::Weights).unwrap();
            assert!(policy.params.iter().all(|(name, var)| start[name] == flat(var)), "{name}");
            for state in [State::Weights, State::M, State::V] {
                let values: BTreeMap<_, Vec<f32>> = start
                    .iter()
                    .map(|(name, v)| (name.clone(), (0..v.len()).map(|i| (i as f32 * 0.37).sin()).collect()))
                    .collect();
                trainer.write(state, &values).unwrap();
                assert_eq!(trainer.read(state).unwrap(), values, "{name}, {state:?}");
            }
        }
    }
}

#[test]
fn the_gradient_of_hidden_states_reaches_every_tensor_below_them() {
    let policy = policy("llama-tiny", None, Freeze::default());
    let every = sequences(policy.config.vocab_size);
    let packed = PredictionBatch::new(&every.iter().collect::<Vec<_>>());
    let rows = packed.batch.last_rows();
    let d = policy.config.hidden_size;
    let by: Vec<f32> = (0..rows.len() * d).map(|i| (i as f32).cos()).collect();
    let hidden = policy.decoder().forward(&packed.batch).unwrap();
    let picked = hidden.index_select(&Tensor::new(rows.clone(), &Device::Cpu).unwrap(), 0).unwrap();
    let weights = Tensor::from_vec(by.clone(), (rows.len(), d), &Device::Cpu).unwrap();
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &(&picked * weights).unwrap().sum_all().unwrap()).unwrap();
    let mut trainer = trainer(&policy, Element::F32);
    let got = trainer
        .hidden(policy.decoder(), Wanted { batch: &packed.batch, rows: &rows, targets: None }, Keep::All)
        .unwrap();
    assert!(difference(&flat(&picked), &got) < 1e-5);
    trainer.backward_hidden(&by).unwrap();
    let grads = trainer.read(State::Gradients).unwrap();
    for (name, grad) in sum.grads {
        assert!(difference(&flat(&grad), &grads[&name]) < 1e-5, "{name}");
    }
}

/// A decoder on a device, whose tensors' backward passes run there.
fn attached(policy: &Trainable) -> (Decoder, Arc<Mutex<DeviceTrainer>>) {
    let trainer = Arc::new(Mutex::new(trainer(policy, Element::F32)));
    let mut decoder = policy.decoder().clone();
    decoder.attach(Attached::new(trainer.clone()));
    (decoder, trainer)
}

#[test]
fn the_graph_of_a_loss_continues_on_the_device() {
    let policy = policy("llama-tiny", None, Freeze::default());
    let sequences = sequences(policy.config.vocab_size);
    let packed = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    // A loss of the log-probs and, by a head on the host, of the hidden states.
    let head = Tensor::arange(0f32, policy.config.hidden_size as f32, &Device::Cpu).unwrap().sin().unwrap();
    let loss = |decoder: &Decoder| {
        let hidden = packed.hidden(decoder).unwrap();
        let logprobs = packed.logprobs(decoder, &hidden, 0.7).unwrap().logprobs;
        let values = hidden.broadcast_mul(&head).unwrap().sum_all().unwrap();
        (logprobs.sqr().unwrap().sum_all().unwrap() + values).unwrap()
    };
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &loss(policy.decoder())).unwrap();
    let (decoder, trainer) = attached(&policy);
    let on_device = loss(&decoder);
    let mut none = Accumulator::default();
    none.add(&policy.params, &on_device).unwrap();
    assert!(none.grads.is_empty(), "gradients of the weights stay on the device");
    let got = trainer.lock().unwrap().read(State::Gradients).unwrap();
    compare("llama-tiny", &sum.grads, &got, 2e-5, 1e-5);
    // A pass is saved once, and a newer one replaces it.
    assert!(on_device.backward().unwrap_err().to_string().contains("was not saved"));
    let (old, hidden) = (loss(&decoder), packed.hidden(&decoder).unwrap());
    assert!(old.backward().unwrap_err().to_string().contains("a newer one has replaced"));
    packed.scores_frozen(&decoder, 1.0).unwrap();
    let stale = packed.logprobs(&decoder, &hidden, 1.0).err().unwrap().to_string();
    assert!(stale.contains("not the newest"), "{stale}");
    let error = packed.logprobs_and_entropy(&decoder, &hidden, 1.0).err().unwrap().to_string();
    assert!(error.contains("no gradient of entropies"), "{error}");
}

/// The passes of the base under adapters are those of a model without adapters, and take no memory of their own.
#[test]
fn the_base_under_adapters_is_the_reference() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    let policy = policy("llama-tiny", Some(&lora), Freeze::default());
    let sequences = sequences(policy.config.vocab_size);
    let packed = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    let (decoder, trainer) = attached(&policy);
    let held = trainer.lock().unwrap().memory().0;
    let mut base = policy.decoder().with_changed_adapters(&|_| Ok(None)).unwrap();
    let want = packed.scores_frozen(&base, 1.0).unwrap().logprobs.to_vec1::<f32>().unwrap();
    base.attach(Attached::new(Arc::new(Mutex::new(BaseOf(trainer.clone())))));
    let of = |decoder: &Decoder| packed.scores_frozen(decoder, 1.0).unwrap().logprobs.to_vec1::<f32>().unwrap();
    assert!(difference(&want, &of(&base)) < 1e-5);
    let hidden = packed.hidden(&base).unwrap();
    assert!(!hidden.track_op());
    assert!(difference(&want, &packed.logprobs(&base, &hidden, 1.0).unwrap().logprobs.to_vec1().unwrap()) < 1e-5);
    assert!(difference(&want, &of(&decoder)) > 1e-3, "the adapters change the model");
    assert_eq!(trainer.lock().unwrap().memory().0, held);
}

#[test]
fn what_the_device_cannot_train_is_refused() {
    let error = trainer_with(&of_heads(100), options(Element::F32)).err().unwrap();
    assert!(error.contains("multiples of 8"), "{error}");
    let error = trainer_with(&of_heads(288), options(Element::F32)).err().unwrap();
    assert!(error.contains("heads of 288 channels") && error.contains("device to cpu"), "{error}");
    let policy = policy("llama-tiny", None, Freeze::default());
    let mut trainer = trainer(&policy, Element::F32);
    let packed = PredictionBatch::new(&[&Sequence::new(&[1, 2], &[3, 4])]);
    let error = trainer.backward(&[1.0]).unwrap_err().to_string();
    assert!(error.contains("a pass is needed that was not saved"), "{error}");
    let out = [policy.config.vocab_size as u32, 1];
    let refused = trainer.logprobs(policy.decoder(), Wanted { targets: Some(&out), ..wanted(&packed) }, 1.0, Keep::All);
    assert!(refused.err().unwrap().to_string().contains("outside the vocabulary"));
    // A gradient that is not finite changes nothing and is named.
    let before = trainer.read(State::Weights).unwrap();
    trainer.logprobs(policy.decoder(), wanted(&packed), 1.0, Keep::All).unwrap();
    trainer.backward(&[1.0, f32::NAN]).unwrap();
    let step = adam_step(AdamConfig::default(), 1, 1e-2, 0.0);
    let error = update(&mut trainer, &step, None).unwrap_err().to_string();
    assert!(error.contains("the gradient of ") && error.contains("is not finite"), "{error}");
    assert_eq!(trainer.read(State::Weights).unwrap(), before);
}
