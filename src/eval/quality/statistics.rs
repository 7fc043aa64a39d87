//! Statistics shared by the quality figures: intervals of shares, quantiles, and Newton's method for concave
//! likelihoods.

use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};

/// A figure with its 95 % interval (absent if the data does not allow one) and its n.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Figure {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub n: usize,
}

/// Parameters of the bootstrap: number of replicates and seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Resampling {
    pub replicates: usize,
    pub seed: u64,
}

/// Share `hits / n` with Jeffreys' 95 % interval (the Beta posterior under Beta(½, ½); Brown, Cai and
/// DasGupta 2001). `hits` may be fractional: a tie counts half. `None` for n = 0.
pub fn share(hits: f64, n: usize) -> Option<Figure> {
    if n == 0 {
        return None;
    }
    let total = n as f64;
    let posterior = Beta::new(hits + 0.5, total - hits + 0.5).ok();
    let quantile = |p: f64| posterior.as_ref().map(|b| b.inverse_cdf(p));
    // At 0 and 1 the interval includes the boundary, because it would never cover a true share of 0 or 1 otherwise.
    let low = if hits <= 0.0 { Some(0.0) } else { quantile(0.025) };
    let high = if hits >= total { Some(1.0) } else { quantile(0.975) };
    Some(Figure { value: hits / total, low, high, n })
}

/// The `p`-quantile of sorted values, linear between neighbours (numpy's default). `None` for n = 0.
pub fn quantile(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = p * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (at - below as f64) * (sorted[above] - sorted[below]))
}

/// The median of values in any order.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// A value with its bootstrap interval.
pub fn figure(value: Option<f64>, interval: Option<(f64, f64)>, n: usize) -> Option<Figure> {
    value.map(|value| Figure { value, low: interval.map(|i| i.0), high: interval.map(|i| i.1), n })
}

/// Below this number of clusters, resampling gives intervals that are too narrow.
const FEW: usize = 20;
/// Below this number of clusters, an interval by resampling is not computed.
const LEAST: usize = 5;

/// Widens intervals of few clusters (sets, prompts): for shares to at least Jeffreys' interval with each cluster as one
/// trial; others have none below five clusters.
pub fn of_few(figure: Option<Figure>, clusters: usize, is_share: bool) -> Option<Figure> {
    let figure = figure?;
    if clusters >= FEW {
        return Some(figure);
    }
    if !is_share {
        let (low, high) = if clusters < LEAST { (None, None) } else { (figure.low, figure.high) };
        return Some(Figure { low, high, ..figure });
    }
    let wide = share(figure.value * clusters as f64, clusters)?;
    let pick = |a: Option<f64>, b: Option<f64>, of: fn(f64, f64) -> f64| match (a, b) {
        (Some(a), Some(b)) => Some(of(a, b)),
        (a, b) => a.or(b),
    };
    Some(Figure { low: pick(figure.low, wide.low, f64::min), high: pick(figure.high, wide.high, f64::max), ..figure })
}

/// Solves `a x = b` for a symmetric positive definite `a` (row-major, n × n) by Cholesky's factors.
/// `None` when `a` is not positive definite.
pub fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    solve_in_place(&mut a, &mut b).then_some(b)
}

/// Solves `a x = b` as [`solve`] does, and leaves x in `b`; `a` is overwritten. False when `a` is not positive
/// definite.
pub fn solve_in_place(a: &mut [f64], b: &mut [f64]) -> bool {
    let n = b.len();
    for j in 0..n {
        for k in 0..j {
            let left = a[j * n + k];
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * left;
            }
        }
        let pivot = a[j * n + j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let root = pivot.sqrt();
        for i in j..n {
            a[i * n + j] /= root;
        }
    }
    for i in 0..n {
        for k in 0..i {
            b[i] -= a[i * n + k] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    for i in (0..n).rev() {
        for k in i + 1..n {
            b[i] -= a[k * n + i] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    true
}

/// A concave function at a point: value, gradient, and the negated Hessian (row-major, positive definite).
pub struct Curvature {
    pub value: f64,
    pub gradient: Vec<f64>,
    pub information: Vec<f64>,
}

/// Maximizes a strictly concave function by Newton steps, halved until they increase it. Returns the best point found.
pub fn maximise(start: Vec<f64>, mut at: impl FnMut(&[f64]) -> Curvature) -> Vec<f64> {
    const STEPS: usize = 100;
    const HALVINGS: usize = 30;
    /// Relative gain that ends the search.
    const GAIN: f64 = 1e-14;
    let mut x = start;
    let mut here = at(&x);
    for _ in 0..STEPS {
        let Some(step) = solve(std::mem::take(&mut here.information), here.gradient.clone()) else { break };
        let gain = 0.5 * here.gradient.iter().zip(&step).map(|(g, s)| g * s).sum::<f64>();
        if gain <= GAIN * (1.0 + here.value.abs()) {
            // The value would change in its last bits only. The last step squares the error.
            x.iter_mut().zip(&step).for_each(|(x, s)| *x += s);
            break;
        }
        let mut scale = 1.0;
        let mut moved = None;
        for _ in 0..HALVINGS {
            let next: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x + scale * s).collect();
            let there = at(&next);
            if there.value > here.value {
                moved = Some((next, there));
                break;
            }
            scale *= 0.5;
        }
        let Some((next, there)) = moved else { break };
        (x, here) = (next, there);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_and_refuses() {
        let a = vec![4.0, 2.0, 0.5, 2.0, 5.0, 1.0, 0.5, 1.0, 3.0];
        let x = solve(a.clone(), vec![1.0, -2.0, 0.25]).unwrap();
        for (row, wanted) in a.chunks(3).zip([1.0, -2.0, 0.25]) {
            let got: f64 = row.iter().zip(&x).map(|(a, x)| a * x).sum();
            assert!((got - wanted).abs() < 1e-12, "{got} {wanted}");
        }
        assert_eq!(solve(vec![1.0, 2.0, 2.0, 1.0], vec![1.0, 1.0]), None, "not positive definite");
    }

    #[test]
    fn quantiles_and_medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!((median(vec![]), quantile(&[7.0], 0.3)), (None, Some(7.0)));
    }
}
