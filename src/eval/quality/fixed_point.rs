//! Fixed points of slowly converging maps (EM), by Anderson acceleration.

use std::collections::VecDeque;

use super::statistics::solve;

/// Number of earlier steps that a new one is extrapolated from.
const DEPTH: usize = 8;
/// Longest extrapolation, in sizes of the last change.
const FARTHEST: f64 = 100.0;
/// A change of more than so many times the last one is a failed extrapolation.
const WORSE: f64 = 2.0;

/// Largest absolute value.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, v| most.max(v.abs()))
}

/// `a − b`.
pub fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Iterates `map` from `start` until no value changes by `tolerance`, at most `rounds` times, and returns the last point
/// that `map` was applied to. Where the change at an extrapolated point is much larger than before, the map's own step is
/// taken instead and extrapolation reaches less far from then on, so it converges where plain iteration does.
pub fn fixed_point(
    start: Vec<f64>,
    tolerance: f64,
    rounds: usize,
    mut map: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let mut x = start;
    // Point, image and change of the last round that was not given up.
    let mut last: Option<(Vec<f64>, Vec<f64>, Vec<f64>)> = None;
    // Differences of successive points and of successive changes.
    let mut history: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new();
    // Longest extrapolation, in sizes of the last change.
    let mut reach = FARTHEST;
    let mut is_extrapolated = false;
    for _ in 0..rounds {
        let image = map(&x);
        let change = minus(&image, &x);
        let size = largest(&change);
        if size < tolerance {
            break;
        }
        if let Some((last_x, last_image, last_change)) = last.take() {
            let is_worse = !size.is_finite() || size > WORSE * largest(&last_change);
            if is_extrapolated && is_worse {
                history.clear();
                reach = (reach / 4.0).max(1.0);
                is_extrapolated = false;
                x.clone_from(&last_image);
                last = Some((last_x, last_image, last_change));
                continue;
            }
            reach = (reach * 1.5).min(FARTHEST);
            history.push_back((minus(&x, &last_x), minus(&change, &last_change)));
            if history.len() > DEPTH {
                history.pop_front();
            }
        }
        let extra = extrapolation(&change, &history);
        let scale = (reach * size / largest(&extra)).min(1.0);
        let next = image.iter().zip(&extra).map(|(value, extra)| value + scale * extra).collect();
        is_extrapolated = !history.is_empty();
        last = Some((std::mem::replace(&mut x, next), image, change));
    }
    x
}

/// What is to be added to the image of a point so that the change there would be smallest if the map were linear on the
/// span of the history; 0 without one.
fn extrapolation(change: &[f64], history: &VecDeque<(Vec<f64>, Vec<f64>)>) -> Vec<f64> {
    let n = history.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut normal = vec![0.0; n * n];
    let mut right = vec![0.0; n];
    for (i, (_, a)) in history.iter().enumerate() {
        right[i] = dot(a, change);
        for (j, (_, b)) in history.iter().enumerate().take(i + 1) {
            normal[i * n + j] = dot(a, b);
            normal[j * n + i] = normal[i * n + j];
        }
    }
    let trace: f64 = (0..n).map(|i| normal[i * n + i]).sum();
    for i in 0..n {
        normal[i * n + i] += 1e-12 * trace;
    }
    let mut extra = vec![0.0; change.len()];
    if let Some(shares) = solve(normal, right) {
        for (share, (dx, df)) in shares.iter().zip(history) {
            for ((value, dx), df) in extra.iter_mut().zip(dx).zip(df) {
                *value -= share * (dx + df);
            }
        }
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_linear_map_ends_in_few_rounds() {
        // x ← A x + b with eigenvalues 0.99, 0.9, 0.5: plain iteration needs over 2000 rounds.
        let rates = [0.99, 0.9, 0.5];
        let mut rounds = 0;
        let found = fixed_point(vec![0.0; 3], 1e-10, 100, |x| {
            rounds += 1;
            x.iter().zip(rates).map(|(x, rate)| rate * x + 1.0).collect()
        });
        for (x, rate) in found.iter().zip(rates) {
            assert!((x - 1.0 / (1.0 - rate)).abs() < 1e-7, "{x}");
        }
        assert!(rounds < 10, "{rounds}");
    }

    #[test]
    fn a_map_with_a_kink_converges_too() {
        // |slope| < 1 on both sides, but extrapolation across the kink overshoots.
        let found =
            fixed_point(vec![40.0], 1e-9, 500, |x| vec![if x[0] > 1.0 { 0.9 * x[0] } else { 0.2 * x[0] + 0.4 }]);
        assert!((found[0] - 0.5).abs() < 1e-8, "{found:?}");
    }
}
