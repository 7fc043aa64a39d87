//! Confidence intervals of a proportion.

/// Wilson's 95 % score interval of `hits` out of `n`; (0, 1) for nothing.
pub fn wilson(hits: usize, n: usize) -> (f64, f64) {
    wilson_of_share(hits as f64 / n.max(1) as f64, n)
}

/// Wilson's 95 % score interval of the mean `p` of `n` values from 0 to 1; (0, 1) for nothing. For values between the two
/// it is too wide rather than too narrow, because their variance is at most p (1 − p).
pub fn wilson_of_share(p: f64, n: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return (0.0, 1.0);
    }
    let n = n as f64;
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::wilson;

    /// Values of R's prop.test(correct = FALSE) and of the closed form at the borders.
    #[test]
    fn known_intervals() {
        for (hits, n, low, high) in [(15, 50, 0.191_035, 0.437_505), (0, 10, 0.0, 0.277_533), (10, 10, 0.722_467, 1.0)]
        {
            let (l, h) = wilson(hits, n);
            assert!((l - low).abs() < 1e-5 && (h - high).abs() < 1e-5, "{hits}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }
}
