//! Selection among a prompt's samples: the best and the worst as a pair (online DPO, arXiv 2402.04792), or the best
//! alone (best-of-n distillation: RAFT, arXiv 2304.06767).

/// The best and the worst sample of every group of `group` consecutive `scores`, as indices into `scores`; the first of
/// equal ones. Groups with equal scores contain no preference and are left out.
pub fn extremes(scores: &[f64], group: usize) -> Vec<[usize; 2]> {
    let of = |(g, scores): (usize, &[f64])| {
        let (best, worst) = (first_extreme(scores, |a, b| a > b)?, first_extreme(scores, |a, b| a < b)?);
        (scores[best] > scores[worst]).then_some([g * group + best, g * group + worst])
    };
    scores.chunks_exact(group).enumerate().filter_map(of).collect()
}

/// The best sample of every group of `group` consecutive `scores`, as an index into `scores`; the first of equal ones.
///
/// With `least`, the best must have at least this score; without it, groups with equal scores are left out. `share` (0
/// to 1) keeps the remaining samples with the highest scores, rounded up to a whole number. Indices are in ascending
/// order.
pub fn best(scores: &[f64], group: usize, least: Option<f64>, share: f64) -> Vec<usize> {
    let varies = |scores: &[f64]| scores.iter().any(|score| *score != scores[0]);
    let of = |(g, scores): (usize, &[f64])| {
        let best = first_extreme(scores, |a, b| a > b)?;
        let counts = least.map_or_else(|| varies(scores), |least| scores[best] >= least);
        counts.then_some(g * group + best)
    };
    let mut found: Vec<usize> = scores.chunks_exact(group).enumerate().filter_map(of).collect();
    let count = (found.len() as f64 * share).ceil() as usize;
    found.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    found.truncate(count);
    found.sort_unstable();
    found
}

/// The first index whose score no other score beats.
fn first_extreme(scores: &[f64], beats: impl Fn(f64, f64) -> bool) -> Option<usize> {
    (0..scores.len()).reduce(|best, i| if beats(scores[i], scores[best]) { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_the_best_and_the_worst_of_its_group() {
        let scores = [1.0, 3.0, -2.0, 0.5, 0.5, 0.5, 2.0, 2.0, 1.0];
        assert_eq!(extremes(&scores, 3), [[1, 2], [6, 8]], "the middle group holds no preference");
        assert_eq!(extremes(&[1.0, 2.0], 2), [[1, 0]]);
        assert!(extremes(&[1.0, 1.0], 2).is_empty());
    }

    #[test]
    fn the_best_are_kept_by_score() {
        let scores = [1.0, 3.0, 0.5, 0.5, 2.0, 2.5, 9.0, 0.0];
        assert_eq!(best(&scores, 2, None, 1.0), [1, 5, 6], "a group without variance has no best");
        assert_eq!(best(&scores, 2, Some(0.0), 1.0), [1, 2, 5, 6], "with a least score it has the first");
        assert_eq!(best(&scores, 2, Some(2.6), 1.0), [1, 6]);
        assert_eq!(best(&scores, 2, None, 0.5), [1, 6], "two of three, rounded up");
        assert_eq!(best(&scores, 2, None, 0.01), [6]);
        assert_eq!(best(&scores, 2, Some(10.0), 1.0), Vec::<usize>::new());
    }
}
