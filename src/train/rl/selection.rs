//! The responses of a round from which an update learns, if these are not all.

use crate::objective::best_of;
use crate::objective::whiten::moments;
use crate::train::args::RaftArgs;

/// Indices of the selected responses of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The best and the worst response of each prompt.
    Pairs(Vec<[usize; 2]>),
    /// The best response of each prompt.
    Best(Vec<usize>),
}

impl Selection {
    /// The best and the worst of each group of `group` scores. A group without variance has no pair.
    pub fn pairs(scores: &[f64], group: usize) -> Self {
        Self::Pairs(best_of::extremes(scores, group))
    }

    /// The best of each group by returns: scores minus the KL penalty.
    pub fn best(returns: &[f64], args: &RaftArgs) -> Self {
        Self::Best(best_of::best(returns, args.group_size, args.least_reward, args.keep_share))
    }

    /// Number of pairs or of single responses.
    pub fn len(&self) -> usize {
        match self {
            Self::Pairs(pairs) => pairs.len(),
            Self::Best(best) => best.len(),
        }
    }

    /// The responses of the selected pairs or single responses with these numbers.
    pub fn responses(&self, numbers: &[usize]) -> Vec<usize> {
        match self {
            Self::Pairs(pairs) => numbers.iter().flat_map(|&i| pairs[i]).collect(),
            Self::Best(best) => numbers.iter().map(|&i| best[i]).collect(),
        }
    }

    /// The number of pairs or single responses, and their mean scores.
    pub fn metrics(&self, scores: &[f64]) -> Vec<(&'static str, f64)> {
        let mean = |chosen: Vec<f64>| moments(&chosen).0;
        let mut metrics = vec![("learned_from", self.len() as f64)];
        match self {
            _ if self.len() == 0 => {}
            Self::Pairs(pairs) => metrics.extend([
                ("best_reward", mean(pairs.iter().map(|[best, _]| scores[*best]).collect())),
                ("worst_reward", mean(pairs.iter().map(|[_, worst]| scores[*worst]).collect())),
            ]),
            Self::Best(best) => metrics.push(("best_reward", mean(best.iter().map(|&i| scores[i]).collect()))),
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_number_and_mean_scores_of_selected_responses() {
        let scores = [1.0, 3.0, 0.0, 4.0, 4.0, 4.0];
        let pairs = Selection::pairs(&scores, 3);
        assert_eq!(pairs, Selection::Pairs(vec![[1, 2]]));
        assert_eq!(pairs.metrics(&scores), [("learned_from", 1.0), ("best_reward", 3.0), ("worst_reward", 0.0)]);
        assert_eq!(pairs.responses(&[0]), [1, 2]);
        let none = Selection::pairs(&[1.0, 1.0], 2);
        assert_eq!((none.len(), none.metrics(&[1.0, 1.0])), (0, vec![("learned_from", 0.0)]));
    }
}
