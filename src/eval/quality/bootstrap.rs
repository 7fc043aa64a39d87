//! Percentile bootstrap over whole clusters (sets or prompts), because judgments of one text are not independent.
//!
//! Most figures are functions of sums over clusters. Their sums are computed once ([`Sums`]), so that a replicate is a
//! weighted sum of rows, and all replicates together are one matrix product.
//!
//! Of very many clusters, random groups of equal size are drawn instead of the clusters ([`Groups`]). The variance
//! between the sums of random groups has the same expectation as that between clusters times the size of a group, so
//! the interval stays centred and unbiased. Its width varies more: with G groups by about 1/√(2G) (2 % for 1000),
//! which is less than the noise of 1000 replicates in a 2.5 % quantile (4 %).

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::statistics::{Resampling, quantile};

/// Above this number of clusters, groups are drawn.
pub const MAX_GROUPS: usize = 1000;
/// Replicates that are computed together.
const BLOCK: usize = 256;

/// The 95 % interval of each figure; `None` for a figure that fewer than nine in ten replicates gave, or for fewer than
/// two clusters.
pub type Intervals = Vec<Option<(f64, f64)>>;

/// What is drawn: clusters, or random groups of them.
pub struct Groups {
    count: usize,
    /// Group of each cluster; empty where each cluster is a group of its own.
    of: Vec<u32>,
}

impl Groups {
    /// Clusters numbered below `clusters` in at most `most` groups, whose sizes differ by at most 1.
    pub fn new(clusters: usize, most: usize, resampling: Resampling) -> Self {
        if clusters <= most {
            return Self { count: clusters, of: Vec::new() };
        }
        let mut rng = ChaCha8Rng::seed_from_u64(resampling.seed);
        // The draws of replicates use stream 0 of the same seed.
        rng.set_stream(1);
        let mut of: Vec<u32> = (0..clusters).map(|i| (i % most) as u32).collect();
        of.shuffle(&mut rng);
        Self { count: most, of }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether a group has more than one cluster.
    pub fn are_merged(&self) -> bool {
        !self.of.is_empty()
    }

    pub fn of(&self, cluster: usize) -> usize {
        if self.of.is_empty() { cluster } else { self.of[cluster] as usize }
    }
}

/// Sums by group: `groups` rows of `width` numbers.
pub struct Sums {
    groups: usize,
    width: usize,
    cells: Vec<f64>,
}

impl Sums {
    pub fn new(groups: usize, width: usize) -> Self {
        Self { groups, width, cells: vec![0.0; groups * width] }
    }

    pub fn row(&mut self, group: usize) -> &mut [f64] {
        &mut self.cells[group * self.width..(group + 1) * self.width]
    }

    /// The sums over all groups.
    pub fn total(&self) -> Vec<f64> {
        let mut total = vec![0.0; self.width];
        for row in self.cells.chunks(self.width.max(1)) {
            for (sum, cell) in total.iter_mut().zip(row) {
                *sum += cell;
            }
        }
        total
    }

    /// The sums of each replicate: `counts` holds a row for each, with the draws of each group.
    ///
    /// # Errors
    /// When `counts` are not whole rows.
    fn weighted(&self, counts: &[f64]) -> candle_core::Result<Vec<f64>> {
        let rows = counts.len() / self.groups;
        let counts = Tensor::from_slice(counts, (rows, self.groups), &Device::Cpu)?;
        let cells = Tensor::from_slice(&self.cells, (self.groups, self.width), &Device::Cpu)?;
        counts.matmul(&cells)?.flatten_all()?.to_vec1()
    }
}

/// Resamples groups: `statistics` gets how often each was drawn and returns its figures, `None` for those that a
/// replicate does not allow.
pub fn bootstrap(
    groups: usize,
    figures: usize,
    resampling: Resampling,
    mut statistics: impl FnMut(&[f64]) -> Vec<Option<f64>>,
) -> Intervals {
    if groups < 2 {
        return vec![None; figures];
    }
    let mut draws = Draws::new(resampling);
    let mut collected = Collected::new(figures, resampling);
    let mut counts = vec![0.0; groups];
    for _ in 0..resampling.replicates {
        draws.fill(&mut counts);
        collected.push(statistics(&counts));
    }
    collected.intervals()
}

/// Resamples groups whose figures depend on sums only: `statistics` gets the sums of a replicate.
pub fn bootstrap_sums(
    sums: &Sums,
    figures: usize,
    resampling: Resampling,
    mut statistics: impl FnMut(&[f64]) -> Vec<Option<f64>>,
) -> Intervals {
    if sums.groups < 2 || sums.width == 0 {
        return vec![None; figures];
    }
    let mut draws = Draws::new(resampling);
    let mut collected = Collected::new(figures, resampling);
    let mut left = resampling.replicates;
    while left > 0 {
        let block = left.min(BLOCK);
        let mut counts = vec![0.0; block * sums.groups];
        counts.chunks_mut(sums.groups).for_each(|row| draws.fill(row));
        match sums.weighted(&counts) {
            Ok(weighted) => weighted.chunks(sums.width).for_each(|row| collected.push(statistics(row))),
            Err(error) => {
                tracing::error!(%error, "the sums of replicates have the wrong shape");
                return vec![None; figures];
            }
        }
        left -= block;
    }
    collected.intervals()
}

/// Draws of groups with replacement, seeded.
struct Draws {
    rng: ChaCha8Rng,
}

impl Draws {
    fn new(resampling: Resampling) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(resampling.seed) }
    }

    /// Draws as many groups as `counts` has, and counts them.
    fn fill(&mut self, counts: &mut [f64]) {
        counts.fill(0.0);
        let groups = counts.len() as u64;
        for _ in 0..groups {
            // The bias of the modulus is below 2^-40 for any number of groups that fits in memory.
            counts[(self.rng.next_u64() % groups) as usize] += 1.0;
        }
    }
}

/// The figures of all replicates.
struct Collected {
    values: Vec<Vec<f64>>,
    replicates: usize,
}

impl Collected {
    fn new(figures: usize, resampling: Resampling) -> Self {
        let replicates = resampling.replicates;
        Self { values: vec![Vec::with_capacity(replicates); figures], replicates }
    }

    fn push(&mut self, figures: Vec<Option<f64>>) {
        for (values, figure) in self.values.iter_mut().zip(figures) {
            values.extend(figure.filter(|v| v.is_finite()));
        }
    }

    fn intervals(self) -> Intervals {
        let interval = |mut values: Vec<f64>| {
            if values.is_empty() || values.len() * 10 < self.replicates * 9 {
                return None;
            }
            values.sort_unstable_by(f64::total_cmp);
            Some((quantile(&values, 0.025)?, quantile(&values, 0.975)?))
        };
        self.values.into_iter().map(interval).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(sums: &[f64]) -> Vec<Option<f64>> {
        vec![Some(sums[0] / sums[1])]
    }

    /// Rows (value, 1) of each cluster.
    fn sums(values: &[f64], groups: &Groups) -> Sums {
        let mut sums = Sums::new(groups.count(), 2);
        for (cluster, value) in values.iter().enumerate() {
            let row = sums.row(groups.of(cluster));
            row[0] += value;
            row[1] += 1.0;
        }
        sums
    }

    #[test]
    fn the_bootstrap_is_seeded_and_covers_the_mean() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let draw = |seed| {
            let resampling = Resampling { replicates: 500, seed };
            let groups = Groups::new(values.len(), MAX_GROUPS, resampling);
            assert!(!groups.are_merged());
            bootstrap_sums(&sums(&values, &groups), 1, resampling, mean)[0].unwrap()
        };
        let (low, high) = draw(1);
        assert_eq!((low, high), draw(1));
        assert_ne!((low, high), draw(2));
        // The standard error of the mean is 28.9 / 10: the interval is about ±5.7 around 49.5.
        assert!((42.0..46.0).contains(&low) && (53.0..57.0).contains(&high), "{low} {high}");
        let one = Groups::new(1, MAX_GROUPS, Resampling { replicates: 10, seed: 1 });
        assert_eq!(bootstrap_sums(&sums(&[1.0], &one), 1, Resampling { replicates: 10, seed: 1 }, mean), [None]);
    }

    #[test]
    fn sums_give_the_figures_that_counts_give() {
        let values: Vec<f64> = (0..40).map(|i| f64::from(i * i)).collect();
        let resampling = Resampling { replicates: 300, seed: 5 };
        let sums = sums(&values, &Groups::new(40, MAX_GROUPS, resampling));
        let by_sums = bootstrap_sums(&sums, 1, resampling, mean)[0].unwrap();
        let by_counts = bootstrap(40, 1, resampling, |counts| {
            let total: f64 = counts.iter().zip(&values).map(|(c, v)| c * v).sum();
            vec![Some(total / counts.iter().sum::<f64>())]
        })[0]
            .unwrap();
        assert!((by_sums.0 - by_counts.0).abs() < 1e-9 && (by_sums.1 - by_counts.1).abs() < 1e-9);
        assert_eq!(sums.total(), [values.iter().sum::<f64>(), 40.0]);
    }

    #[test]
    fn groups_are_even_and_shuffled() {
        let groups = Groups::new(2500, 1000, Resampling { replicates: 1, seed: 3 });
        let mut sizes = vec![0; groups.count()];
        (0..2500).for_each(|cluster| sizes[groups.of(cluster)] += 1);
        assert!(groups.are_merged() && sizes.iter().all(|n| *n == 2 || *n == 3), "{sizes:?}");
        assert!((0..1000).any(|cluster| groups.of(cluster) != cluster));
    }
}
