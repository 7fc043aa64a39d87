//! Guards against over-optimisation (arXiv 2210.10760): a policy is published only if its KL is within the budget, and
//! the held-out signal has not fallen while the reward rose.

use serde::{Deserialize, Serialize};

use crate::objective::whiten::moments;

/// The limits of a run.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum KL in nats per sequence.
    pub kl_budget: Option<f64>,
    /// Number of consecutive measurements in which the held-out signal is below its best while the reward is above its
    /// value at that time, before the run stops; 0 never stops it.
    pub patience: u64,
}

/// The state of the guard in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// The round with the highest held-out signal so far.
    best: Option<Point>,
    /// Number of consecutive measurements that have fallen.
    falling: u64,
    /// Number of updates of the policy that would be published now.
    pub good_step: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    gold: f64,
    /// Squared standard error of `gold`.
    error2: f64,
    proxy: f64,
}

/// A measurement of the current policy.
pub struct Measurement<'a> {
    /// Number of updates of the policy.
    pub step: u64,
    /// KL to the start policy in nats per sequence.
    pub kl: f64,
    /// Mean of the reward that is trained on.
    pub proxy: f64,
    /// Samples of the held-out signal, if there is one.
    pub gold: Option<&'a [f64]>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The policy may be published.
    Good,
    /// The held-out signal is below its best, but not for long enough to stop.
    Doubtful,
    Stop(String),
}

impl Limits {
    /// Judges a measurement. The signal counts as fallen if its mean is lower by more than one standard error of the
    /// difference.
    pub fn judge(&self, state: &mut GuardState, now: &Measurement<'_>) -> Verdict {
        if let Some(budget) = self.kl_budget.filter(|budget| now.kl > *budget) {
            return Verdict::Stop(format!("KL {:.2} nats per sequence passed the budget of {budget}", now.kl));
        }
        let Some(gold) = now.gold.filter(|gold| !gold.is_empty()) else {
            state.good_step = Some(now.step);
            return Verdict::Good;
        };
        let (mean, variance) = moments(gold);
        let point = Point { gold: mean, error2: variance / gold.len() as f64, proxy: now.proxy };
        let fallen = state
            .best
            .is_some_and(|best| mean < best.gold - (best.error2 + point.error2).sqrt() && now.proxy > best.proxy);
        if fallen {
            state.falling += 1;
            let Some(best) = state.best.filter(|_| self.patience > 0 && state.falling >= self.patience) else {
                return Verdict::Doubtful;
            };
            return Verdict::Stop(format!(
                "the held-out signal fell from {:.4} to {mean:.4} while the reward rose from {:.4} to {:.4}",
                best.gold, best.proxy, now.proxy
            ));
        }
        state.falling = 0;
        if state.best.is_none_or(|best| mean > best.gold) {
            state.best = Some(point);
        }
        state.good_step = Some(now.step);
        Verdict::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(limits: &Limits, points: &[(f64, f64, f64)]) -> (Vec<Verdict>, GuardState) {
        let mut state = GuardState::default();
        let verdicts = points.iter().enumerate().map(|(step, (kl, proxy, gold))| {
            let gold = [*gold - 0.01, *gold + 0.01];
            limits.judge(&mut state, &Measurement { step: step as u64, kl: *kl, proxy: *proxy, gold: Some(&gold) })
        });
        let verdicts = verdicts.collect();
        (verdicts, state)
    }

    #[test]
    fn a_signal_that_falls_while_the_reward_rises_stops_the_run_at_its_best() {
        let limits = Limits { kl_budget: None, patience: 2 };
        let rise_then_fall = [(0.0, 0.0, 0.1), (1.0, 1.0, 0.5), (2.0, 2.0, 0.3), (3.0, 3.0, 0.2)];
        let (verdicts, state) = walk(&limits, &rise_then_fall);
        assert_eq!(verdicts[..3], [Verdict::Good, Verdict::Good, Verdict::Doubtful]);
        assert!(matches!(&verdicts[3], Verdict::Stop(why) if why.contains("held-out")), "{verdicts:?}");
        assert_eq!(state.good_step, Some(1));
    }

    #[test]
    fn noise_recovery_and_a_falling_reward_do_not_stop_the_run() {
        let limits = Limits { kl_budget: None, patience: 1 };
        // A drop within the standard error; then both fall together, which is not over-optimisation.
        let (verdicts, state) = walk(&limits, &[(0.0, 1.0, 0.5), (0.0, 2.0, 0.495), (0.0, 0.5, 0.1), (0.0, 2.0, 0.6)]);
        assert_eq!(verdicts, vec![Verdict::Good; 4]);
        assert_eq!(state.good_step, Some(3));
    }

    #[test]
    fn patience_0_never_stops_and_the_budget_stops_at_once() {
        let watch = Limits { kl_budget: Some(5.0), patience: 0 };
        let (verdicts, state) = walk(&watch, &[(0.0, 0.0, 0.5), (1.0, 1.0, 0.1), (4.0, 2.0, 0.1), (6.0, 3.0, 0.9)]);
        assert_eq!(verdicts[1..3], [Verdict::Doubtful, Verdict::Doubtful]);
        assert!(matches!(&verdicts[3], Verdict::Stop(why) if why.contains("budget")));
        assert_eq!(state.good_step, Some(0));
    }
}
