//! Learning-rate schedules: linear warm-up, then a constant rate, or linear or cosine decay to 0.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    #[default]
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub peak: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of optimizer step `step`, counted from 0. The first step of a warm-up has peak/warmup_steps,
    /// not 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let after = (step - self.warmup_steps) as f64;
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = (after / span).min(1.0);
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - done,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_linearly_and_decay_as_configured() {
        let at = |decay, step| Schedule { peak: 2.0, warmup_steps: 4, total_steps: 12, decay }.at(step);
        assert_eq!([at(Decay::Linear, 0), at(Decay::Linear, 3), at(Decay::Linear, 4)], [0.5, 2.0, 2.0]);
        assert_eq!([at(Decay::Linear, 8), at(Decay::Linear, 12), at(Decay::Linear, 99)], [1.0, 0.0, 0.0]);
        assert!((at(Decay::Cosine, 8) - 1.0).abs() < 1e-12 && at(Decay::Cosine, 12).abs() < 1e-12);
        assert_eq!(at(Decay::Constant, 99), 2.0);
    }
}
