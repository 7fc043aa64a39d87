//! Logistic regression of preferences on one number, without intercept: P(preferred) = σ(βx).

/// 1 / (1 + e^−x).
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// A prior variance of 100 keeps the slope finite when the larger number is always preferred.
const RIDGE: f64 = 0.01;

/// Derivative of the log-likelihood of (x, weight) by β, and its negated second derivative; without the prior.
pub fn derivatives(preferences: impl Iterator<Item = (f64, f64)>, beta: f64) -> (f64, f64) {
    let (mut gradient, mut information) = (0.0, 0.0);
    for (x, w) in preferences {
        let p = sigmoid(beta * x);
        let pull = w * (1.0 - p) * x;
        gradient += pull;
        information += pull * p * x;
    }
    (gradient, information)
}

/// A Newton step from β with the prior. The likelihood is concave but flat far out: a bounded step cannot overshoot
/// into the flat.
pub fn step(beta: f64, gradient: f64, information: f64) -> f64 {
    ((gradient - RIDGE * beta) / (information + RIDGE)).clamp(-1.0, 1.0)
}

/// The most probable β of (x, weight), where x is the preferred number minus the other, from `start` on; `None` if every
/// x or weight is 0.
pub fn slope(preferences: impl Iterator<Item = (f64, f64)> + Clone, start: f64) -> Option<f64> {
    if preferences.clone().all(|(x, w)| x == 0.0 || w == 0.0) {
        return None;
    }
    let mut beta = start;
    for _ in 0..100 {
        let (gradient, information) = derivatives(preferences.clone(), beta);
        let step = step(beta, gradient, information);
        beta += step;
        if step.abs() < 1e-12 {
            break;
        }
    }
    Some(beta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_the_log_odds_of_one_unit() {
        // One unit each; the larger is preferred in 3 of 4: β = ln 3, up to the prior.
        let of = |n: usize| (0..n).map(|i| (if i % 4 == 3 { -1.0 } else { 1.0 }, 1.0)).collect::<Vec<_>>();
        let beta = slope(of(40_000).into_iter(), 0.0).unwrap();
        assert!((beta - 3f64.ln()).abs() < 1e-5, "{beta}");
        assert_eq!(slope([(0.0, 1.0), (2.0, 0.0)].into_iter(), 0.0), None);
        let always = slope([(1.0, 1.0); 8].into_iter(), 0.0).unwrap();
        assert!(always.is_finite() && always > 3.0, "{always}");
    }
}
