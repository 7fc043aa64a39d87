//! Counts of the groups of a round.

/// Numbers of groups of responses in a round, with dynamic sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    pub all: usize,
    /// Groups without variance at first.
    pub flat: usize,
    /// Groups without variance at the end.
    pub left: usize,
    /// Groups that were sampled as replacements.
    pub drawn_again: usize,
}

impl GroupCounts {
    /// `frac_reward_zero_std` is TRL's name for the share of groups without variance.
    pub fn metrics(self) -> [(&'static str, f64); 3] {
        let share = |n: usize| n as f64 / self.all.max(1) as f64;
        [
            ("frac_reward_zero_std", share(self.flat)),
            ("frac_without_signal", share(self.left)),
            ("groups_drawn_again", self.drawn_again as f64),
        ]
    }
}
