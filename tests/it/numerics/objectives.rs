//! Every value of tests/fixtures/objectives.json, computed in f64 within 1e-6.

use candle_core::{Device, Tensor};
use instructd::objective::*;
use serde_json::Value;

const TOLERANCE: f64 = 1e-6;

struct Reference(Value);

impl Reference {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/objectives.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    fn number(&self, pointer: &str) -> f64 {
        self.0.pointer(pointer).unwrap().as_f64().unwrap()
    }

    fn list(&self, pointer: &str) -> Vec<f64> {
        self.0.pointer(pointer).unwrap().as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn rows(&self, pointer: &str) -> Vec<Vec<f64>> {
        let rows = self.0.pointer(pointer).unwrap().as_array().unwrap();
        rows.iter().map(|r| r.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()).collect()
    }

    fn lengths(&self) -> Vec<usize> {
        self.list("/lengths").into_iter().map(|n| n as usize).collect()
    }

    /// A padded `[B, T]` field of the file as ragged rows laid end to end.
    fn ragged(&self, name: &str) -> Vec<f64> {
        let (t, flat) = (self.number("/shapes/T") as usize, self.list(name));
        self.lengths().iter().enumerate().flat_map(|(b, &n)| flat[b * t..b * t + n].to_vec()).collect()
    }
}

#[track_caller]
fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= TOLERANCE, "{actual} is not {expected}");
}

#[track_caller]
fn all_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= TOLERANCE, "entry {i}: {a} is not {e}");
    }
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    x.to_scalar::<f64>().unwrap()
}

/// What PPO computes from a rollout before it takes a gradient.
struct Rollout {
    rewards: Vec<f64>,
    gae: gae::Gae,
    whitened: Vec<f64>,
}

fn rollout(r: &Reference) -> Rollout {
    let kl = kl::k1(&r.ragged("/logprobs_old"), &r.ragged("/logprobs_ref"));
    let rewards = kl::shaped_rewards(&kl, &r.lengths(), &r.list("/score"), r.number("/hyper/kl_coef"));
    let (gamma, lambda) = (r.number("/hyper/gamma"), r.number("/hyper/lambda"));
    let gae = gae::gae(&rewards, &r.ragged("/values_old"), &r.lengths(), gamma, lambda);
    let mut whitened = gae.advantages.clone();
    whiten::whiten(&mut whitened, false);
    Rollout { rewards, gae, whitened }
}

#[test]
fn rewards_advantages_and_returns() {
    let r = Reference::load();
    let rollout = rollout(&r);
    all_close(&rollout.rewards, &r.ragged("/rewards"));
    all_close(&rollout.gae.advantages, &r.ragged("/advantages"));
    all_close(&rollout.gae.returns, &r.ragged("/returns"));
    all_close(&rollout.whitened, &r.ragged("/advantages_whitened"));
    let mut rewards = rollout.rewards;
    whiten::whiten(&mut rewards, true);
    all_close(&rewards, &r.ragged("/rewards_whitened_keep_mean"));
}

#[test]
fn kl_estimators_and_controller() {
    let r = Reference::load();
    let (old, reference) = (r.ragged("/logprobs_old"), r.ragged("/logprobs_ref"));
    let k1 = kl::k1(&old, &reference);
    all_close(&logprobs::sequence_sums(&k1, &r.lengths()), &r.list("/kl_per_sequence"));
    all_close(&kl::k3(&old, &reference), &r.ragged("/k3_per_token_old_vs_ref"));
    let k3 = kl::k3_tensor(&tensor(&old), &tensor(&reference)).unwrap();
    all_close(&k3.to_vec1::<f64>().unwrap(), &r.ragged("/k3_per_token_old_vs_ref"));

    for i in 0..r.0["adaptive_kl"].as_array().unwrap().len() {
        let field = |name: &str| r.number(&format!("/adaptive_kl/{i}/{name}"));
        let adaptive = kl::AdaptiveKl { target: field("target"), horizon: field("horizon") };
        let mut controller = kl::KlController { coef: field("coef"), adaptive: Some(adaptive) };
        controller.update(field("kl"), field("n") as usize);
        close(controller.coef, field("next"));
    }
}

#[test]
fn ppo_losses() {
    let r = Reference::load();
    let rollout = rollout(&r);
    let n: usize = r.lengths().iter().sum();
    let (new, old) = (tensor(&r.ragged("/logprobs_new")), tensor(&r.ragged("/logprobs_old")));
    let (policy, stats) =
        ppo::policy_loss(&new, &old, &tensor(&rollout.whitened), r.number("/hyper/cliprange"), n as f64).unwrap();
    close(scalar(&policy), r.number("/policy_loss"));
    close(stats.mean("approx_kl").unwrap(), r.number("/approx_kl_half_sq"));
    close(stats.mean("clip_fraction").unwrap(), r.number("/clip_fraction"));

    let (values, values_old) = (tensor(&r.ragged("/values_new")), tensor(&r.ragged("/values_old")));
    let clip = r.number("/hyper/cliprange_value");
    let (value, _) = ppo::value_loss(&values, &values_old, &tensor(&rollout.gae.returns), clip, n as f64).unwrap();
    close(scalar(&value), r.number("/value_loss"));
    close(scalar(&policy) + r.number("/hyper/vf_coef") * scalar(&value), r.number("/total_loss"));
}

#[test]
fn losses_of_micro_batches_add_up_to_the_batch() {
    let r = Reference::load();
    let rollout = rollout(&r);
    let n = rollout.rewards.len();
    let (new, old) = (tensor(&r.ragged("/logprobs_new")), tensor(&r.ragged("/logprobs_old")));
    let advantages = tensor(&rollout.whitened);
    let part = |from: usize, len: usize| {
        let cut = |t: &Tensor| t.narrow(0, from, len).unwrap();
        ppo::policy_loss(&cut(&new), &cut(&old), &cut(&advantages), 0.2, n as f64).unwrap()
    };
    let (first, mut stats) = part(0, 4);
    let (second, more) = part(4, n - 4);
    stats.merge(&more);
    close(scalar(&first) + scalar(&second), r.number("/policy_loss"));
    close(stats.mean("clip_fraction").unwrap(), r.number("/clip_fraction"));
}

#[test]
fn kwise_with_ties() {
    let r = Reference::load();
    let scores = r.rows("/kwise/scores");
    let expected = r.list("/kwise/loss_per_set");
    let mut all_pairs = Vec::new();
    for (i, (row, tiers)) in scores.iter().zip(r.rows("/kwise/tiers")).enumerate() {
        let tiers: Vec<i64> = tiers.iter().map(|&t| t as i64).collect();
        let (loss, _) = reward::loss(&tensor(row), &reward::pairs_of_set(&tiers, 0, 0.0), 1.0, None).unwrap();
        close(scalar(&loss), expected[i]);
        all_pairs.extend(reward::pairs_of_set(&tiers, i * row.len(), 0.0));
    }
    // A batch of sets is the mean of the sets, whatever their number of pairs.
    let (loss, stats) = reward::loss(&tensor(&scores.concat()), &all_pairs, 3.0, None).unwrap();
    close(scalar(&loss), expected.iter().sum::<f64>() / 3.0);
    close(stats.mean("loss").unwrap(), expected.iter().sum::<f64>() / 3.0);
}

#[test]
fn a_set_of_ties_has_no_pair_and_a_margin_raises_the_loss() {
    assert!(reward::pairs_of_set(&[1, 1, 1], 0, 0.0).is_empty());
    let scores = tensor(&[0.3, -0.2]);
    let (tied, stats) = reward::loss(&scores, &[], 1.0, None).unwrap();
    assert_eq!(scalar(&tied), 0.0);
    assert_eq!(stats.mean("accuracy"), None);
    let pairs = reward::pairs_of_set(&[0, 1], 0, 1.0);
    let (loss, _) = reward::loss(&scores, &pairs, 1.0, None).unwrap();
    close(scalar(&loss), (1.0f64 + (-(0.5 - 1.0f64)).exp()).ln());
    // What is known beside the scores adds to the log-odds, and not to what the statistics say of the scores.
    let (loss, stats) = reward::loss(&scores, &pairs, 1.0, Some(&tensor(&[2.5]))).unwrap();
    close(scalar(&loss), (1.0f64 + (-(0.5 - 1.0 + 2.5f64)).exp()).ln());
    close(stats.mean("margin").unwrap(), 0.5);
}

#[test]
fn reinforce_rloo_and_grpo() {
    let r = Reference::load();
    let lengths = r.lengths();
    let advantages = reinforce::centered(&r.list("/score"));
    let advantages = tensor(&logprobs::per_token(&advantages, &lengths));
    let (loss, _) = reinforce::loss(&tensor(&r.ragged("/logprobs_new")), &advantages, 4, 4.0).unwrap();
    close(scalar(&loss), r.number("/reinforce_loss_sequence_sum_mean"));

    let group = r.rows("/rloo_advantages/rewards")[0].len();
    let returns = r.rows("/rloo_advantages/rewards").concat();
    all_close(&rloo::advantages(&returns, group).unwrap(), &r.rows("/rloo_advantages/advantages").concat());
    let eps = r.number("/grpo_advantages/eps");
    let rewards = r.rows("/grpo_advantages/rewards").concat();
    all_close(
        &grpo::advantages(&rewards, group, grpo::ScaleRewards::Group, eps).unwrap(),
        &r.rows("/grpo_advantages/advantages").concat(),
    );
}

#[test]
fn groups_of_one_are_refused_instead_of_dividing_by_zero() {
    assert_eq!(rloo::advantages(&[1.0, 2.0], 1), None);
    assert_eq!(grpo::advantages(&[1.0, 2.0], 1, grpo::ScaleRewards::Group, 1e-4), None);
    assert_eq!(rloo::advantages(&[1.0, 2.0, 3.0], 2), None);
    // All samples equally good: no signal, and no NaN.
    assert_eq!(grpo::advantages(&[0.5, 0.5], 2, grpo::ScaleRewards::Group, 1e-4).unwrap(), [0.0, 0.0]);
}

#[test]
fn dpo_losses() {
    let r = Reference::load();
    let column = |name: &str| tensor(&r.list(&format!("/dpo/{name}")));
    let (pc, pr) = (column("policy_chosen"), column("policy_rejected"));
    let (rc, rr) = (column("ref_chosen"), column("ref_rejected"));
    let beta = r.number("/dpo/beta");
    let run = |from: usize, len: usize, kind| {
        let cut = |t: &Tensor| t.narrow(0, from, len).unwrap();
        let (pc, pr, rc, rr) = (cut(&pc), cut(&pr), cut(&rc), cut(&rr));
        let logps = dpo::Logps { policy_chosen: &pc, policy_rejected: &pr, ref_chosen: &rc, ref_rejected: &rr };
        let settings = dpo::Settings { kind, beta, label_smoothing: 0.0 };
        scalar(&dpo::loss(&logps, &tensor(&vec![1.0; len]), &settings, len as f64).unwrap().0)
    };
    let each: Vec<f64> = (0..5).map(|i| run(i, 1, dpo::DpoLoss::Sigmoid)).collect();
    all_close(&each, &r.list("/dpo/losses"));
    close(run(0, 5, dpo::DpoLoss::Sigmoid), r.number("/dpo/mean"));
    // IPO of the first pair by hand.
    let h = (r.list("/dpo/policy_chosen")[0] - r.list("/dpo/ref_chosen")[0])
        - (r.list("/dpo/policy_rejected")[0] - r.list("/dpo/ref_rejected")[0]);
    close(run(0, 1, dpo::DpoLoss::Ipo), (h - 1.0 / (2.0 * beta)).powi(2));
}
