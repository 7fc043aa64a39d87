//! Draws one token from a row of logits: penalties, temperature, top-k, top-p, min-p, in the order of Hugging Face's
//! transformers. The random number is a pure function of (seed, stream, position), so sampling is batch-invariant.

use std::cell::RefCell;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ops::simd::{exp, max, multiversion, sum};
use crate::ops::token_logprobs::log_sum_exp;

/// Parameters that change the distribution before a draw ("logits warpers" in transformers). The defaults change
/// nothing.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Warpers {
    /// Divides the logits. 0 means greedy: the most likely token is drawn.
    pub temperature: f32,
    /// Keeps the k most likely tokens. 0 means all.
    pub top_k: usize,
    /// Keeps the most likely tokens whose probabilities sum to at least this (nucleus sampling, arXiv 1904.09751).
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely one.
    pub min_p: f32,
    /// CTRL (arXiv 1909.05858): divides positive and multiplies negative logits of seen tokens.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of generated tokens.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logits of generated tokens.
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Warpers {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

impl Warpers {
    fn is_plain(&self) -> bool {
        let Self { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = self;
        *repetition_penalty == 1.0 && *presence_penalty == 0.0 && *frequency_penalty == 0.0 && logit_bias.is_empty()
    }
}

impl Warpers {
    /// 1 / temperature (0 for greedy draws) and the random number of a draw from the whole distribution. `None` if the
    /// warpers change the logits or drop tokens.
    pub fn plain_draw(&self, context: &DrawContext<'_>) -> Option<(f32, f64)> {
        let whole = self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0;
        if !self.is_plain() {
            None
        } else if self.temperature == 0.0 {
            Some((0.0, 0.0))
        } else {
            whole.then(|| (1.0 / self.temperature, uniform(context.seed, context.stream, context.generated.len())))
        }
    }
}

/// The inputs of a draw besides the logits and the warpers.
pub struct DrawContext<'a> {
    pub prompt: &'a [u32],
    pub generated: &'a [u32],
    /// Ids that must not be drawn (end tokens before `min_tokens`).
    pub forbidden: &'a [u32],
    pub seed: u64,
    /// Random stream of the seed: the index of the sample in its request or rollout.
    pub stream: u64,
    /// Reported log-probs are those of softmax(logits / `logprob_temperature`): 1 for serving, the sampling temperature
    /// for RL.
    pub logprob_temperature: f32,
    /// Number of alternatives to report.
    pub top: usize,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub id: u32,
    /// Natural log, under the unwarped distribution.
    pub logprob: f32,
    /// The most likely tokens of the unwarped distribution with their log-probs, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// The uniform random number in [0, 1) of one (seed, stream, position).
pub fn uniform(seed: u64, stream: u64, position: usize) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng.set_word_pos(2 * position as u128);
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws the next token from raw logits `[vocab]`.
pub fn draw(logits: &[f32], warpers: &Warpers, context: &DrawContext<'_>) -> Drawn {
    let id = if warpers.is_plain() && context.forbidden.is_empty() {
        select(logits, warpers, context)
    } else {
        let mut warped = logits.to_vec();
        penalise(&mut warped, warpers, context);
        select(&warped, warpers, context)
    };
    let (logprob, top) = logprob_and_top(logits, id, context.logprob_temperature, context.top);
    Drawn { id, logprob, top }
}

/// Draws the next token from raw logits `[vocab]` among the tokens whose bit is set in `allowed`, which has 32 tokens
/// per word, lowest bit first. The reported log-probs are those of the distribution over all tokens. `None` if no
/// allowed token has a finite logit.
pub fn draw_among(logits: &[f32], warpers: &Warpers, context: &DrawContext<'_>, allowed: &[u32]) -> Option<Drawn> {
    let mut warped = logits.to_vec();
    penalise(&mut warped, warpers, context);
    let mut any = false;
    for (id, z) in warped.iter_mut().enumerate() {
        let bit = allowed.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        if bit { any |= z.is_finite() } else { *z = f32::NEG_INFINITY }
    }
    if !any {
        return None;
    }
    let id = select(&warped, warpers, context);
    let (logprob, top) = logprob_and_top(logits, id, context.logprob_temperature, context.top);
    Some(Drawn { id, logprob, top })
}

/// The log-prob of `id` under softmax(logits / temperature), with the bits that training's forward pass gives, and the
/// `k` most likely ids with their log-probs.
pub fn logprob_and_top(logits: &[f32], id: u32, temperature: f32, k: usize) -> (f32, Vec<(u32, f32)>) {
    let inv_t = 1.0 / temperature;
    let lse = log_sum_exp(logits, inv_t);
    let logprob = |id: u32| logits[id as usize] * inv_t - lse;
    (logprob(id), top_ids(logits, k).into_iter().map(|i| (i, logprob(i))).collect())
}

/// Ids of the `k` largest values, largest first, smaller id first among equals.
fn top_ids(z: &[f32], k: usize) -> Vec<u32> {
    const FEW: usize = 64;
    let k = k.min(z.len());
    if k == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
    if k <= FEW {
        // One pass: few values are larger than the smallest of the largest k so far.
        let mut ids: Vec<u32> = (0..k as u32).collect();
        ids.sort_unstable_by(order);
        for id in k as u32..z.len() as u32 {
            if order(&id, &ids[k - 1]).is_lt() {
                let at = ids.partition_point(|other| order(other, &id).is_lt());
                ids.pop();
                ids.insert(at, id);
            }
        }
        return ids;
    }
    let mut ids: Vec<u32> = (0..z.len() as u32).collect();
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The first id of `top_ids(z, 1)`, in one pass and without allocation: every greedy draw calls it.
fn most_likely(z: &[f32]) -> u32 {
    let order = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
    z.iter().enumerate().max_by(order).map_or(0, |(id, _)| id as u32)
}

fn penalise(z: &mut [f32], warpers: &Warpers, context: &DrawContext<'_>) {
    if warpers.repetition_penalty != 1.0 {
        let mut seen: Vec<u32> = context.prompt.iter().chain(context.generated).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let v = &mut z[id as usize];
            *v = if *v > 0.0 { *v / warpers.repetition_penalty } else { *v * warpers.repetition_penalty };
        }
    }
    if warpers.presence_penalty != 0.0 || warpers.frequency_penalty != 0.0 {
        let mut generated = context.generated.to_vec();
        generated.sort_unstable();
        for run in generated.chunk_by(|a, b| a == b) {
            z[run[0] as usize] -= warpers.presence_penalty + warpers.frequency_penalty * run.len() as f32;
        }
    }
    for (id, bias) in &warpers.logit_bias {
        z[*id as usize] += bias;
    }
    for id in context.forbidden {
        z[*id as usize] = f32::NEG_INFINITY;
    }
}

fn select(z: &[f32], warpers: &Warpers, context: &DrawContext<'_>) -> u32 {
    if warpers.temperature == 0.0 {
        return most_likely(z);
    }
    let u = uniform(context.seed, context.stream, context.generated.len());
    let inv_t = 1.0 / warpers.temperature;
    if warpers.top_k == 0 && warpers.top_p >= 1.0 && warpers.min_p <= 0.0 {
        return draw_from_all(z, inv_t, u);
    }
    inverse_cdf(truncate(z, inv_t, warpers).into_iter(), u)
}

/// The tokens that remain after top-k, then top-p, then min-p, with unnormalised probabilities, most likely first.
fn truncate(z: &[f32], inv_t: f32, warpers: &Warpers) -> Vec<(u32, f64)> {
    let (mut kept, total) = candidates(z, inv_t, warpers);
    if warpers.top_p < 1.0 {
        let (mut mass, mut n) = (0.0, 0);
        for (_, w) in &kept {
            n += 1;
            mass += w;
            if mass >= f64::from(warpers.top_p) * total {
                break;
            }
        }
        kept.truncate(n.max(1));
    }
    if warpers.min_p > 0.0 {
        // The most likely token has weight 1 before any logit bias shifts it; compare with the first.
        let floor = kept[0].1 * f64::from(warpers.min_p);
        kept.retain(|(_, w)| *w >= floor);
    }
    kept
}

thread_local! {
    /// Unnormalised probabilities of a whole vocabulary: rebuilt for every token, too large to allocate each time.
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Number of neighbouring tokens whose mass is summed. A draw first finds the run, then the token in it.
const RUN: usize = 256;

multiversion! {
    /// w[i] = e^((z[i] − max)/T); `runs` holds the sums of each `RUN` neighbours.
    fn weigh(z: &[f32], inv_t: f32, w: &mut [f32], runs: &mut [f64]) {
        let max = max(z);
        for (run, (z, w)) in runs.iter_mut().zip(z.chunks(RUN).zip(w.chunks_mut(RUN))) {
            for i in 0..z.len() {
                w[i] = exp((z[i] - max) * inv_t);
            }
            *run = f64::from(sum(w));
        }
    }
}

/// A token drawn from softmax(z / T) by the uniform number `u`.
fn draw_from_all(z: &[f32], inv_t: f32, u: f64) -> u32 {
    WEIGHTS.with_borrow_mut(|w| {
        w.resize(z.len(), 0.0);
        let mut runs = vec![0f64; z.len().div_ceil(RUN)];
        weigh(z, inv_t, w, &mut runs);
        let target = u * runs.iter().sum::<f64>();
        let (mut before, mut chosen) = (0.0, 0);
        for (i, mass) in runs.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            chosen = i;
            if target < before + mass {
                break;
            }
            before += mass;
        }
        let run = w.iter().enumerate().skip(chosen * RUN).take(RUN);
        inverse_cdf_at(run.map(|(i, w)| (i as u32, f64::from(*w))), target - before)
    })
}

/// The tokens that can remain after truncation, most likely first, and the total mass to which top-p refers: that of
/// the `top_k` most likely tokens, or of the whole vocabulary.
fn candidates(z: &[f32], inv_t: f32, warpers: &Warpers) -> (Vec<(u32, f64)>, f64) {
    if warpers.top_k > 0 {
        let ids = top_ids(z, warpers.top_k);
        let max = z[ids[0] as usize];
        let kept: Vec<_> = ids.into_iter().map(|i| (i, f64::from(exp((z[i as usize] - max) * inv_t)))).collect();
        let total = kept.iter().map(|(_, w)| w).sum();
        return (kept, total);
    }
    WEIGHTS.with_borrow_mut(|w| {
        w.resize(z.len(), 0.0);
        let mut runs = vec![0f64; z.len().div_ceil(RUN)];
        weigh(z, inv_t, w, &mut runs);
        let total: f64 = runs.iter().sum();
        // All tokens below this mass together have less mass than top-p drops; halved because of rounding.
        let least = (1.0 - f64::from(warpers.top_p)) * total / z.len() as f64;
        let floor = least.max(f64::from(warpers.min_p)) * 0.5;
        let mut ids: Vec<u32> = (0..z.len() as u32).filter(|i| f64::from(w[*i as usize]) >= floor).collect();
        ids.sort_unstable_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
        (ids.into_iter().map(|i| (i, f64::from(w[i as usize]))).collect(), total)
    })
}

fn inverse_cdf(weights: impl Iterator<Item = (u32, f64)> + Clone, u: f64) -> u32 {
    let total: f64 = weights.clone().map(|(_, w)| w).sum();
    inverse_cdf_at(weights, u * total)
}

/// The first token whose cumulative weight exceeds `target`; the last token with weight if rounding leaves none.
fn inverse_cdf_at(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
    let (mut mass, mut last) = (0.0, 0);
    for (id, w) in weights {
        if w > 0.0 {
            mass += w;
            last = id;
            if target < mass {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(generated: &[u32]) -> DrawContext<'_> {
        DrawContext { prompt: &[], generated, forbidden: &[], seed: 7, stream: 0, logprob_temperature: 1.0, top: 3 }
    }

    fn frequencies(z: &[f32], warpers: &Warpers, n: u64) -> Vec<f64> {
        let mut counts = vec![0f64; z.len()];
        for seed in 0..n {
            counts[draw(z, warpers, &DrawContext { seed, ..context(&[]) }).id as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let z = [1.0f32, 0.0, -1.0, 2.0];
        let total: f64 = z.iter().map(|v| f64::from(*v / 0.7).exp()).sum();
        let warpers = Warpers { temperature: 0.7, ..Warpers::default() };
        for (f, v) in frequencies(&z, &warpers, 20_000).iter().zip(z) {
            assert!((f - f64::from(v / 0.7).exp() / total).abs() < 0.015);
        }
    }

    #[test]
    fn draws_from_a_large_vocabulary_follow_the_distribution() {
        // Some runs have little mass, and every run has one token of probability 0.
        let z: Vec<f32> =
            (0..1000).map(|i| if i % 256 == 7 { f32::NEG_INFINITY } else { (i / 100) as f32 * 0.3 }).collect();
        let total: f64 = z.iter().map(|v| f64::from(*v).exp()).sum();
        let drawn = frequencies(&z, &Warpers::default(), 20_000);
        for tenth in 0..10 {
            let share = |v: &dyn Fn(usize) -> f64| (tenth * 100..tenth * 100 + 100).map(v).sum::<f64>();
            let (got, want) = (share(&|i| drawn[i]), share(&|i| f64::from(z[i]).exp() / total));
            assert!((got - want).abs() < 0.015, "{tenth}: {got} {want}");
        }
        assert!((0..1000).filter(|i| i % 256 == 7).all(|i| drawn[i] == 0.0));
        for u in [0.0, 0.5, 1.0 - 1e-16] {
            assert!(z[draw_from_all(&z, 1.0, u) as usize].is_finite());
        }
    }

    #[test]
    fn truncation_by_threshold_equals_truncation_of_the_sorted_vocabulary() {
        let z: Vec<f32> = (0..3000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0).collect();
        for (top_p, min_p) in [(0.1, 0.0), (0.5, 0.0), (0.95, 0.0), (0.999, 0.0), (1.0, 0.05), (0.9, 0.3)] {
            let warpers = Warpers { top_p, min_p, ..Warpers::default() };
            let all = Warpers { top_k: z.len(), ..warpers.clone() };
            let ids = |w: &Warpers| truncate(&z, 1.3, w).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
            assert_eq!(ids(&warpers), ids(&all), "top_p {top_p}, min_p {min_p}");
        }
    }

    #[test]
    fn top_k_top_p_min_p_and_greedy_keep_the_expected_tokens() {
        let z = [3.0f32, 2.0, 1.0, 0.0];
        let with = |w: Warpers| frequencies(&z, &w, 2000).iter().map(|f| *f > 0.0).collect::<Vec<_>>();
        assert_eq!(with(Warpers { top_k: 2, ..Warpers::default() }), [true, true, false, false]);
        assert_eq!(with(Warpers { top_p: 0.7, ..Warpers::default() }), [true, true, false, false]);
        assert_eq!(with(Warpers { min_p: 0.2, ..Warpers::default() }), [true, true, false, false]);
        assert_eq!(with(Warpers { temperature: 0.0, ..Warpers::default() }), [true, false, false, false]);
        assert_eq!(with(Warpers { logit_bias: vec![(3, 100.0)], ..Warpers::default() }), [false, false, false, true]);
    }

    #[test]
    fn the_most_likely_token_is_the_first_of_the_top_ids() {
        for z in [&[1.0f32, 3.0, 3.0, -1.0][..], &[f32::NEG_INFINITY, -2.0], &[0.0, -0.0, 0.0], &[5.0]] {
            assert_eq!(most_likely(z), top_ids(z, 1)[0], "{z:?}");
            let mut all: Vec<u32> = (0..z.len() as u32).collect();
            all.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
            for k in 0..=z.len() {
                assert_eq!(top_ids(z, k), all[..k], "{z:?}");
            }
        }
    }

    #[test]
    fn penalties_change_logits_as_documented() {
        let mut z = [2.0f32, -2.0, 1.0];
        let warpers =
            Warpers { repetition_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..Warpers::default() };
        penalise(&mut z, &warpers, &context(&[0, 1, 1]));
        assert_eq!(z, [1.0 - 0.75, -4.0 - 1.0, 1.0]);
    }

    #[test]
    fn a_mask_renormalises_the_distribution_of_the_allowed_tokens() {
        let z: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin()).collect();
        let kept = [3usize, 31, 32, 64, 69];
        let mut allowed = [0u32; 3];
        kept.iter().for_each(|id| allowed[id / 32] |= 1 << (id % 32));
        let total: f64 = kept.iter().map(|id| f64::from(z[*id]).exp()).sum();
        let n = 20_000;
        for warpers in [Warpers::default(), Warpers { top_k: 60, top_p: 0.9999, ..Warpers::default() }] {
            let mut counts = [0f64; 70];
            for seed in 0..n {
                let drawn = draw_among(&z, &warpers, &DrawContext { seed, ..context(&[]) }, &allowed).unwrap();
                counts[drawn.id as usize] += 1.0 / n as f64;
                assert_eq!((drawn.logprob, drawn.top), logprob_and_top(&z, drawn.id, 1.0, 3));
            }
            for (id, count) in counts.iter().enumerate() {
                let want = if kept.contains(&id) { f64::from(z[id]).exp() / total } else { 0.0 };
                assert!((count - want).abs() < 0.02 && (want > 0.0 || *count == 0.0), "{id}: {count} {want}");
            }
        }
        // A mask of all tokens changes nothing; with a mask of no tokens nothing is drawn.
        let all = [u32::MAX; 3];
        for seed in 0..200 {
            let context = DrawContext { seed, ..context(&[1, 2]) };
            assert_eq!(
                draw_among(&z, &Warpers::default(), &context, &all),
                Some(draw(&z, &Warpers::default(), &context))
            );
            assert_eq!(draw_among(&z, &Warpers::default(), &context, &[0; 3]), None);
        }
        let greedy = Warpers { temperature: 0.0, ..Warpers::default() };
        let best = *kept.iter().max_by(|a, b| z[**a].total_cmp(&z[**b])).unwrap();
        assert_eq!(draw_among(&z, &greedy, &context(&[]), &allowed).unwrap().id as usize, best);
    }

    #[test]
    fn reported_logprobs_are_of_the_unwarped_distribution() {
        let z = [0.5f32, 1.5, -0.5];
        let drawn =
            draw(&z, &Warpers { temperature: 0.0, logit_bias: vec![(2, 50.0)], ..Warpers::default() }, &context(&[]));
        let lse = z.iter().map(|v| v.exp()).sum::<f32>().ln();
        assert_eq!(drawn.id, 2);
        assert!((drawn.logprob - (-0.5 - lse)).abs() < 1e-6);
        assert_eq!(drawn.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0, 2]);
    }
}
