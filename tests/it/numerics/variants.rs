//! The group-based and preference losses against values that NumPy computes on padded rectangles
//! (tests/fixtures/make_objectives.py), within 1e-10 in f64; their gradients against central differences; and what must
//! hold before the first step.

use candle_core::{Device, Result, Tensor, Var};
use instructd::objective::grpo::{LossNormalization, RatioLevel, ScaleRewards, Settings, Surrogate, Targets};
use instructd::objective::*;
use instructd::ops::linear::{Weight, WeightLayout};
use instructd::ops::token_logprobs::{LogitShape, with_entropy};
use instructd::train::step::Accumulator;
use serde_json::Value;

const TOLERANCE: f64 = 1e-10;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/objectives_variants.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    value.as_array().unwrap().iter().map(|v| v.as_bool().unwrap()).collect()
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    x.to_scalar::<f64>().unwrap()
}

#[track_caller]
fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= TOLERANCE, "{actual} is not {expected}");
}

#[track_caller]
fn all_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).for_each(|(a, e)| close(*a, *e));
}

/// Compares backward() with central differences in every coordinate; at least one must not be 0.
#[track_caller]
fn check_gradient(at: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
    let var = Var::from_tensor(&tensor(at)).unwrap();
    let grads = f(var.as_tensor()).unwrap().backward().unwrap();
    let grad: Vec<f64> = grads.get(&var).expect("no gradient arrived").to_vec1().unwrap();
    let h = 1e-6;
    for i in 0..at.len() {
        let shifted = |by: f64| {
            let mut x = at.to_vec();
            x[i] += by;
            scalar(&f(&tensor(&x)).unwrap())
        };
        let numeric = (shifted(h) - shifted(-h)) / (2.0 * h);
        assert!((grad[i] - numeric).abs() < 1e-6, "coordinate {i}: {} is not {numeric}", grad[i]);
    }
    assert!(grad.iter().any(|g| *g != 0.0), "all gradients are zero");
    grad
}

/// The groups of the file as ragged rows.
struct Groups {
    value: Value,
    lengths: Vec<usize>,
    finished: Vec<bool>,
}

impl Groups {
    fn load() -> Self {
        let value = fixture()["groups"].clone();
        let lengths = list(&value["lengths"]).into_iter().map(|n| n as usize).collect();
        Self { lengths, finished: flags(&value["finished"]), value }
    }

    fn rows(&self, name: &str) -> Vec<f64> {
        let rows = self.value[name].as_array().unwrap();
        self.lengths.iter().zip(rows).flat_map(|(&n, row)| list(row)[..n].to_vec()).collect()
    }

    fn advantages(&self) -> Vec<f64> {
        logprobs::per_token(&list(&self.value["advantages"]["group"]), &self.lengths)
    }

    fn longest(&self) -> usize {
        self.value["longest"].as_u64().unwrap() as usize
    }

    /// Weights of all tokens, those of responses that did not end being 0 if `masked`, and what the loss is divided by.
    fn weights(&self, normalization: LossNormalization, masked: bool) -> (Vec<f64>, f64) {
        let counts = |i: usize| !masked || self.finished[i];
        let of = |(i, &n): (usize, &usize)| {
            std::iter::repeat_n(if counts(i) { normalization.weight(n, self.longest()) } else { 0.0 }, n)
        };
        let tokens = self.lengths.iter().enumerate().filter(|(i, _)| counts(*i)).map(|(_, n)| n).sum();
        (self.lengths.iter().enumerate().flat_map(of).collect(), normalization.total(self.lengths.len(), tokens))
    }
}

const NORMALIZATIONS: [(&str, LossNormalization); 3] = [
    ("sequence", LossNormalization::Sequence),
    ("token", LossNormalization::Token),
    ("constant", LossNormalization::Constant),
];

fn level(name: &str) -> RatioLevel {
    if name == "token" { RatioLevel::Token } else { RatioLevel::Sequence }
}

fn surrogate(name: &str) -> Surrogate {
    if name == "clip" { Surrogate::Clip } else { Surrogate::Cispo }
}

/// Every combination of the file, with its settings.
fn variants(groups: &Groups) -> Vec<(Value, LossNormalization, Settings, bool)> {
    let all = groups.value["variants"].as_array().unwrap();
    all.iter()
        .map(|v| {
            let text = |name: &str| v[name].as_str().unwrap();
            let normalization = NORMALIZATIONS.iter().find(|(name, _)| *name == text("normalization")).unwrap().1;
            let settings = Settings {
                clip_low: groups.value["cliprange"].as_f64().unwrap(),
                clip_high: v["cliprange_high"].as_f64().unwrap(),
                level: level(text("level")),
                surrogate: surrogate(text("surrogate")),
                beta: v["beta"].as_f64().unwrap(),
            };
            (v.clone(), normalization, settings, v["masked"].as_bool().unwrap())
        })
        .collect()
}

#[test]
fn group_losses_in_every_combination() {
    let groups = Groups::load();
    let (new, old) = (tensor(&groups.rows("new")), tensor(&groups.rows("old")));
    let (reference, advantages) = (tensor(&groups.rows("ref")), tensor(&groups.advantages()));
    let all = variants(&groups);
    assert_eq!(all.len(), 48);
    for (expected, normalization, settings, masked) in all {
        let (weights, total) = groups.weights(normalization, masked);
        let weights = tensor(&weights);
        let targets = Targets {
            old: &old,
            reference: &reference,
            advantages: &advantages,
            weights: &weights,
            lengths: &groups.lengths,
        };
        let (loss, stats) = grpo::loss(&new, &targets, &settings, total).unwrap();
        close(scalar(&loss), expected["loss"].as_f64().unwrap());
        close(stats.mean("clip_fraction").unwrap(), expected["clip_fraction"].as_f64().unwrap());
        close(stats.mean("ratio").unwrap(), expected["ratio"].as_f64().unwrap());
        let parts = stats.mean("clip_fraction_low").unwrap() + stats.mean("clip_fraction_high").unwrap();
        if settings.surrogate == Surrogate::Clip {
            close(parts, stats.mean("clip_fraction").unwrap());
        }
        if settings.surrogate == Surrogate::Clip {
            check_gradient(&groups.rows("new"), |x| Ok(grpo::loss(x, &targets, &settings, total)?.0));
        }
    }
}

/// CISPO's weights carry no gradient, so its gradient is that of −w·A·log π with w held, and every token has one, those
/// beyond the cap too.
#[test]
fn cispo_keeps_the_gradient_of_every_token() {
    let groups = Groups::load();
    let (new, old) = (groups.rows("new"), groups.rows("old"));
    let (weights, total) = groups.weights(LossNormalization::Token, false);
    let (old_t, weights_t, advantages) = (tensor(&old), tensor(&weights), groups.advantages());
    let advantages_t = tensor(&advantages);
    let targets = Targets {
        old: &old_t,
        reference: &old_t,
        advantages: &advantages_t,
        weights: &weights_t,
        lengths: &groups.lengths,
    };
    let settings =
        Settings { clip_low: 0.2, clip_high: 0.1, level: RatioLevel::Token, surrogate: Surrogate::Cispo, beta: 0.0 };
    let var = Var::from_tensor(&tensor(&new)).unwrap();
    let (loss, stats) = grpo::loss(var.as_tensor(), &targets, &settings, total).unwrap();
    let grad: Vec<f64> = loss.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    for (i, g) in grad.iter().enumerate() {
        let held = (new[i] - old[i]).exp().min(1.1);
        close(*g, -held * advantages[i] / total);
        assert!(*g != 0.0);
    }
    assert!(stats.mean("clip_fraction").unwrap() > 0.0, "nothing was beyond the cap");
}

/// Before the first step every form is the plain policy gradient with its weights: ratio 1, nothing clipped, KL 0.
#[test]
fn at_the_start_every_form_is_the_policy_gradient() {
    let groups = Groups::load();
    let old = groups.rows("old");
    let (old_t, advantages) = (tensor(&old), groups.advantages());
    let advantages_t = tensor(&advantages);
    for (_, normalization) in NORMALIZATIONS {
        for level in [RatioLevel::Token, RatioLevel::Sequence] {
            for surrogate in [Surrogate::Clip, Surrogate::Cispo] {
                let (weights, total) = groups.weights(normalization, true);
                let weights_t = tensor(&weights);
                let targets = Targets {
                    old: &old_t,
                    reference: &old_t,
                    advantages: &advantages_t,
                    weights: &weights_t,
                    lengths: &groups.lengths,
                };
                let settings = Settings { clip_low: 0.2, clip_high: 0.28, level, surrogate, beta: 0.04 };
                let var = Var::from_tensor(&old_t).unwrap();
                let (loss, stats) = grpo::loss(var.as_tensor(), &targets, &settings, total).unwrap();
                assert_eq!(stats.mean("ratio"), Some(1.0));
                for zero in ["clip_fraction", "clip_fraction_low", "clip_fraction_high", "approx_kl", "loss_k3"] {
                    assert_eq!(stats.mean(zero), Some(0.0), "{zero}");
                }
                let grad: Vec<f64> = loss.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
                // A ratio of whole responses spreads over its tokens, whose weights are equal.
                for (g, (w, a)) in grad.iter().zip(weights.iter().zip(&advantages)) {
                    close(*g, -a * w / total);
                }
            }
        }
    }
}

#[test]
fn losses_of_micro_batches_add_up_whatever_they_are_normalised_by() {
    let groups = Groups::load();
    let cut = |name: &str, from: usize, to: usize| tensor(&groups.rows(name)[from..to]);
    let advantages = groups.advantages();
    let ends: Vec<usize> = groups
        .lengths
        .iter()
        .scan(0, |at, n| {
            Some({
                *at += n;
                *at
            })
        })
        .collect();
    let n = *ends.last().unwrap();
    for (expected, normalization, settings, masked) in variants(&groups) {
        let (weights, total) = groups.weights(normalization, masked);
        let part = |lengths: &[usize], from: usize, to: usize| {
            let (new, old, reference) = (cut("new", from, to), cut("old", from, to), cut("ref", from, to));
            let (advantages, weights) = (tensor(&advantages[from..to]), tensor(&weights[from..to]));
            let targets =
                Targets { old: &old, reference: &reference, advantages: &advantages, weights: &weights, lengths };
            grpo::loss(&new, &targets, &settings, total).unwrap()
        };
        let (first, mut stats) = part(&groups.lengths[..2], 0, ends[1]);
        let (second, more) = part(&groups.lengths[2..], ends[1], n);
        stats.merge(&more);
        close(scalar(&first) + scalar(&second), expected["loss"].as_f64().unwrap());
        close(stats.mean("clip_fraction").unwrap(), expected["clip_fraction"].as_f64().unwrap());
    }
}

#[test]
fn advantages_by_group_by_batch_and_unscaled() {
    let groups = Groups::load();
    let rewards = list(&groups.value["rewards"]);
    let eps = groups.value["eps"].as_f64().unwrap();
    for (name, scale) in [("group", ScaleRewards::Group), ("batch", ScaleRewards::Batch), ("none", ScaleRewards::None)]
    {
        let got = grpo::advantages(&rewards, 3, scale, eps).unwrap();
        all_close(&got, &list(&groups.value["advantages"][name]));
        assert_eq!(grpo::advantages(&rewards, 1, scale, eps), None);
        assert_eq!(grpo::advantages(&[0.5; 4], 2, scale, eps).unwrap(), [0.0; 4]);
    }
    assert_eq!(grpo::without_variance(&[1.0, 1.0, 1.0, 0.0, 0.5, 0.5], 2), [true, false, true]);
}

#[test]
fn the_entropy_bonus_and_its_gradient() {
    let e = fixture()["groups"]["entropy"].clone();
    let flat: Vec<f64> = e["logits"].as_array().unwrap().iter().flat_map(list).collect();
    let (t, counts) = (e["temperature"].as_f64().unwrap(), tensor(&list(&e["counts"])));
    let expected: Vec<f64> = e["gradient"].as_array().unwrap().iter().flat_map(list).collect();
    let loss = |x: &Tensor| -> Result<Tensor> {
        let h = logprobs::entropy(&x.reshape((4, 7))?, t)?;
        Ok(entropy::loss(&h, &counts, 3.0)?.0)
    };
    close(-scalar(&loss(&tensor(&flat)).unwrap()), e["mean"].as_f64().unwrap());
    let grad = check_gradient(&flat, loss);
    // The loss falls as the entropy rises.
    all_close(&grad.iter().map(|g| -g).collect::<Vec<_>>(), &expected);
}

/// The fused operation against the definition: values, and gradients of hidden states and of a trained matrix, both for
/// log-probs and entropies, at a temperature, with logits that are divided and capped.
#[test]
fn fused_entropies_have_the_gradient_of_the_definition() {
    let noise = |n: usize, seed: f64| (0..n).map(|i| ((i as f64 + seed) * 0.713).sin() as f32).collect::<Vec<_>>();
    let x = Var::from_tensor(&Tensor::from_vec(noise(9 * 20, 1.0), (9, 20), &Device::Cpu).unwrap()).unwrap();
    let w = Var::from_tensor(&Tensor::from_vec(noise(77 * 20, 2.0), (77, 20), &Device::Cpu).unwrap()).unwrap();
    let targets = [0u32, 76, 5, 5, 40, 1, 2, 3, 4];
    let index = Tensor::new(&targets, &Device::Cpu).unwrap();
    let weights = Tensor::from_vec(noise(9, 3.0), 9, &Device::Cpu).unwrap();
    for shape in [LogitShape::default(), LogitShape { divisor: 1.5, cap: Some(2.0) }] {
        let dense = Weight::Dense(w.as_tensor().clone(), WeightLayout::OutIn);
        let params = [("x".to_owned(), x.clone()), ("w".to_owned(), w.clone())].into_iter().collect();
        let grads = |of: &dyn Fn() -> Result<(Tensor, Tensor)>| {
            let (logp, h) = of().unwrap();
            let loss = ((logp * &weights).unwrap() + (h * 0.3).unwrap()).unwrap().sum_all().unwrap();
            let mut sum = Accumulator::default();
            sum.add(&params, &loss).unwrap();
            (loss.to_scalar::<f32>().unwrap(), sum.grads)
        };
        let (loss, fused) = grads(&|| {
            let both = with_entropy(&x, &dense, &targets, 0.7, shape)?;
            Ok((both.logprobs, both.entropy))
        });
        let (expected, plain) = grads(&|| {
            let logits = shape.apply(&x.matmul(&w.t()?)?)?;
            Ok((logprobs::token_logprobs(&logits, &index, 0.7)?, logprobs::entropy(&logits, 0.7)?))
        });
        assert!((loss - expected).abs() < 1e-4, "{loss} is not {expected}");
        for (name, expected) in &plain {
            let difference = (expected - &fused[name]).unwrap().abs().unwrap().max_all().unwrap();
            let most = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let difference = difference.to_scalar::<f32>().unwrap();
            assert!(most > 0.0 && difference <= 1e-4 * most, "{name}: {difference} of {most}");
        }
    }
}

struct Pairs(Value);

impl Pairs {
    fn column(&self, name: &str) -> Vec<f64> {
        list(&self.0[name])
    }

    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap()
    }

    /// Mean log-probs per token.
    fn means(&self, side: &str) -> Vec<f64> {
        let lengths = self.column(&format!("len_{side}"));
        self.column(&format!("policy_{side}")).iter().zip(lengths).map(|(sum, n)| sum / n).collect()
    }
}

/// Each pair alone, all together with weights, and the gradient of both sides.
fn check_pairs(
    pairs: &Pairs,
    expected: &str,
    (chosen, rejected): (Vec<f64>, Vec<f64>),
    loss: impl Fn(&Tensor, &Tensor, &Tensor, f64, std::ops::Range<usize>) -> Result<Tensor>,
) {
    let (expected, weights) = (pairs.column(expected), pairs.column("weights"));
    for i in 0..expected.len() {
        let one = loss(&tensor(&chosen[i..=i]), &tensor(&rejected[i..=i]), &tensor(&[1.0]), 1.0, i..i + 1);
        close(scalar(&one.unwrap()), expected[i]);
    }
    let (all, total) = (0..expected.len(), weights.iter().sum::<f64>());
    let mean = expected.iter().zip(&weights).map(|(e, w)| e * w).sum::<f64>() / total;
    let (c, r, w) = (tensor(&chosen), tensor(&rejected), tensor(&weights));
    close(scalar(&loss(&c, &r, &w, total, all.clone()).unwrap()), mean);
    check_gradient(&chosen, |x| loss(x, &r, &w, total, all.clone()));
    check_gradient(&rejected, |x| loss(&c, x, &w, total, all.clone()));
}

#[test]
fn cdpo_and_robust_dpo() {
    let pairs = Pairs(fixture()["pairs"].clone());
    let (beta, label_smoothing) = (pairs.number("beta"), pairs.number("label_smoothing"));
    let (ref_chosen, ref_rejected) = (pairs.column("ref_chosen"), pairs.column("ref_rejected"));
    for (expected, kind) in [("cdpo", dpo::DpoLoss::Sigmoid), ("robust", dpo::DpoLoss::Robust)] {
        let settings = dpo::Settings { kind, beta, label_smoothing };
        check_pairs(
            &pairs,
            expected,
            (pairs.column("policy_chosen"), pairs.column("policy_rejected")),
            |c, r, w, total, at| {
                let (ref_chosen, ref_rejected) = (tensor(&ref_chosen[at.clone()]), tensor(&ref_rejected[at]));
                let logps = dpo::Logps {
                    policy_chosen: c,
                    policy_rejected: r,
                    ref_chosen: &ref_chosen,
                    ref_rejected: &ref_rejected,
                };
                Ok(dpo::loss(&logps, w, &settings, total)?.0)
            },
        );
    }
}

/// Under labels that are turned with probability ε, the mean of the robust loss is DPO's loss of the true labels.
#[test]
fn the_robust_loss_is_unbiased_under_its_noise() {
    let x = tensor(&[-1.3, 0.2, 2.0]);
    for epsilon in [0.1, 0.3] {
        let given = robust_dpo::terms(&x, epsilon).unwrap().to_vec1::<f64>().unwrap();
        let turned = robust_dpo::terms(&x.neg().unwrap(), epsilon).unwrap().to_vec1::<f64>().unwrap();
        let clean = log_sigmoid(&x).unwrap().neg().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..3 {
            close((1.0 - epsilon) * given[i] + epsilon * turned[i], clean[i]);
        }
    }
}

#[test]
fn noise_follows_from_agreement() {
    for epsilon in [0.0f64, 0.1, 0.25, 0.4] {
        let agreement = (1.0 - epsilon).powi(2) + epsilon * epsilon;
        close(dpo::noise_from_agreement(agreement), epsilon);
    }
    for hopeless in [0.5, 0.3] {
        assert_eq!(dpo::noise_from_agreement(hopeless), dpo::MAX_NOISE);
    }
}

#[test]
fn simpo_and_orpo() {
    let pairs = Pairs(fixture()["pairs"].clone());
    let (beta, gamma) = (pairs.number("simpo_beta"), pairs.number("simpo_gamma"));
    for (expected, label_smoothing) in [("simpo", 0.0), ("simpo_smoothed", pairs.number("label_smoothing"))] {
        let settings = simpo::Settings { beta, gamma, label_smoothing };
        check_pairs(&pairs, expected, (pairs.means("chosen"), pairs.means("rejected")), |c, r, w, total, _| {
            Ok(simpo::loss(c, r, w, &settings, total)?.0)
        });
    }
    let lambda = pairs.number("orpo_beta");
    check_pairs(&pairs, "orpo", (pairs.means("chosen"), pairs.means("rejected")), |c, r, w, total, _| {
        Ok(orpo::loss(c, r, w, lambda, total)?.0)
    });
    let (c, r) = (tensor(&pairs.means("chosen")), tensor(&pairs.means("rejected")));
    let stats = orpo::loss(&c, &r, &tensor(&[1.0; 5]), lambda, 5.0).unwrap().1;
    let odds = pairs.column("orpo_log_odds_ratio");
    close(stats.mean("log_odds_ratio").unwrap(), odds.iter().sum::<f64>() / 5.0);
}

/// Responses that are almost certain, certain, or impossible: odds stay finite, and f32 keeps its digits.
#[test]
fn odds_of_certain_responses_are_finite() {
    let column = |values: [f32; 3]| Var::from_tensor(&Tensor::new(&values, &Device::Cpu).unwrap()).unwrap();
    let (c, r) = (column([-1e-5, 0.0, -90.0]), column([-1.0, -2.0, -1e-3]));
    let ones = Tensor::new(&[1f32; 3], &Device::Cpu).unwrap();
    let (loss, stats) = orpo::loss(&c, &r, &ones, 0.1, 3.0).unwrap();
    let grads = loss.backward().unwrap();
    for var in [&c, &r] {
        let grad: Vec<f32> = grads.get(var).unwrap().to_vec1().unwrap();
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }
    assert!(stats.mean("log_odds_ratio").unwrap().is_finite());
    // log(p / (1 − p)) at p = e^−0.00001, to six digits though 1 − p in f32 has two.
    let one = |x: f32| {
        let x = Tensor::new(&[x], &Device::Cpu).unwrap();
        let half = Tensor::new(&[-std::f32::consts::LN_2], &Device::Cpu).unwrap();
        orpo::loss(&x, &half, &Tensor::new(&[1f32], &Device::Cpu).unwrap(), 0.1, 1.0)
            .unwrap()
            .1
            .mean("log_odds_ratio")
            .unwrap()
    };
    let exact = -1e-5 - (-(-1e-5f64).exp_m1()).ln();
    assert!((one(-1e-5) - exact).abs() < 1e-5, "{} is not {exact}", one(-1e-5));
}

#[test]
fn kto_against_its_reference_point() {
    let t = fixture()["thumbs"].clone();
    let number = |name: &str| t[name].as_f64().unwrap();
    let z0 = kto::reference_point(&list(&t["kl_policy"]), &list(&t["kl_reference"]));
    close(z0, number("z0"));
    assert_eq!(kto::reference_point(&[-3.0], &[-1.0]), 0.0, "never below 0");
    assert_eq!(kto::reference_point(&[], &[]), 0.0);
    let settings = kto::Settings {
        beta: number("beta"),
        desirable_weight: number("desirable_weight"),
        undesirable_weight: number("undesirable_weight"),
    };
    let (policy, reference, liked) = (list(&t["policy"]), list(&t["reference"]), flags(&t["liked"]));
    let loss = |x: &Tensor| Ok(kto::loss(x, &tensor(&reference), &liked, z0, &settings, 5.0)?.0);
    close(scalar(&loss(&tensor(&policy)).unwrap()), number("mean"));
    for (i, expected) in list(&t["losses"]).into_iter().enumerate() {
        let (p, r) = (tensor(&policy[i..=i]), tensor(&reference[i..=i]));
        close(scalar(&kto::loss(&p, &r, &liked[i..=i], z0, &settings, 1.0).unwrap().0), expected);
    }
    let grad = check_gradient(&policy, loss);
    // Liked responses become likelier, the others less likely.
    assert!(grad.iter().zip(&liked).all(|(g, liked)| (*g < 0.0) == *liked));
    // Before the first step policy and reference are one: every loss is half its weight.
    let (start, _) = kto::loss(&tensor(&reference), &tensor(&reference), &liked, 0.0, &settings, 5.0).unwrap();
    close(scalar(&start), (3.0 * 0.5 * 1.0 + 2.0 * 0.5 * 1.5) / 5.0);
}
