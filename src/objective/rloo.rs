//! RLOO (arXiv 2402.14740): the baseline of a sample is the mean return of the other samples of its prompt.

/// `returns` of consecutive groups of `group` samples → leave-one-out advantages.
/// `None` when there is no other sample (group < 2) or the groups are not full.
pub fn advantages(returns: &[f64], group: usize) -> Option<Vec<f64>> {
    if group < 2 || !returns.len().is_multiple_of(group) {
        return None;
    }
    let mut out = Vec::with_capacity(returns.len());
    for samples in returns.chunks(group) {
        let sum: f64 = samples.iter().sum();
        out.extend(samples.iter().map(|r| r - (sum - r) / (group - 1) as f64));
    }
    Some(out)
}
