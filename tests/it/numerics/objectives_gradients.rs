//! Gradients of every loss against central differences in f64, and the kinks where frameworks slip.

use candle_core::{Device, Result, Tensor, Var};
use instructd::objective::*;

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Compares backward() with (f(x+h) − f(x−h)) / 2h in every coordinate; at least one must be non-zero.
#[track_caller]
fn check(at: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>) {
    let var = Var::from_tensor(&tensor(at)).unwrap();
    let grads = f(var.as_tensor()).unwrap().backward().unwrap();
    let grad: Vec<f64> = grads.get(&var).expect("no gradient arrived").flatten_all().unwrap().to_vec1().unwrap();
    let h = 1e-6;
    for i in 0..at.len() {
        let shifted = |by: f64| {
            let mut x = at.to_vec();
            x[i] += by;
            f(&tensor(&x)).unwrap().to_scalar::<f64>().unwrap()
        };
        let numeric = (shifted(h) - shifted(-h)) / (2.0 * h);
        assert!((grad[i] - numeric).abs() < 1e-6, "coordinate {i}: {} is not {numeric}", grad[i]);
    }
    assert!(grad.iter().any(|g| *g != 0.0), "all gradients are zero");
}

const NEW: [f64; 5] = [-0.4, -1.1, -2.0, -0.2, -0.9];
const OLD: [f64; 5] = [-0.9, -1.0, -1.5, -0.21, -0.6];
const ADVANTAGES: [f64; 5] = [1.3, -0.4, -0.7, 0.5, -1.1];

#[test]
fn policy_losses() {
    let (old, adv) = (tensor(&OLD), tensor(&ADVANTAGES));
    check(&NEW, |x| Ok(ppo::policy_loss(x, &old, &adv, 0.2, 5.0)?.0));
    check(&NEW, |x| Ok(reinforce::loss(x, &adv, 2, 2.0)?.0));
    let (reference, weights) = (tensor(&[-0.5, -1.0, -1.7, -0.4, -1.0]), tensor(&[0.5, 0.5, 0.3, 0.3, 0.3]));
    let targets =
        grpo::Targets { old: &old, reference: &reference, advantages: &adv, weights: &weights, lengths: &[2, 3] };
    let (level, surrogate) = (grpo::RatioLevel::Token, grpo::Surrogate::Clip);
    let settings = grpo::Settings { clip_low: 0.2, clip_high: 0.2, level, surrogate, beta: 0.04 };
    check(&NEW, |x| Ok(grpo::loss(x, &targets, &settings, 2.0)?.0));
    check(&NEW, |x| Ok(causal_lm::loss(x, 7.0)?.0));
}

#[test]
fn value_loss_inside_and_outside_the_clip_range() {
    let (old, returns) = (tensor(&[0.1, 0.1, 0.1, 0.1]), tensor(&[1.0, -1.0, 0.2, 0.35]));
    check(&[0.15, 0.5, -0.4, 0.31], |x| Ok(ppo::value_loss(x, &old, &returns, 0.2, 4.0)?.0));
}

#[test]
fn ppo_at_ratio_one_is_the_plain_policy_gradient() {
    let (old, adv) = (tensor(&OLD), tensor(&ADVANTAGES));
    let var = Var::from_tensor(&old).unwrap();
    let (loss, stats) = ppo::policy_loss(var.as_tensor(), &old, &adv, 0.2, 5.0).unwrap();
    let grad: Vec<f64> = loss.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    for (g, a) in grad.iter().zip(ADVANTAGES) {
        assert!((g + a / 5.0).abs() < 1e-15, "{g} is not {}", -a / 5.0);
    }
    assert_eq!(stats.mean("ratio"), Some(1.0));
    assert_eq!(stats.mean("clip_fraction"), Some(0.0));
    assert_eq!(stats.mean("approx_kl"), Some(0.0));
}

#[test]
fn reward_dpo_and_ipo() {
    let pairs = reward::pairs_of_set(&[0, 0, 1, 2], 0, 0.3);
    let scores = [0.5, -1.1, 0.4, 0.45];
    check(&scores, |x| Ok(reward::loss(x, &pairs, 2.0, None)?.0));
    let known: Vec<f64> = (0..pairs.len()).map(|i| 0.3 * i as f64 - 0.5).collect();
    check(&scores, |x| Ok(reward::loss(x, &pairs, 2.0, Some(&tensor(&known)))?.0));
    check(&known, |x| Ok(reward::loss(&tensor(&scores), &pairs, 2.0, Some(x))?.0));
    let (a, b, c) = (tensor(&[-4.0, -3.0]), tensor(&[-5.0, -2.5]), tensor(&[-4.4, -2.0]));
    let weights = tensor(&[1.0, 0.5]);
    for kind in [dpo::DpoLoss::Sigmoid, dpo::DpoLoss::Ipo] {
        let settings = dpo::Settings { kind, beta: 0.1, label_smoothing: 0.0 };
        check(&[-3.0, -4.0], |x| {
            let logps = dpo::Logps { policy_chosen: x, policy_rejected: &a, ref_chosen: &b, ref_rejected: &c };
            Ok(dpo::loss(&logps, &weights, &settings, 1.5)?.0)
        });
        check(&[-3.0, -4.0], |x| {
            let logps = dpo::Logps { policy_chosen: &a, policy_rejected: x, ref_chosen: &b, ref_rejected: &c };
            Ok(dpo::loss(&logps, &weights, &settings, 1.5)?.0)
        });
    }
}

/// A zero-initialised head gives equal scores: the loss sits exactly on the kink of `min(x, 0)` and `|x|`.
#[test]
fn log_sigmoid_at_zero_and_far_out() {
    let var = Var::from_tensor(&tensor(&[0.0, 800.0, -800.0])).unwrap();
    let y = log_sigmoid(var.as_tensor()).unwrap();
    let values: Vec<f64> = y.to_vec1().unwrap();
    assert!((values[0] + std::f64::consts::LN_2).abs() < 1e-15 && values[1] == 0.0 && values[2] == -800.0);
    let grad: Vec<f64> = y.sum_all().unwrap().backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    assert_eq!(grad, [0.5, 0.0, 1.0]);
}

#[test]
fn token_logprobs_and_sequence_sums() {
    let targets = Tensor::new(&[2u32, 0, 1], &Device::Cpu).unwrap();
    let at = [0.3, -0.2, 1.0, 2.0, 0.1, -0.5, 0.0, 0.7, 0.2];
    check(&at, |x| {
        let logps = logprobs::token_logprobs(&x.reshape((3, 3))?, &targets, 0.7)?;
        let sums = logprobs::sequence_sums_tensor(&logps, &[2, 1])?;
        (sums * tensor(&[1.0, -2.0]))?.sum_all()
    });
    check(&at, |x| logprobs::entropy(&x.reshape((3, 3))?, 0.7)?.sum_all());
}

#[test]
fn entropy_of_impossible_tokens_is_not_nan() {
    let logits = tensor(&[0.0, f64::NEG_INFINITY, 0.0]).reshape((1, 3)).unwrap();
    let entropy: Vec<f64> = logprobs::entropy(&logits, 1.0).unwrap().to_vec1().unwrap();
    assert!((entropy[0] - std::f64::consts::LN_2).abs() < 1e-15);
}

#[test]
fn masked_lm_hides_about_the_stated_shares_and_keeps_its_targets() {
    let ids: Vec<u32> = (0..20_000).map(|i| i % 90).collect();
    let mut state = 1u64;
    let uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let masked = masked_lm::mask_tokens(&ids, |i| i % 10 != 0, 0.15, 99, 90, uniform);
    let chosen = masked.rows.len() as f64;
    assert!((chosen / 18_000.0 - 0.15).abs() < 0.01);
    let hidden = masked.rows.iter().filter(|&&r| masked.ids[r as usize] == 99).count() as f64;
    assert!((hidden / chosen - 0.8).abs() < 0.03);
    for (&row, &target) in masked.rows.iter().zip(&masked.targets) {
        assert!(row % 10 != 0 && ids[row as usize] == target);
    }
    let unchosen = (0..ids.len()).filter(|i| !masked.rows.contains(&(*i as u32)));
    assert!(unchosen.into_iter().all(|i| masked.ids[i] == ids[i]));
}
