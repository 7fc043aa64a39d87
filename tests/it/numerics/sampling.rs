//! Draws against exact probabilities, computed here in f64 from the definitions.

use instructd::generation::Warpers;
use instructd::generation::sampling::{DrawContext, draw};
use proptest::prelude::*;

const DRAWS: u64 = 4000;

/// softmax(z / temperature), then the k best, then the smallest head of mass ≥ top_p, then those with at least
/// min_p of the best one's probability; `None` where a border is so close that rounding decides.
fn exact(z: &[f32], w: &Warpers) -> Option<Vec<f64>> {
    let weight: Vec<f64> = z.iter().map(|v| (f64::from(*v) / f64::from(w.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
    if w.top_k > 0 {
        order.truncate(w.top_k);
    }
    if w.top_p < 1.0 {
        let total: f64 = order.iter().map(|i| weight[*i]).sum();
        let (mut mass, mut kept) = (0.0, 0);
        for i in &order {
            kept += 1;
            mass += weight[*i] / total;
            if (mass - f64::from(w.top_p)).abs() < 1e-4 {
                return None;
            }
            if mass >= f64::from(w.top_p) {
                break;
            }
        }
        order.truncate(kept);
    }
    let floor = weight[order[0]] * f64::from(w.min_p);
    if order.iter().any(|i| *i != order[0] && (weight[*i] / floor - 1.0).abs() < 1e-4) {
        return None;
    }
    order.retain(|i| weight[*i] >= floor);
    let total: f64 = order.iter().map(|i| weight[*i]).sum();
    let mut p = vec![0.0; z.len()];
    for i in order {
        p[i] = weight[i] / total;
    }
    Some(p)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn draws_follow_the_exact_distribution(
        z in prop::collection::vec(-4.0f32..4.0, 2..12),
        temperature in prop::sample::select(vec![0.3f32, 0.7, 1.0, 1.8]),
        top_k in prop::sample::select(vec![0usize, 0, 1, 3, 100]),
        top_p in prop::sample::select(vec![1.0f32, 1.0, 0.9, 0.4]),
        min_p in prop::sample::select(vec![0.0f32, 0.0, 0.05, 0.5]),
        first_seed in 0u64..1 << 40,
    ) {
        let warpers = Warpers { temperature, top_k, top_p, min_p, ..Warpers::default() };
        let Some(p) = exact(&z, &warpers) else { return Ok(()) };
        let mut counts = vec![0u64; z.len()];
        for seed in first_seed..first_seed + DRAWS {
            let context = DrawContext {
                prompt: &[], generated: &[], forbidden: &[], seed, stream: 0, logprob_temperature: 1.0, top: 0,
            };
            counts[draw(&z, &warpers, &context).id as usize] += 1;
        }
        for (id, (count, p)) in counts.iter().zip(&p).enumerate() {
            let sigma = (p * (1.0 - p) * DRAWS as f64).sqrt();
            // Six standard deviations: once in a billion by chance; nothing at all where p is 0.
            prop_assert!((*count as f64 - p * DRAWS as f64).abs() <= 6.0 * sigma + 1e-9 + 6.0 * f64::from(u8::from(*p > 0.0)),
                "token {id}: {count} of {DRAWS}, expected {}", p * DRAWS as f64);
        }
    }
}
