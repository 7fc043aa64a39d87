//! Counter-based random numbers: every draw is a pure function of (seed, stream, step), so a resumed run needs no
//! generator state, and streams are independent.

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};

/// The purpose of random numbers. The discriminants are part of the checkpoint format and must not be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Order of the data within an epoch (step = epoch).
    DataOrder = 1,
    /// Which prompts are held out.
    Split = 2,
    /// Initial weights of adapters and heads (step = index of the tensor).
    Init = 3,
    /// Token sampling in rollouts (step = iteration).
    Rollout = 4,
    /// Minibatch order of one PPO epoch (step = iteration · 1000 + epoch).
    Minibatch = 5,
    /// Order of the pretraining or SFT text of PPO-ptx.
    Ptx = 6,
    /// Fixed sample completions.
    Samples = 7,
    /// Which tokens a masked language model must predict (step = step · 2²⁰ + block; evaluation: from 2⁶³).
    Mask = 20,
    /// Which rows and templates of a task a mixture takes (step = index of the task).
    Mixture = 21,
    /// Weights of a new model (step = index of the tensor).
    NewModel = 22,
    /// Which tokens a soft prompt starts from.
    SoftPrompt = 23,
    /// Which sets each head of an ensemble takes (step = index of the set).
    Bootstrap = 30,
    /// Which prompts replace groups without variance (step = iteration · 2¹⁶ + attempt).
    Redraw = 31,
}

/// The generator of one (seed, stream, step).
pub fn rng(seed: u64, stream: Stream, step: u64) -> ChaCha12Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(stream as u64).to_le_bytes());
    key[16..24].copy_from_slice(&step.to_le_bytes());
    key[24..].copy_from_slice(b"instrctd");
    ChaCha12Rng::from_seed(key)
}

/// A number of (seed, stream, step), for use as a seed.
pub fn derive(seed: u64, stream: Stream, step: u64) -> u64 {
    rng(seed, stream, step).next_u64()
}

/// A uniform number in [0, 1).
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A standard normal number (Box–Muller transform).
pub fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// 0..n in random order (Fisher–Yates; the bias of the modulo is below 2⁻⁴⁰ for practical n).
pub fn permutation(n: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_steps_are_independent_and_repeatable() {
        let draw = |seed, stream, step| derive(seed, stream, step);
        assert_eq!(draw(1, Stream::Rollout, 5), draw(1, Stream::Rollout, 5));
        let all = [draw(1, Stream::Rollout, 5), draw(1, Stream::Rollout, 6), draw(1, Stream::Init, 5)];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
    }

    #[test]
    fn permutations_contain_every_index_once() {
        let mut order = permutation(100, &mut rng(3, Stream::DataOrder, 0));
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
