//! Selection of sets by the reward model's uncertainty about their order.

use statrs::distribution::{ContinuousCDF, Normal};

use crate::statistics::logistic::sigmoid;

/// A reward model's score of one completion: mean and standard deviation over its heads (0 with a single head).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    pub mean: f64,
    pub std: f64,
}

/// Mean uncertainty of the pairs' order, 0 (certain) to 1. With an ensemble: twice the probability that a random head
/// orders the pair the other way, with independent normal scores. With one head: 4 p (1 − p) of its preference
/// probability p. `None` for fewer than two completions.
pub fn uncertainty(guesses: &[Guess]) -> Option<f64> {
    let ensemble = guesses.iter().any(|g| g.std > 0.0);
    let normal = Normal::standard();
    let (mut sum, mut pairs) = (0.0, 0);
    for (i, a) in guesses.iter().enumerate() {
        for b in &guesses[i + 1..] {
            let margin = (a.mean - b.mean).abs();
            let spread = a.std.hypot(b.std);
            sum += if !ensemble {
                let p = sigmoid(margin);
                4.0 * p * (1.0 - p)
            } else if spread > 0.0 {
                2.0 * normal.cdf(-margin / spread)
            } else {
                f64::from(margin == 0.0)
            };
            pairs += 1;
        }
    }
    (pairs > 0).then(|| sum / f64::from(pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_grows_with_closeness_and_with_spread() {
        let of = |values: &[(f64, f64)]| {
            uncertainty(&values.iter().map(|(mean, std)| Guess { mean: *mean, std: *std }).collect::<Vec<_>>())
        };
        assert_eq!((of(&[(1.0, 0.0)]), of(&[(1.0, 0.0), (1.0, 0.0)])), (None, Some(1.0)));
        assert!(of(&[(0.0, 0.0), (3.0, 0.0)]) < of(&[(0.0, 0.0), (0.5, 0.0)]));
        assert!(of(&[(0.0, 0.1), (1.0, 0.1)]) < of(&[(0.0, 1.0), (1.0, 1.0)]));
        // One standard deviation apart: a head disagrees with probability Φ(−1) = 0.1587.
        let one = of(&[(0.0, 0.6), (1.0, 0.8)]).unwrap();
        assert!((one - 0.317_310_5).abs() < 1e-6, "{one}");
        assert!(of(&[(0.0, 0.2), (0.0, 0.2), (9.0, 0.2)]).unwrap() < 0.34, "one doubtful pair of three");
    }
}
