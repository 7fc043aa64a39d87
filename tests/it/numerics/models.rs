//! Every reference model: logits, log-probs, loss, gradient norms and greedy tokens against PyTorch and
//! transformers within 1e-4 relative in f32; cached steps against the full forward bit for bit.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use instructd::generation::{GenParams, Warpers, generate};
use instructd::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
use instructd::model::{Activation, Decoder, Encoder, Loaded, PackedBatch, Purpose, Weights, load};
use instructd::train::step::Accumulator;
use instructd::train::trainable::Trainable;
use serde_json::Value;

use crate::support::{DECODERS, ENCODERS, ON_CPU_ALONE, fixtures};

fn expected(name: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// |a − b| ≤ 1e-4 · max(|b|, typical size), everywhere.
fn close(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().map(|w| w.abs()).fold(0.0, f64::max);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= 1e-4 * w.abs().max(0.1 * scale), "{what}[{i}]: {g}, want {w}");
    }
}

/// Sequences without their right padding.
fn sequences(e: &Value) -> Vec<Vec<u32>> {
    let lengths = ids(&e["lengths"]);
    e["input_ids"].as_array().unwrap().iter().zip(lengths).map(|(row, n)| ids(row)[..n as usize].to_vec()).collect()
}

fn vars(weights: &Weights) -> (BTreeMap<String, Var>, Weights) {
    let vars: BTreeMap<_, _> = weights.iter().map(|(n, t)| (n.clone(), Var::from_tensor(t).unwrap())).collect();
    let tensors = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    (vars, tensors)
}

fn rows(t: &Tensor, rows: &[u32]) -> Tensor {
    t.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// RoBERTa's masked-LM head has exact GELU, whichever activation the configuration gives the blocks.
#[test]
fn the_masked_lm_head_of_roberta_is_gelu() {
    let mut loaded = load(&fixtures().join("families/roberta"), &Device::Cpu).unwrap();
    assert_eq!(loaded.config.activation, Activation::GeluErf);
    let hidden = Tensor::randn(0f32, 1.0, (3, loaded.config.hidden_size), &Device::Cpu).unwrap();
    let logits = |loaded: &Loaded| {
        let encoder = Encoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
        flat(&encoder.mlm_logits(&hidden).unwrap())
    };
    let want = logits(&loaded);
    loaded.config.activation = Activation::GeluTanh;
    assert_eq!(logits(&loaded), want);
}

/// The norms of all gradients, and the largest relative difference.
fn check_gradients(what: &str, e: &Value, grad: impl Fn(&str) -> Option<Tensor>, variables: usize) -> f64 {
    let mut worst = 0f64;
    for (name, norm) in e["grad_l2"].as_object().unwrap() {
        let want = norm.as_f64().unwrap();
        let grad = grad(name).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        let got = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
        // Softmax does not change under a shift of all keys, so BERT's key bias has gradient 0 up to rounding.
        let slack = if want < 1e-6 { 1e-6 } else { 1e-4 * want };
        assert!((got - want).abs() <= slack, "{what}: gradient of {name}: {got}, want {want}");
        if want >= 1e-6 {
            worst = worst.max((got - want).abs() / want);
        }
    }
    assert_eq!(e["grad_l2"].as_object().unwrap().len(), variables, "{what}: every variable is checked");
    worst
}

fn by_graph<'v>(vars: &'v BTreeMap<String, Var>, loss: &Tensor) -> impl Fn(&str) -> Option<Tensor> + 'v {
    let grads = loss.backward().unwrap();
    move |name| grads.get(vars.get(name)?).cloned()
}

/// Hidden states of all rows, log-probs of all tokens but the first of each sequence, and their mean loss.
fn language_model(decoder: &Decoder, sequences: &[Vec<u32>]) -> (Tensor, Tensor, Tensor) {
    let batch = PackedBatch::new(sequences);
    let hidden = decoder.forward(&batch).unwrap();
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for (s, start) in sequences.iter().zip(&batch.offsets) {
        for (i, target) in s.iter().enumerate().skip(1) {
            sources.push((start + i - 1) as u32);
            targets.push(*target);
        }
    }
    let logprobs = decoder.token_logprobs(&rows(&hidden, &sources), &targets, 1.0).unwrap().logprobs;
    let loss = logprobs.mean_all().unwrap().neg().unwrap();
    (hidden, logprobs, loss)
}

#[test]
fn decoders_match_transformers() {
    DECODERS.into_iter().chain([ON_CPU_ALONE]).for_each(decoder_matches);
}

pub(super) fn decoder_matches(name: &str) {
    let (e, loaded) = (expected(name), load(&fixtures().join(name), &Device::Cpu).unwrap());
    let (vars, weights) = vars(&loaded.weights);
    let decoder = Decoder::new(&loaded.config, &weights, Purpose::Train).unwrap();
    let sequences = sequences(&e);
    let batch = PackedBatch::new(&sequences);
    let (hidden, logprobs, loss) = language_model(&decoder, &sequences);
    if let Some(want) = e.get("logits_row0").map(floats) {
        let n0 = sequences[0].len() as u32;
        let logits0 = decoder.logits(&rows(&hidden, &(0..n0).collect::<Vec<_>>())).unwrap();
        close(&format!("{name} logits_row0"), &flat(&logits0)[..want.len()], &want);
    }
    let last = flat(&decoder.logits(&rows(&hidden, &batch.last_rows())).unwrap());
    let want: Vec<f64> = e["logits_last_valid"].as_array().unwrap().iter().flat_map(floats).collect();
    close(&format!("{name} logits_last_valid"), &last, &want);

    let want: Vec<f64> = e["token_logprobs"].as_array().unwrap().iter().flat_map(floats).collect();
    let got = flat(&logprobs);
    close(&format!("{name} token_logprobs"), &got, &want);
    let far = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs() / w.abs()).fold(0.0, f64::max);
    close(&format!("{name} loss"), &[loss.to_scalar::<f32>().unwrap()], &[e["causal_lm_loss"].as_f64().unwrap()]);
    let graph = check_gradients(name, &e, by_graph(&vars, &loss), vars.len());

    // The fused blocks that training runs give the same gradients as the graph of single operations.
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
    let (_, _, loss) = language_model(policy.decoder(), &sequences);
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &loss).unwrap();
    let fused = check_gradients(name, &e, |name| sum.grads.get(name).cloned(), policy.params.len());
    println!("{name}: log-probs within {far:.1e}, gradient norms {graph:.1e} (graph), {fused:.1e} (fused)");
}

#[test]
fn greedy_tokens_are_identical() {
    DECODERS.into_iter().chain([ON_CPU_ALONE]).for_each(greedy_tokens_are);
}

pub(super) fn greedy_tokens_are(name: &str) {
    let (e, loaded) = (expected(name), load(&fixtures().join(name), &Device::Cpu).unwrap());
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let runs = [("greedy_prompt", "greedy_24"), ("greedy_prompt", "greedy_12"), ("later_prompt", "later_20")];
    let runs = runs.into_iter().filter_map(|(prompt, tokens)| Some((ids(e.get(prompt)?), ids(e.get(tokens)?))));
    let runs = runs.collect::<Vec<_>>();
    assert!(!runs.is_empty(), "{name}");
    for (prompt, want) in runs {
        let params = GenParams {
            max_new_tokens: want.len(),
            warpers: Warpers { temperature: 0.0, ..Warpers::default() },
            ..GenParams::default()
        };
        let samples = generate(&decoder, &[prompt], &params, &|| false).unwrap();
        assert_eq!(samples[0].ids, want, "{name}");
    }
}

#[test]
fn encoders_match_transformers() {
    ENCODERS.into_iter().for_each(encoder_matches);
}

pub(super) fn encoder_matches(name: &str) {
    let (e, loaded) = (expected(name), load(&fixtures().join(name), &Device::Cpu).unwrap());
    let (vars, weights) = vars(&loaded.weights);
    let encoder = Encoder::new(&loaded.config, &weights, Purpose::Train).unwrap();
    let mut sequences = Vec::new();
    let (mut types, mut masked, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    let list = |key: &str| e[key].as_array().unwrap().clone();
    for (i, row) in list("input_ids").iter().enumerate() {
        let n = ids(&list("attention_mask")[i]).iter().sum::<u32>() as usize;
        let start = types.len();
        sequences.push(ids(row)[..n].to_vec());
        match e.get("token_type_ids") {
            Some(all) => types.extend(&ids(&all[i])[..n]),
            None => types.extend(vec![0; n]),
        }
        for (j, label) in list("labels")[i].as_array().unwrap()[..n].iter().enumerate() {
            if let Some(target) = label.as_u64() {
                masked.push((start + j) as u32);
                targets.push(target as u32);
            }
        }
    }
    let batch = PackedBatch::new(&sequences);
    let hidden = encoder.forward(&batch, &types).unwrap();
    close(&format!("{name} hidden"), &flat(&rows(&hidden, &[0])), &floats(&e["hidden_last_0_0"]));
    if let Some(want) = e.get("hidden_last_1_11") {
        let at = batch.offsets[1] as u32 + 11;
        close(&format!("{name} hidden"), &flat(&rows(&hidden, &[at])), &floats(want));
    }
    let at = [3, batch.offsets[1] as u32 + 2];
    let logits = flat(&encoder.mlm_logits(&rows(&hidden, &at)).unwrap());
    let (first, second) = logits.split_at(loaded.config.vocab_size);
    close(&format!("{name} logits_0_3"), first, &floats(&e["logits_0_3"]));
    close(&format!("{name} logits_1_2"), second, &floats(&e["logits_1_2"]));
    let loss = encoder.mlm_logprobs(&rows(&hidden, &masked), &targets).unwrap().logprobs;
    let loss = loss.mean_all().unwrap().neg().unwrap();
    close(&format!("{name} loss"), &[loss.to_scalar::<f32>().unwrap()], &[e["mlm_loss"].as_f64().unwrap()]);
    let far = check_gradients(name, &e, by_graph(&vars, &loss), vars.len());
    println!("{name}: gradient norms within {far:.1e}");
    // Served: q, k and v as one matrix where that pays.
    let served = Encoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    assert_eq!(flat(&served.forward(&batch, &types).unwrap()), flat(&hidden), "{name}");
}

#[test]
fn cached_steps_equal_the_full_forward_in_any_batch_and_chunking() {
    DECODERS.into_iter().chain([ON_CPU_ALONE]).for_each(cached_steps_equal_the_full_forward);
}

pub(super) fn cached_steps_equal_the_full_forward(name: &str) {
    let loaded = load(&fixtures().join(name), &Device::Cpu).unwrap();
    let train = Decoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    let serve = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let sequences: Vec<Vec<u32>> = (0..5u32).map(|i| (0..9 + 9 * i).map(|t| (t * 7 + i * 13) % 96).collect()).collect();
    let batch = PackedBatch::new(&sequences);
    let full = train.forward(&batch).unwrap();
    for chunk in [1usize, 3, 16, 100] {
        let mut cache = KvCache::new(&loaded.config, 512);
        let fresh = |s: &Vec<u32>| CachedSequence { rope: serve.rope_length(s.len()), ..CachedSequence::default() };
        let mut cached: Vec<CachedSequence> = sequences.iter().map(fresh).collect();
        while cached.iter().zip(&sequences).any(|(c, s)| c.len < s.len()) {
            let (mut step, mut at) = (StepRows::default(), Vec::new());
            for (i, s) in sequences.iter().enumerate() {
                let n = (chunk + i % 2).min(s.len() - cached[i].len);
                if n > 0 {
                    assert!(cache.reserve(&mut cached[i], n));
                    let last = step.push(&s[cached[i].len..cached[i].len + n], &cached[i]);
                    at.push((i, last + 1 - n, n));
                }
            }
            let hidden = serve.step(&step, &mut cache).unwrap();
            for (i, row, n) in at {
                let got = flat(&hidden.narrow(0, row, n).unwrap());
                let want = flat(&full.narrow(0, batch.offsets[i] + cached[i].len, n).unwrap());
                assert_eq!(got, want, "{name}, sequence {i}, chunks of {chunk}");
                cached[i].len += n;
                cache.trim(&mut cached[i]);
            }
        }
        for c in &mut cached {
            cache.release_all(c);
        }
        assert_eq!(cache.free_pages(), cache.total_pages());
        let (all, free) = cache.windowed_pages();
        assert_eq!(free, all);
    }
}

#[test]
fn sampling_logprobs_are_those_of_training() {
    // Of a model whose samples turn by other frequencies once they are long, the first tokens were drawn before that.
    for name in DECODERS.into_iter().filter(|name| !name.contains("phi3-longrope") && !name.contains("phi4-mini")) {
        sampled_as_trained(name);
    }
}

fn sampled_as_trained(name: &str) {
    let loaded = load(&fixtures().join(name), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    let prompts: Vec<Vec<u32>> = (1..9u32).map(|i| (0..i * 2).map(|t| (t * 5 + i) % 96).collect()).collect();
    let warpers = Warpers { temperature: 0.7, ..Warpers::default() };
    let params = GenParams { max_new_tokens: 20, warpers, seed: 3, max_batch: 3, ..GenParams::default() };
    let samples = generate(&decoder, &prompts, &params, &|| false).unwrap();
    for (prompt, sample) in prompts.iter().zip(&samples) {
        let whole: Vec<u32> = prompt.iter().chain(&sample.ids).copied().collect();
        let hidden = decoder.forward(&PackedBatch::new(&[&whole[..]])).unwrap();
        let before: Vec<u32> = (prompt.len() - 1..whole.len() - 1).map(|r| r as u32).collect();
        let fresh = decoder.token_logprobs(&rows(&hidden, &before), &sample.ids, 0.7).unwrap().logprobs;
        assert_eq!(flat(&fresh), sample.logprobs, "{name}: ratio must be exactly 1 before the first update");
    }
    let wider = generate(&decoder, &prompts, &GenParams { max_batch: 8, ..params }, &|| false).unwrap();
    assert_eq!(wider, samples, "{name}: batch company changes nothing");
}

#[test]
fn adapters_start_as_nothing_and_merge_exactly() {
    use instructd::model::adapters::lora::{LoraConfig, init, merge};
    for name in DECODERS {
        let loaded = load(&fixtures().join(name), &Device::Cpu).unwrap();
        let lora = LoraConfig { rank: 4, alpha: 8.0, targets: Vec::new() };
        let mut adapters = init(&loaded.config, &lora, &loaded.weights, 1).unwrap();
        let batch = PackedBatch::new(&[(0u32..20).collect::<Vec<_>>()]);
        let forward = |d: &Decoder| flat(&d.forward(&batch).unwrap());
        let base = forward(&Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap());
        let with = |a: &Weights| {
            forward(&Decoder::with_lora(&loaded.config, &loaded.weights, &lora, a, Purpose::Train).unwrap())
        };
        assert_eq!(with(&adapters), base, "{name}: fresh adapters change nothing");
        for (i, (name, t)) in adapters.iter_mut().enumerate() {
            if name.ends_with("lora_B.weight") {
                let noise = crate::support::noise(t.elem_count(), i as u64 + 1);
                *t = (Tensor::from_vec(noise, t.dims(), &Device::Cpu).unwrap() * 0.05).unwrap();
            }
        }
        let merged = merge(&loaded.config, &lora, &loaded.weights, &adapters).unwrap();
        let folded = forward(&Decoder::new(&loaded.config, &merged, Purpose::Serve).unwrap());
        assert_ne!(folded, base);
        let want: Vec<f64> = folded.iter().map(|v| f64::from(*v)).collect();
        close(&format!("{name} merged"), &with(&adapters), &want);
    }
}
