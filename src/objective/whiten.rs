//! Whitening over the tokens of a batch, with the biased variance + 1e-8, as in lm-human-preferences and TRL.

/// Normalises `values` to variance 1 and mean 0, or with `keep_mean` to their previous mean.
pub fn whiten(values: &mut [f64], keep_mean: bool) {
    if values.is_empty() {
        return;
    }
    let (mean, variance) = moments(values);
    let scale = 1.0 / (variance + 1e-8).sqrt();
    for v in values {
        *v = (*v - mean) * scale + if keep_mean { mean } else { 0.0 };
    }
}

/// Mean and biased variance; (0, 0) for an empty slice.
pub fn moments(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}
