//! Generalised advantage estimation (arXiv 1506.02438) over sequences of any lengths; the value after the end is 0.

/// Per-token advantages and returns (advantage + value), in the layout of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Gae {
    pub advantages: Vec<f64>,
    pub returns: Vec<f64>,
}

/// δ_t = r_t + γ V_{t+1} − V_t; A_t = δ_t + γλ A_{t+1}. `rewards` and `values` have the concatenated tokens of the policy in
/// all sequences, `lengths` their counts. Tokens between two answers of a conversation are not among them: t + 1 is the
/// policy's next token, so one step with one γ and one λ leads from the last token of an answer to the first of the next.
pub fn gae(rewards: &[f64], values: &[f64], lengths: &[usize], gamma: f64, lambda: f64) -> Gae {
    debug_assert_eq!(rewards.len(), values.len());
    debug_assert_eq!(rewards.len(), lengths.iter().sum::<usize>());
    let mut advantages = vec![0.0; rewards.len()];
    let mut start = 0;
    for &n in lengths {
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        for t in (start..start + n).rev() {
            let delta = rewards[t] + gamma * next_value - values[t];
            next_advantage = delta + gamma * lambda * next_advantage;
            next_value = values[t];
            advantages[t] = next_advantage;
        }
        start += n;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    Gae { advantages, returns }
}
