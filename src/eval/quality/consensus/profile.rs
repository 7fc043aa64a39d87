//! The scores of the noisy Bradley–Terry model for given parameters of the labelers.
//!
//! Items that no vote connects are independent, so the scores of each component are found on their own, by Newton's
//! method on the likelihood of its votes.

use std::ops::Range;

use super::super::statistics::solve_in_place;
use super::{SCORE_SD, Vote};
use crate::statistics::logistic::sigmoid;

/// Parameters of the labelers.
pub struct Parameters {
    /// γ: probability of looking at the texts.
    pub attention: Vec<f64>,
    /// q: probability of choosing the first without looking.
    pub first: Vec<f64>,
}

/// Expected weights of each labeler's votes.
#[derive(Clone)]
pub struct Expected {
    pub all: Vec<f64>,
    /// Of those given by looking.
    pub attentive: Vec<f64>,
    /// Of those for the first that were given without looking.
    pub blind_first: Vec<f64>,
}

/// Half of a vote: the preferred item, the other one, and its part of the vote's weight. A tie has two halves.
struct Half {
    by: usize,
    /// Positions in the component.
    up: usize,
    down: usize,
    /// Whether the preferred item was shown first.
    first: bool,
    weight: f64,
}

/// Items connected by votes, and the halves of those votes.
struct Component {
    items: Range<usize>,
    halves: Range<usize>,
}

/// Votes by component, with the current scores.
pub struct Profile {
    /// Ids of items, by component; parallel to `scores`.
    items: Vec<usize>,
    scores: Vec<f64>,
    components: Vec<Component>,
    halves: Vec<Half>,
    labelers: usize,
}

impl Profile {
    /// Votes of `labelers` labelers on `items` items, all scores 0.
    pub fn new(votes: &[Vote], items: usize, labelers: usize) -> Self {
        let component_of = components(votes, items);
        let count = component_of.iter().flatten().max().map_or(0, |last| last + 1);
        // Items and halves are stored by component: first the sizes, then the places.
        let mut sizes = vec![(0, 0); count];
        for component in component_of.iter().flatten() {
            sizes[*component].0 += 1;
        }
        let of_vote = |vote: &Vote| component_of[vote.first].unwrap_or(0);
        for vote in votes {
            sizes[of_vote(vote)].1 += if vote.preferred_first > 0.0 && vote.preferred_first < 1.0 { 2 } else { 1 };
        }
        let mut components = Vec::with_capacity(count);
        let (mut item, mut half) = (0, 0);
        for (items, halves) in sizes {
            // The ends are moved while items and halves are put in.
            components.push(Component { items: item..item, halves: half..half });
            (item, half) = (item + items, half + halves);
        }
        let mut of_items = vec![0; item];
        let mut position = vec![0; items];
        for (id, component) in component_of.iter().enumerate() {
            let Some(component) = component else { continue };
            let range = &mut components[*component].items;
            position[id] = range.end - range.start;
            of_items[range.end] = id;
            range.end += 1;
        }
        let mut halves: Vec<Option<Half>> = Vec::new();
        halves.resize_with(half, || None);
        for vote in votes {
            let range = &mut components[of_vote(vote)].halves;
            let (first, second) = (position[vote.first], position[vote.second]);
            for (is_first, part) in [(true, vote.preferred_first), (false, 1.0 - vote.preferred_first)] {
                if part > 0.0 {
                    let (up, down) = if is_first { (first, second) } else { (second, first) };
                    halves[range.end] =
                        Some(Half { by: vote.by, up, down, first: is_first, weight: part * vote.weight });
                    range.end += 1;
                }
            }
        }
        let halves = halves.into_iter().flatten().collect();
        Self { scores: vec![0.0; of_items.len()], items: of_items, components, halves, labelers }
    }

    pub fn components(&self) -> usize {
        self.components.len()
    }

    /// Components with `votes` halves of votes of each labeler, or with all of those who have fewer. They are taken in
    /// strides, so that the sample is spread over all of them.
    pub fn sample(&self, votes: usize) -> Vec<usize> {
        const STRIDE: usize = 61;
        let mut have = vec![0; self.labelers];
        let mut sample = Vec::new();
        for i in (0..STRIDE).flat_map(|from| (from..self.components.len()).step_by(STRIDE)) {
            let halves = &self.halves[self.components[i].halves.clone()];
            if halves.iter().any(|half| have[half.by] < votes) {
                halves.iter().for_each(|half| have[half.by] += 1);
                sample.push(i);
            }
        }
        sample
    }

    /// Maximizes over the scores of the components, all or the named ones, and returns what is then expected of their
    /// votes.
    pub fn expect(&mut self, named: Option<&[usize]>, parameters: &Parameters) -> Expected {
        let zero = vec![0.0; self.labelers];
        let mut expected = Expected { all: self.weights(named), attentive: zero.clone(), blind_first: zero };
        let mut work = Work::default();
        for component in chosen(&self.components, named) {
            let halves = &self.halves[component.halves.clone()];
            work.maximise(halves, parameters, &mut self.scores[component.items.clone()]);
            for (half, looked) in halves.iter().zip(&work.looked) {
                expected.attentive[half.by] += half.weight * looked;
                if half.first {
                    expected.blind_first[half.by] += half.weight * (1.0 - looked);
                }
            }
        }
        expected
    }

    /// Weight of each labeler's votes in the components, all or the named ones.
    pub fn weights(&self, named: Option<&[usize]>) -> Vec<f64> {
        let mut weights = vec![0.0; self.labelers];
        for component in chosen(&self.components, named) {
            for half in &self.halves[component.halves.clone()] {
                weights[half.by] += half.weight;
            }
        }
        weights
    }

    /// Scores by item; 0 for those without votes.
    pub fn scores(&self, items: usize) -> Vec<f64> {
        let mut scores = vec![0.0; items];
        for (id, score) in self.items.iter().zip(&self.scores) {
            scores[*id] = *score;
        }
        scores
    }
}

/// All components, or those with the numbers `named`.
fn chosen<'a>(components: &'a [Component], named: Option<&'a [usize]>) -> impl Iterator<Item = &'a Component> {
    let count = named.map_or(components.len(), <[usize]>::len);
    (0..count).map(move |i| &components[named.map_or(i, |named| named[i])])
}

/// The component of each item, numbered from 0 by their first items; `None` for items without votes.
fn components(votes: &[Vote], items: usize) -> Vec<Option<usize>> {
    let mut root: Vec<usize> = (0..items).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    let mut voted = vec![false; items];
    for vote in votes {
        (voted[vote.first], voted[vote.second]) = (true, true);
        let (a, b) = (find(&mut root, vote.first), find(&mut root, vote.second));
        root[a] = b;
    }
    let mut number = vec![None; items];
    let mut count = 0;
    let mut of = vec![None; items];
    for i in (0..items).filter(|i| voted[*i]) {
        let at = find(&mut root, i);
        let component = *number[at].get_or_insert_with(|| {
            count += 1;
            count - 1
        });
        of[i] = Some(component);
    }
    of
}

/// Precision of the prior of a score.
const RIDGE: f64 = 1.0 / (SCORE_SD * SCORE_SD);

/// Buffers of one component's optimization.
#[derive(Default)]
struct Work {
    gradient: Vec<f64>,
    /// Negated Hessian, row-major.
    information: Vec<f64>,
    step: Vec<f64>,
    /// Scores before the step.
    before: Vec<f64>,
    /// For each half: σ(score difference), its probability, and the probability that the labeler looked at the texts.
    agrees: Vec<f64>,
    likely: Vec<f64>,
    looked: Vec<f64>,
}

impl Work {
    /// Maximizes the log-posterior over the scores, and leaves `looked` at the maximum.
    fn maximise(&mut self, halves: &[Half], parameters: &Parameters, scores: &mut [f64]) {
        const STEPS: usize = 50;
        const HALVINGS: usize = 30;
        /// A step of this size leaves an error of the order of its square, and the next call takes another one.
        const SMALL: f64 = 1e-3;
        self.evaluate(halves, parameters, scores);
        for _ in 0..STEPS {
            self.newton_step(halves);
            if self.step.iter().all(|step| step.abs() < SMALL) {
                self.finish(halves, scores);
                return;
            }
            let value = self.value(halves, scores);
            self.before.clear();
            self.before.extend_from_slice(scores);
            let mut scale = 1.0;
            for _ in 0..HALVINGS {
                for ((score, before), step) in scores.iter_mut().zip(&self.before).zip(&self.step) {
                    *score = before + scale * step;
                }
                self.evaluate(halves, parameters, scores);
                if self.value(halves, scores) > value {
                    break;
                }
                scale *= 0.5;
            }
        }
    }

    /// Takes a small step. `looked` follows to the first order, which spares another evaluation.
    fn finish(&mut self, halves: &[Half], scores: &mut [f64]) {
        scores.iter_mut().zip(&self.step).for_each(|(score, step)| *score += step);
        for ((half, p), looked) in halves.iter().zip(&self.agrees).zip(&mut self.looked) {
            let moved = self.step[half.up] - self.step[half.down];
            *looked += moved * *looked * (1.0 - *looked) * (1.0 - p);
        }
    }

    /// Fills the gradient of the log-posterior at `scores`, `agrees`, `likely` and `looked`.
    fn evaluate(&mut self, halves: &[Half], parameters: &Parameters, scores: &[f64]) {
        self.gradient.clear();
        self.agrees.clear();
        self.likely.clear();
        self.looked.clear();
        self.gradient.extend(scores.iter().map(|score| -RIDGE * score));
        for half in halves {
            let p = sigmoid(scores[half.up] - scores[half.down]);
            let attention = parameters.attention[half.by];
            let first = parameters.first[half.by];
            let attentive = attention * p;
            let likely = attentive + (1.0 - attention) * if half.first { first } else { 1.0 - first };
            let looked = attentive / likely;
            let pull = half.weight * looked * (1.0 - p);
            self.gradient[half.up] += pull;
            self.gradient[half.down] -= pull;
            self.agrees.push(p);
            self.likely.push(likely);
            self.looked.push(looked);
        }
    }

    /// The log-posterior, up to a constant, at the scores that were evaluated last.
    fn value(&self, halves: &[Half], scores: &[f64]) -> f64 {
        let prior: f64 = scores.iter().map(|score| -0.5 * RIDGE * score * score).sum();
        prior + halves.iter().zip(&self.likely).map(|(half, likely)| half.weight * likely.ln()).sum::<f64>()
    }

    /// Sets `step` to Newton's. Where the posterior is not concave, it is that of EM's bound, which is.
    fn newton_step(&mut self, halves: &[Half]) {
        for of_bound in [false, true] {
            self.inform(halves, of_bound);
            self.step.clear();
            self.step.extend_from_slice(&self.gradient);
            if solve_in_place(&mut self.information, &mut self.step) {
                return;
            }
        }
    }

    /// Fills the information: that of the posterior, or of EM's bound, which holds `looked` fixed.
    fn inform(&mut self, halves: &[Half], of_bound: bool) {
        let n = self.gradient.len();
        self.information.clear();
        self.information.resize(n * n, 0.0);
        for i in 0..n {
            self.information[i * n + i] = RIDGE;
        }
        for ((half, p), looked) in halves.iter().zip(&self.agrees).zip(&self.looked) {
            let hidden = if of_bound { 0.0 } else { (1.0 - looked) * (1.0 - p) };
            let spread = half.weight * looked * (1.0 - p) * (p - hidden);
            self.information[half.up * n + half.up] += spread;
            self.information[half.down * n + half.down] += spread;
            self.information[half.up * n + half.down] -= spread;
            self.information[half.down * n + half.up] -= spread;
        }
    }
}
