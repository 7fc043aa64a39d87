//! How well scores predict preferences: pair accuracy, margin, log loss, calibration.

/// Metrics of pairs, from score differences (preferred minus other).
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct PairMetrics {
    pub pairs: usize,
    /// Share of pairs whose preferred completion has the higher score; equal scores count half.
    pub accuracy: f64,
    /// Mean score difference.
    pub margin: f64,
    /// Mean −log σ(difference).
    pub loss: f64,
    /// Expected calibration error of σ(|difference|) as the confidence of the predicted order, ten bins.
    pub ece: f64,
}

/// The metrics of score differences; `None` without pairs.
pub fn pair_metrics(differences: &[f64]) -> Option<PairMetrics> {
    if differences.is_empty() {
        return None;
    }
    const BINS: usize = 10;
    let n = differences.len() as f64;
    let mut metrics = PairMetrics { pairs: differences.len(), ..PairMetrics::default() };
    // (count, correct, confidence) per bin of confidence from ½ to 1.
    let mut bins = [(0.0, 0.0, 0.0); BINS];
    for &d in differences {
        let correct = if d > 0.0 {
            1.0
        } else if d == 0.0 {
            0.5
        } else {
            0.0
        };
        let confidence = 1.0 / (1.0 + (-d.abs()).exp());
        metrics.accuracy += correct / n;
        metrics.margin += d / n;
        metrics.loss += ((-d.abs()).exp().ln_1p() + (-d).max(0.0)) / n;
        let bin = &mut bins[(((confidence - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += 1.0;
        bin.1 += correct;
        bin.2 += confidence;
    }
    metrics.ece = bins.iter().map(|(_, correct, confidence)| (correct - confidence).abs() / n).sum();
    Some(metrics)
}

/// The area under the ROC curve: the share of pairs of both sides in which the number of `above` is larger than that of
/// `below`; equal numbers count half. `None` if one side is empty.
pub fn ranked_above(above: &[f64], below: &[f64]) -> Option<f64> {
    let mut sorted = below.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins = above.iter().map(|a| {
        let (less, not_more) = (sorted.partition_point(|b| b < a), sorted.partition_point(|b| b <= a));
        (less + not_more) as f64 / 2.0
    });
    let pairs = (above.len() * below.len()) as f64;
    (pairs > 0.0).then(|| wins.sum::<f64>() / pairs)
}

/// Accuracy of a part of the pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Share {
    pub pairs: usize,
    pub accuracy: f64,
}

/// Accuracy by whether the preferred completion is the longer one. A model that prefers longer completions is right for
/// `longer` and wrong for `shorter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LengthMetrics {
    pub longer: Share,
    /// Within two tokens of each other.
    pub same: Share,
    pub shorter: Share,
}

/// The accuracy by length, from score differences and length differences in tokens (preferred minus other).
pub fn by_length(differences: &[f64], lengths: &[f64]) -> LengthMetrics {
    let share = |holds: &dyn Fn(f64) -> bool| {
        let chosen: Vec<f64> =
            differences.iter().zip(lengths).filter(|(_, length)| holds(**length)).map(|(d, _)| *d).collect();
        pair_metrics(&chosen).map_or(Share::default(), |m| Share { pairs: m.pairs, accuracy: m.accuracy })
    };
    LengthMetrics { longer: share(&|n| n > 2.0), same: share(&|n| n.abs() <= 2.0), shorter: share(&|n| n < -2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_length_shows_a_length_bias() {
        // Scores that are lengths: right when the preferred one is longer, wrong when it is shorter.
        let lengths = [5.0, 9.0, 1.0, -4.0];
        let m = by_length(&lengths, &lengths);
        assert_eq!((m.longer.pairs, m.longer.accuracy), (2, 1.0));
        assert_eq!((m.same.pairs, m.shorter.accuracy), (1, 0.0));
    }

    #[test]
    fn pair_metrics_have_exact_counts_loss_and_calibration_error() {
        assert_eq!(pair_metrics(&[]), None);
        let m = pair_metrics(&[2.0, -1.0, 0.0, 3.0]).unwrap();
        assert_eq!((m.pairs, m.accuracy, m.margin), (4, 2.5 / 4.0, 1.0));
        let loss = |d: f64| (1.0 + (-d).exp()).ln();
        assert!((m.loss - (loss(2.0) + loss(-1.0) + loss(0.0) + loss(3.0)) / 4.0).abs() < 1e-12);
        // Confident and always wrong: the error is the confidence.
        let wrong = pair_metrics(&[-5.0, -5.0]).unwrap();
        assert!((wrong.ece - 1.0 / (1.0 + (-5.0f64).exp())).abs() < 1e-12);
    }
}
