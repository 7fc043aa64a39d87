//! The errors that training code ships without noticing, each pinned by a test that fails when the error is put
//! in. A name that begins with `mutation_` computes with the error as well and shows that the check tells it.
//!
//! | silent bug | test |
//! |---|---|
//! | pad == eos hides real ends | `mutation_pad_equal_to_eos_would_hide_the_end` |
//! | another token than the stop token is checked | `mutation_checking_one_stop_token_of_two_would_miss_ends` |
//! | end-token check over the prompt | `recipes::end_tokens_in_prompts_do_not_count` |
//! | padding in whitening, entropy, approximate KL | `mutation_padding_would_enter_the_moments` (there is none: ragged
//! rows) |
//! | masks multiplied onto NaN | `mutation_a_mask_multiplied_onto_minus_infinity_is_nan`,
//! `mutation_an_overflowing_ratio_…` |
//! | positions differ between rollout and update | `mutation_positions_that_run_on_across_sequences_show_as_a_gap` |
//! | value mask off by one | `mutation_values_shifted_by_one_miss_the_reference` |
//! | micro-batches weighted alike instead of by tokens | `mutation_a_mean_of_micro_batch_means_is_not_the_mean`,
//! `recipes::micro_batches_change_nothing` |
//! | max_grad_norm accepted, never applied | `max_grad_norm_reaches_every_recipe` |
//! | reward model trained with end token, used without |
//! `a_reward_model_is_used_with_the_end_token_it_was_trained_with` |
//! | resume restarts the data order | `recipes::a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one`, `kill` |
//! | dropout in log-prob passes | `dropout_in_a_configuration_reaches_no_pass` (there is none by construction) |
//! | reference of an adapter run is the bare base | `mutation_the_bare_base_as_reference_has_kl` |
//! | bf16 logits for KL | `mutation_bf16_log_probs_drown_a_small_kl` |
//! | groups of one | `numerics::objectives::groups_of_one_are_refused_instead_of_dividing_by_zero` |
//! | warpers missing in log-probs | `mutation_a_temperature_forgotten_in_log_probs_shows_as_a_gap` |
//! | first ratio ≠ 1 | `recipes::the_first_step_starts_from_itself` |

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use instructd::generation::{GenParams, Sample, Warpers, generate};
use instructd::model::{Decoder, PackedBatch, Purpose, RewardModel, load};
use instructd::objective::{causal_lm, gae, kl, logprobs, ppo, whiten};
use instructd::prompt::Texts;
use instructd::train::args::LoraArgs;
use instructd::train::optim::{Grads, global_norm};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence};
use instructd::train::trainable::Trainable;
use serde_json::{Value, json};

use super::recipes::{reward, rl, sft, with};
use crate::loop_closes::world::{World, train};
use crate::support::{copy_dir, fixture, fixtures};

fn reference(pointer: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(fixtures().join("objectives.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value.pointer(pointer).unwrap().as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// A padded `[B, T]` field of the reference values without its padding.
fn ragged(name: &str) -> Vec<f64> {
    let (lengths, flat) = (lengths(), reference(name));
    let t = flat.len() / lengths.len();
    lengths.iter().enumerate().flat_map(|(b, &n)| flat[b * t..b * t + n].to_vec()).collect()
}

fn lengths() -> Vec<usize> {
    reference("/lengths").into_iter().map(|n| n as usize).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn decoder(name: &str) -> Decoder {
    let loaded = load(&fixture(name), &Device::Cpu).unwrap();
    Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap()
}

fn samples(decoder: &Decoder, prompts: &[Vec<u32>], temperature: f32, eos_ids: Vec<u32>) -> Vec<Sample> {
    let warpers = Warpers { temperature, ..Warpers::default() };
    let params = GenParams { max_new_tokens: 8, warpers, eos_ids, seed: 3, ..GenParams::default() };
    generate(decoder, prompts, &params, &|| false).unwrap()
}

fn prompts(n: u32) -> Vec<Vec<u32>> {
    (0..n).map(|i| (0..2 + i % 5).map(|k| 5 + (7 * i + 3 * k) % 80).collect()).collect()
}

/// Log-probs of the responses by a forward pass over whole sequences, at `temperature`.
fn recomputed(decoder: &Decoder, picked: &PredictionBatch, temperature: f64) -> Vec<f64> {
    let hidden = picked.hidden(decoder).unwrap();
    let logprobs: Vec<f32> = picked.logprobs(decoder, &hidden, temperature).unwrap().logprobs.to_vec1().unwrap();
    logprobs.into_iter().map(f64::from).collect()
}

fn rollout(decoder: &Decoder, temperature: f32) -> (PredictionBatch, Vec<f64>) {
    let prompts = prompts(12);
    let samples = samples(decoder, &prompts, temperature, vec![2]);
    let sequences: Vec<Sequence> = prompts.iter().zip(&samples).map(|(p, s)| Sequence::new(p, &s.ids)).collect();
    let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    (picked, samples.iter().flat_map(|s| s.logprobs.iter().map(|l| f64::from(*l))).collect())
}

/// The end token is learned though the model's padding token is the same: there is no padding to take it for.
#[test]
fn mutation_pad_equal_to_eos_would_hide_the_end() {
    let model = copy_dir(&fixture("llama-tied-tiny"));
    let path = model.path().join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["pad_token_id"] = config["eos_token_id"].clone();
    std::fs::write(&path, config.to_string()).unwrap();
    let loaded = load(model.path(), &Device::Cpu).unwrap();
    let pad = loaded.config.pad_id.unwrap();
    assert_eq!(loaded.config.eos_ids, [pad]);
    let texts = Texts::new(&loaded).unwrap();
    let (ids, start) = texts.conversation(&instructd::data::PromptInput::Text("t5 t6".into()), "t7 t8", 32).unwrap();
    let picked = PredictionBatch::new(&[&Sequence { ids: ids.into(), start }]);
    assert_eq!(picked.targets, [7, 8, pad], "the end token is a target");

    // The gradient at the end token's row: there with us, gone with the padding mask of `target != pad`.
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
    let slope = |masked: bool| {
        let hidden = picked.hidden(policy.decoder()).unwrap();
        let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs;
        let logprobs = Var::from_tensor(&logprobs.detach()).unwrap();
        let keep: Vec<f32> = picked.targets.iter().map(|t| f32::from(!(masked && *t == pad))).collect();
        let kept = (logprobs.as_tensor() * Tensor::new(keep, &Device::Cpu).unwrap()).unwrap();
        let loss = causal_lm::loss(&kept, 3.0).unwrap().0;
        loss.backward().unwrap().get(&logprobs).unwrap().to_vec1::<f32>().unwrap()[2]
    };
    assert!(slope(false) != 0.0 && slope(true) == 0.0);
}

#[test]
fn mutation_checking_one_stop_token_of_two_would_miss_ends() {
    let decoder = decoder("llama-tied-tiny");
    // Many stop tokens, so that samples end by any of them.
    let stops: Vec<u32> = (2..30).collect();
    let samples = samples(&decoder, &prompts(40), 1.0, stops.clone());
    for sample in &samples {
        let end = sample.ids.iter().position(|id| stops.contains(id));
        assert_eq!(sample.finished, end.is_some());
        assert!(end.is_none_or(|end| end + 1 == sample.ids.len()), "nothing is written after a stop token");
    }
    let finished = samples.iter().filter(|s| s.finished).count();
    let by_the_first = samples.iter().filter(|s| s.ids.contains(&stops[0])).count();
    assert!(by_the_first < finished, "{by_the_first} of {finished} would be seen");
}

#[test]
fn mutation_padding_would_enter_the_moments() {
    let expected = ragged("/advantages_whitened");
    let mut ours = ragged("/advantages");
    whiten::whiten(&mut ours, false);
    assert!(distance(&ours, &expected) < 1e-6);
    // The rectangle, zeros and all, as a forgotten mask would whiten it.
    let lengths = lengths();
    let widest = *lengths.iter().max().unwrap();
    let mut rest = ragged("/advantages").into_iter();
    let mut rectangle: Vec<f64> = lengths
        .iter()
        .flat_map(|&n| (0..widest).map(|t| if t < n { rest.next().unwrap() } else { 0.0 }).collect::<Vec<_>>())
        .collect();
    assert!(rectangle.len() > ours.len(), "the reference batch is ragged");
    whiten::whiten(&mut rectangle, false);
    let wrong: Vec<f64> =
        lengths.iter().enumerate().flat_map(|(b, &n)| rectangle[b * widest..b * widest + n].to_vec()).collect();
    assert!(distance(&wrong, &expected) > 1e-2);
    // By construction there is no such rectangle: a batch holds its tokens and nothing else.
    let batch = PackedBatch::new(&[vec![1, 2, 3], vec![4]]);
    assert_eq!((batch.len(), batch.n_sequences()), (4, 2));
}

#[test]
fn mutation_a_mask_multiplied_onto_minus_infinity_is_nan() {
    let logits = Tensor::new(&[[0.0f32, 1.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
    let ours: f32 = logprobs::entropy(&logits, 1.0).unwrap().to_vec1::<f32>().unwrap()[0];
    let p = 1.0f32.exp() / (1.0 + 1.0f32.exp());
    let expected = -(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
    assert!((ours - expected).abs() < 1e-6, "{ours}, not {expected}");
    let logp = logprobs::log_softmax(&logits).unwrap();
    let wrong = (logp.exp().unwrap() * logp).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(wrong.is_nan());
}

/// `where` is not enough: the branch that was not chosen still has a gradient, and 0 · ∞ is NaN.
#[test]
fn mutation_an_overflowing_ratio_would_poison_the_gradient_of_the_chosen_branch() {
    let column = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu).unwrap();
    let (old, advantages) = (column([0.0, 0.0]), column([1.0, 1.0]));
    let new = Var::from_tensor(&column([100.0, 0.1])).unwrap();
    let slope = |loss: &Tensor| loss.backward().unwrap().get(&new).unwrap().to_vec1::<f32>().unwrap();
    let ours = slope(&ppo::policy_loss(new.as_tensor(), &old, &advantages, 0.2, 2.0).unwrap().0);
    assert!(ours[0] == 0.0 && ours[1] < 0.0, "{ours:?}");
    let ratio = (new.as_tensor() - &old).unwrap().exp().unwrap();
    let clipped = ratio.detach().clamp(0.8, 1.2).unwrap();
    let chosen = ratio.gt(1.2).unwrap().where_cond(&clipped, &ratio).unwrap();
    assert!(slope(&chosen.neg().unwrap().sum_all().unwrap())[0].is_nan());
}

#[test]
fn mutation_positions_that_run_on_across_sequences_show_as_a_gap() {
    // Learned positions; rotary ones would forgive a constant shift.
    let decoder = decoder("gpt2-tiny");
    let (mut picked, sampled) = rollout(&decoder, 1.0);
    assert!(distance(&recomputed(&decoder, &picked, 1.0), &sampled) < 1e-4);
    picked.batch.positions = (0..picked.batch.len() as u32).map(|i| i % 60).collect();
    assert!(distance(&recomputed(&decoder, &picked, 1.0), &sampled) > 1e-2);
}

#[test]
fn mutation_a_temperature_forgotten_in_log_probs_shows_as_a_gap() {
    let decoder = decoder("llama-tied-tiny");
    let (picked, sampled) = rollout(&decoder, 0.7);
    assert!(distance(&recomputed(&decoder, &picked, 0.7), &sampled) < 1e-4);
    assert!(distance(&recomputed(&decoder, &picked, 1.0), &sampled) > 1e-2);
}

#[test]
fn mutation_values_shifted_by_one_miss_the_reference() {
    let number = |name: &str| {
        let text = std::fs::read_to_string(fixtures().join("objectives.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap().pointer(name).unwrap().as_f64().unwrap()
    };
    let (gamma, lambda) = (number("/hyper/gamma"), number("/hyper/lambda"));
    let (rewards, values, expected) = (ragged("/rewards"), ragged("/values_old"), ragged("/advantages"));
    let ours = gae::gae(&rewards, &values, &lengths(), gamma, lambda).advantages;
    assert!(distance(&ours, &expected) < 1e-6);
    // V read at the token itself instead of the state before it.
    let mut late = values.clone();
    late.rotate_left(1);
    assert!(distance(&gae::gae(&rewards, &late, &lengths(), gamma, lambda).advantages, &expected) > 1e-2);
    // And the value after the end is 0, whatever stands behind it in the layout.
    let alone = gae::gae(&rewards[..lengths()[0]], &values[..lengths()[0]], &lengths()[..1], gamma, lambda);
    assert!(distance(&alone.advantages, &expected[..lengths()[0]]) < 1e-6);
}

#[test]
fn mutation_a_mean_of_micro_batch_means_is_not_the_mean() {
    let loaded = load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
    let (long, short) = (Sequence::new(&[5], &[9, 8, 7, 6, 5, 4, 3]), Sequence::new(&[11, 12], &[13]));
    let grads = |parts: &[(&[&Sequence], f64)]| -> Grads {
        let mut sum = Accumulator::default();
        for (sequences, total) in parts {
            let picked = PredictionBatch::new(sequences);
            let hidden = picked.hidden(policy.decoder()).unwrap();
            let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs;
            sum.add(&policy.params, &causal_lm::loss(&logprobs, *total).unwrap().0).unwrap();
        }
        sum.grads
    };
    let apart = |a: &Grads, b: &Grads| {
        let difference = a.iter().map(|(name, g)| (name.clone(), (g - &b[name]).unwrap())).collect();
        global_norm(&difference).unwrap() / global_norm(a).unwrap()
    };
    let whole = grads(&[(&[&long, &short], 8.0)]);
    assert!(apart(&whole, &grads(&[(&[&long], 8.0), (&[&short], 8.0)])) < 1e-5);
    // Each micro-batch by its own count, then averaged: seven tokens weigh as much as one.
    assert!(apart(&whole, &grads(&[(&[&long], 14.0), (&[&short], 2.0)])) > 0.1);
}

/// With Adam's ε large, an update is about as long as its gradient: clipping to almost nothing must leave the
/// weights almost where they were, in every recipe.
#[test]
fn max_grad_norm_reaches_every_recipe() {
    let world = World::new();
    let start = load(Path::new(&World::model()), &Device::Cpu).unwrap().weights;
    let moved = |recipe: &str, args: &Value, max: Value| {
        let more = json!({"max_steps": 2, "max_grad_norm": max, "adam_eps": 1.0, "learning_rate": 0.1});
        train(recipe, &with(args, more));
        let end = load(Path::new(&world.path("clip")), &Device::Cpu).unwrap().weights;
        let difference: Grads = start
            .iter()
            .filter(|(name, _)| end.contains_key(*name))
            .map(|(name, w)| (name.clone(), (w - &end[name]).unwrap()))
            .collect();
        global_norm(&difference).unwrap()
    };
    let rl = rl(&world, "clip");
    for (recipe, args) in [
        ("sft", sft(&world, "clip")),
        ("reward", reward(&world, "clip")),
        ("dpo", reward(&world, "clip")),
        ("ppo", rl.clone()),
        ("reinforce", rl.clone()),
        ("rloo", rl.clone()),
        ("grpo", rl.clone()),
        ("online_dpo", rl.clone()),
        ("raft", rl.clone()),
    ] {
        let (free, clipped) = (moved(recipe, &args, Value::Null), moved(recipe, &args, json!(1e-6)));
        assert!(free > 1e-4 && clipped < free / 50.0, "{recipe}: {clipped} clipped, {free} free");
    }
}

/// Training, rollouts, evaluation and the server all encode through `Texts::conversation`.
#[test]
fn a_reward_model_is_used_with_the_end_token_it_was_trained_with() {
    let world = World::new();
    train("reward", &reward(&world, "rm"));
    let loaded = load(Path::new(&world.path("rm")), &Device::Cpu).unwrap();
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let args = with(&rl(&world, "o"), json!({"reward_model": world.path("rm"), "reward": null, "iterations": 1}));
    let (recorder, _) = train("ppo", &args);
    for sample in recorder.events("sample") {
        let prompt = serde_json::from_value(sample["prompt"].clone()).unwrap();
        let (ids, _) = texts.conversation(&prompt, sample["completion"].as_str().unwrap(), 64).unwrap();
        assert_eq!(ids.last(), Some(&2), "the end token is scored");
        let (with_end, without) = (
            model.score(std::slice::from_ref(&ids), 99).unwrap()[0],
            model.score(&[ids[..ids.len() - 1].to_vec()], 99).unwrap()[0],
        );
        let scored = sample["score"].as_f64().unwrap();
        assert!((scored - with_end).abs() < 1e-9, "the rollout's score {scored} is not the trained one {with_end}");
        assert!((scored - without).abs() > 1e-4, "the end token makes no difference: the test shows nothing");
    }
}

#[test]
fn dropout_in_a_configuration_reaches_no_pass() {
    let model = copy_dir(&fixture("gpt2-tiny"));
    let path = model.path().join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
        config[key] = json!(0.5);
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let loaded = load(model.path(), &Device::Cpu).unwrap();
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
    let (picked, sampled) = rollout(&decoder("gpt2-tiny"), 1.0);
    let training = recomputed(policy.decoder(), &picked, 1.0);
    assert_eq!(training, recomputed(policy.decoder(), &picked, 1.0));
    assert!(distance(&training, &sampled) < 1e-4);
}

#[test]
fn mutation_the_bare_base_as_reference_has_kl() {
    let loaded = load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    let policy = Trainable::new(&loaded.config, loaded.weights.clone(), Some(&lora), 0).unwrap();
    // A run that goes on from trained adapters.
    for var in policy.params.values() {
        let noise: Vec<f32> = (0..var.elem_count()).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
        var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let start = policy.frozen_decoder().unwrap();
    let (picked, sampled) = rollout(&start, 1.0);
    let kl_to = |reference: &Decoder| {
        let kl = kl::k1(&sampled, &recomputed(reference, &picked, 1.0));
        logprobs::sequence_sums(&kl, &picked.lengths).iter().sum::<f64>() / picked.lengths.len() as f64
    };
    assert!(kl_to(&start).abs() < 1e-4);
    let bare = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap().frozen_decoder().unwrap();
    assert!(kl_to(&bare).abs() > 1e-2, "{}", kl_to(&bare));
}

#[test]
fn mutation_bf16_log_probs_drown_a_small_kl() {
    let decoder = decoder("llama-tied-tiny");
    let (picked, now) = rollout(&decoder, 1.0);
    let hidden = picked.hidden(&decoder).unwrap();
    let logits = decoder.logits(&hidden).unwrap();
    assert_eq!(logits.dtype(), DType::F32);
    // A policy a thousandth away from its start: the log-prob of each token moved by up to 1e-3.
    let before: Vec<f64> = now.iter().enumerate().map(|(i, l)| l - 1e-3 * (i as f64).sin()).collect();
    let exact = kl::k1(&now, &before);
    let rounded = |values: &[f64], dtype: DType| -> Vec<f64> {
        let t = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        t.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    };
    let error = |dtype: DType| distance(&kl::k1(&rounded(&now, dtype), &rounded(&before, dtype)), &exact);
    assert!(error(DType::F32) < 1e-6);
    assert!(error(DType::BF16) > 1e-3, "as large as the KL itself");
}
