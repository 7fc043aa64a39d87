//! Strengths of things from pairwise comparisons: Bradley and Terry's model with Davidson's ties (1970) and,
//! optionally, the length difference as a covariate.
//!
//! With δ = θ_a − θ_b + β·x the odds of "a wins : b wins : tie" are e^{δ/2} : e^{−δ/2} : ν. Without
//! observed ties ν is 0 and the model is Bradley and Terry's own. A Gaussian prior keeps strengths finite when a thing
//! always won; strengths have mean 0.

use std::collections::HashMap;

use serde::Serialize;

use super::bootstrap::{Groups, Intervals, MAX_GROUPS, Sums, bootstrap, bootstrap_sums};
use super::statistics::{Curvature, Figure, Resampling, figure, maximise, solve};

/// Result of one comparison, for `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Won {
    A,
    B,
    Tie,
}

/// One comparison of the things `a` and `b` (indices).
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    pub a: usize,
    pub b: usize,
    pub won: Won,
    pub weight: f64,
    /// Covariate, a minus b; used with `Options::covariate` only.
    pub x: f64,
    /// Index of its prompt: matches of one prompt are resampled together.
    pub cluster: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Standard deviation of the prior of each strength, of ln ν and of β, in natural log-odds.
    pub prior_sd: f64,
    pub covariate: bool,
}

impl Default for Options {
    /// Standard deviation 4 log-odds (about 700 Elo points), weak compared with a dozen comparisons.
    fn default() -> Self {
        Self { prior_sd: 4.0, covariate: false }
    }
}

/// The most probable parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Centred on 0, natural log-odds.
    pub strengths: Vec<f64>,
    /// ln ν; `None` when nothing tied.
    pub log_tie: Option<f64>,
    /// β; `None` unless asked for.
    pub covariate: Option<f64>,
}

impl Fit {
    /// Probabilities that a wins, b wins, they tie; lengths equal.
    pub fn odds(&self, a: usize, b: usize) -> (f64, f64, f64) {
        let half = (self.strengths[a] - self.strengths[b]) / 2.0;
        let tie = self.log_tie.map_or(0.0, f64::exp);
        let (wins, loses) = (half.exp(), (-half).exp());
        let total = wins + loses + tie;
        (wins / total, loses / total, tie / total)
    }
}

/// The parameters of a fit: a strength for each thing, ln ν if anything tied, β if asked for.
#[derive(Clone, Copy)]
struct Layout {
    things: usize,
    ties: bool,
    covariate: bool,
    /// Precision of the prior.
    ridge: f64,
}

impl Layout {
    fn new(matches: &[Match], things: usize, options: Options) -> Self {
        let ties = matches.iter().any(|m| m.won == Won::Tie);
        Self { things, ties, covariate: options.covariate, ridge: 1.0 / (options.prior_sd * options.prior_sd) }
    }

    fn size(self) -> usize {
        self.covariate_at() + usize::from(self.covariate)
    }

    fn covariate_at(self) -> usize {
        self.things + usize::from(self.ties)
    }

    fn prior(self, p: &[f64]) -> Curvature {
        let size = self.size();
        let mut at = Curvature {
            value: -0.5 * self.ridge * p.iter().map(|x| x * x).sum::<f64>(),
            gradient: p.iter().map(|x| -self.ridge * x).collect(),
            information: vec![0.0; size * size],
        };
        for i in 0..size {
            at.information[i * size + i] = self.ridge;
        }
        at
    }

    /// Adds a match to the log-likelihood at `p`: its value, which is returned, and its derivatives.
    fn add(self, m: &Match, weight: f64, p: &[f64], gradient: &mut [f64], information: &mut [f64]) -> f64 {
        let (size, tie_at, covariate_at) = (self.size(), self.things, self.covariate_at());
        let x = if self.covariate { m.x } else { 0.0 };
        let beta = if self.covariate { p[covariate_at] } else { 0.0 };
        let half = (p[m.a] - p[m.b] + beta * x) / 2.0;
        let log_tie = if self.ties { p[tie_at] } else { f64::NEG_INFINITY };
        let top = half.abs().max(log_tie);
        let (win, lose, tie) = ((half - top).exp(), (-half - top).exp(), (log_tie - top).exp());
        let total = win + lose + tie;
        let (win, lose, tie) = (win / total, lose / total, tie / total);
        let (chosen, sign) = match m.won {
            Won::A => (half, 1.0),
            Won::B => (-half, -1.0),
            Won::Tie => (log_tie, 0.0),
        };
        // The exponents are linear in (half, ln ν): moments of those two carry over to all parameters.
        let mean = win - lose;
        let pull = sign - mean;
        let spread = win + lose - mean * mean;
        let parts = [(m.a, 0.5), (m.b, -0.5), (covariate_at, 0.5 * x)];
        let parts = &parts[..if self.covariate { 3 } else { 2 }];
        for (i, zi) in parts {
            gradient[*i] += weight * pull * zi;
            for (j, zj) in parts {
                information[i * size + j] += weight * spread * zi * zj;
            }
            if self.ties {
                let with_tie = -weight * mean * tie * zi;
                information[i * size + tie_at] += with_tie;
                information[tie_at * size + i] += with_tie;
            }
        }
        if self.ties {
            gradient[tie_at] += weight * (f64::from(m.won == Won::Tie) - tie);
            information[tie_at * size + tie_at] += weight * tie * (1.0 - tie);
        }
        weight * (chosen - top - total.ln())
    }

    /// The most probable parameters, from `start` on. `weight(i, match)` is the weight of each match.
    fn fit(self, matches: &[Match], start: Vec<f64>, weight: impl Fn(usize, &Match) -> f64) -> Vec<f64> {
        maximise(start, |p| {
            let mut at = self.prior(p);
            for (i, m) in matches.iter().enumerate() {
                let weight = weight(i, m);
                if weight != 0.0 {
                    at.value += self.add(m, weight, p, &mut at.gradient, &mut at.information);
                }
            }
            at
        })
    }

    fn read(self, p: &[f64]) -> Fit {
        let strengths = &p[..self.things];
        let mean = strengths.iter().sum::<f64>() / self.things.max(1) as f64;
        Fit {
            strengths: strengths.iter().map(|s| s - mean).collect(),
            log_tie: self.ties.then(|| p[self.things]),
            covariate: self.covariate.then(|| p[self.covariate_at()]),
        }
    }
}

/// Matches with the same things and result as one, in the order in which they first occur; and which of them each match
/// is part of. The covariate is left out.
fn merged(matches: &[Match]) -> (Vec<Match>, Vec<usize>) {
    let mut place: HashMap<(usize, usize, Won), usize> = HashMap::new();
    let mut merged: Vec<Match> = Vec::new();
    let mut part_of = Vec::with_capacity(matches.len());
    for m in matches {
        let at = *place.entry((m.a, m.b, m.won)).or_insert(merged.len());
        if at == merged.len() {
            merged.push(Match { weight: 0.0, x: 0.0, ..m.clone() });
        }
        merged[at].weight += m.weight;
        part_of.push(at);
    }
    (merged, part_of)
}

/// Fits the model to all matches of `things` things.
pub fn bradley_terry(matches: &[Match], things: usize, options: Options) -> Fit {
    let layout = Layout::new(matches, things, options);
    layout.read(&fit_all(layout, matches))
}

/// Variances of the differences of strengths of these pairs, by a normal approximation at the most probable parameters.
pub fn contrast_variances(matches: &[Match], things: usize, options: Options, pairs: &[(usize, usize)]) -> Vec<f64> {
    let layout = Layout::new(matches, things, options);
    let p = fit_all(layout, matches);
    let mut at = layout.prior(&p);
    for m in matches {
        layout.add(m, m.weight, &p, &mut at.gradient, &mut at.information);
    }
    let variance = |(a, b): &(usize, usize)| {
        let mut contrast = vec![0.0; layout.size()];
        (contrast[*a], contrast[*b]) = (1.0, -1.0);
        // The prior makes the information positive definite.
        solve(at.information.clone(), contrast).map_or(f64::INFINITY, |x| x[*a] - x[*b])
    };
    pairs.iter().map(variance).collect()
}

/// The most probable parameters of all matches.
fn fit_all(layout: Layout, matches: &[Match]) -> Vec<f64> {
    let plain = Layout { covariate: false, ..layout };
    let (merged, _) = merged(matches);
    let mut p = plain.fit(&merged, vec![0.0; plain.size()], |_, m| m.weight);
    if layout.covariate {
        // From the fit of a part, whose steps are cheaper, one or two are left for all matches.
        p.push(0.0);
        let part = &matches[matches.len() - matches.len() / 32..];
        p = layout.fit(part, p, |_, m| m.weight);
        p = layout.fit(matches, p, |_, m| m.weight);
    }
    p
}

/// Passes the parameters of each replicate to `collect` and returns the intervals of what that returns. `p` are those
/// of all matches; a replicate started from them needs three or four steps.
///
/// Without the covariate a replicate fits the weights of its results. With it, a replicate of up to [`MAX_GROUPS`]
/// prompts fits its matches; of more, it takes one Newton step from `p`, whose error is small of the order 1 /
/// clusters.
fn resample(
    layout: Layout,
    matches: &[Match],
    p: &[f64],
    clusters: usize,
    resampling: Resampling,
    mut collect: impl FnMut(Fit) -> Vec<Option<f64>>,
) -> Intervals {
    let groups = Groups::new(clusters, MAX_GROUPS, resampling);
    let figures = layout.things + 1;
    if !layout.covariate {
        let (merged, part_of) = merged(matches);
        let mut sums = Sums::new(groups.count(), merged.len());
        for (m, part) in matches.iter().zip(&part_of) {
            sums.row(groups.of(m.cluster))[*part] += m.weight;
        }
        return bootstrap_sums(&sums, figures, resampling, |weights| {
            collect(layout.read(&layout.fit(&merged, p.to_vec(), |i, _| weights[i])))
        });
    }
    if !groups.are_merged() {
        return bootstrap(clusters, figures, resampling, |counts| {
            collect(layout.read(&layout.fit(matches, p.to_vec(), |_, m| m.weight * counts[m.cluster])))
        });
    }
    let size = layout.size();
    let mut sums = Sums::new(groups.count(), size + size * size);
    for m in matches {
        let (gradient, information) = sums.row(groups.of(m.cluster)).split_at_mut(size);
        layout.add(m, m.weight, p, gradient, information);
    }
    bootstrap_sums(&sums, figures, resampling, |sums| {
        let mut at = layout.prior(p);
        at.gradient.iter_mut().zip(&sums[..size]).for_each(|(sum, more)| *sum += more);
        at.information.iter_mut().zip(&sums[size..]).for_each(|(sum, more)| *sum += more);
        match solve(at.information, at.gradient) {
            Some(step) => collect(layout.read(&p.iter().zip(&step).map(|(p, step)| p + step).collect::<Vec<_>>())),
            None => vec![None; figures],
        }
    })
}

/// One thing's row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Standing {
    /// Natural log-odds over the mean of the table, with the bootstrap's interval; n = its comparisons.
    pub strength: Figure,
    /// The strength in Elo points: 400 / ln 10 per log-odd, 0 in the middle.
    pub elo: f64,
    /// Share of the bootstrap's replicates in which it came first.
    pub best: f64,
}

/// Comparisons of one thing with another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "HeadToHead")]
pub struct Cell {
    pub wins: usize,
    pub losses: usize,
    pub ties: usize,
    /// (wins + ties / 2) / all; `None` when they never met.
    pub win_rate: Option<f64>,
    /// The model's expectation of that rate.
    pub expected: f64,
}

/// Strengths with intervals, and the matrix of wins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    pub standings: Vec<Standing>,
    /// `wins[i][j]`: i against j.
    pub wins: Vec<Vec<Cell>>,
    /// Probability that two equals tie, ν / (2 + ν).
    pub tie_rate: f64,
    /// β with its interval: log-odds gained by being longer, per unit of the covariate.
    pub covariate: Option<Figure>,
    pub comparisons: usize,
}

/// The table; `None` when fewer than two things were compared. Clusters are numbered below `clusters`.
pub fn table(
    matches: &[Match],
    things: usize,
    clusters: usize,
    options: Options,
    resampling: Resampling,
) -> Option<Table> {
    if things < 2 || matches.is_empty() {
        return None;
    }
    let layout = Layout::new(matches, things, options);
    let p = fit_all(layout, matches);
    let whole = layout.read(&p);
    let mut first = vec![0usize; things];
    let mut replicates = 0;
    let intervals = resample(layout, matches, &p, clusters, resampling, |drawn| {
        let best = (0..things).max_by(|a, b| drawn.strengths[*a].total_cmp(&drawn.strengths[*b]));
        if let Some(best) = best {
            first[best] += 1;
        }
        replicates += 1;
        drawn.strengths.iter().map(|s| Some(*s)).chain([drawn.covariate]).collect()
    });
    let mut wins = vec![vec![Cell::default(); things]; things];
    for m in matches {
        let (mine, theirs) = match m.won {
            Won::A => ((1, 0, 0), (0, 1, 0)),
            Won::B => ((0, 1, 0), (1, 0, 0)),
            Won::Tie => ((0, 0, 1), (0, 0, 1)),
        };
        for (i, j, (w, l, t)) in [(m.a, m.b, mine), (m.b, m.a, theirs)] {
            let cell = &mut wins[i][j];
            (cell.wins, cell.losses, cell.ties) = (cell.wins + w, cell.losses + l, cell.ties + t);
        }
    }
    let mut met = vec![0; things];
    for (i, row) in wins.iter_mut().enumerate() {
        for (j, cell) in row.iter_mut().enumerate() {
            let n = cell.wins + cell.losses + cell.ties;
            met[i] += n;
            cell.win_rate = (n > 0).then(|| (cell.wins as f64 + cell.ties as f64 / 2.0) / n as f64);
            let (wins, _, ties) = whole.odds(i, j);
            cell.expected = if i == j { 0.5 } else { wins + ties / 2.0 };
        }
    }
    let standing = |i: usize| {
        let strength = whole.strengths[i];
        Standing {
            strength: Figure {
                value: strength,
                low: intervals[i].map(|v| v.0),
                high: intervals[i].map(|v| v.1),
                n: met[i],
            },
            elo: strength * 400.0 / std::f64::consts::LN_10,
            best: first[i] as f64 / f64::from(replicates.max(1)),
        }
    };
    let tie = whole.log_tie.map_or(0.0, f64::exp);
    Some(Table {
        standings: (0..things).map(standing).collect(),
        wins,
        tie_rate: tie / (2.0 + tie),
        covariate: figure(whole.covariate, intervals[things], matches.len()),
        comparisons: matches.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn games(a: usize, b: usize, won: Won, n: usize) -> impl Iterator<Item = Match> {
        (0..n).map(move |i| Match { a, b, won, weight: 1.0, x: 0.0, cluster: i })
    }

    #[test]
    fn two_things_have_a_closed_form() {
        // 30 : 10 : 20 of wins, losses, ties: δ = ln 3, ν = 20 / √(30 · 10), whatever the prior is worth.
        let matches: Vec<_> =
            games(0, 1, Won::A, 30).chain(games(0, 1, Won::B, 10)).chain(games(0, 1, Won::Tie, 20)).collect();
        let flat = Options { prior_sd: 1e6, ..Options::default() };
        let fit = bradley_terry(&matches, 2, flat);
        assert!((fit.strengths[0] - fit.strengths[1] - 3f64.ln()).abs() < 1e-8, "{fit:?}");
        assert!((fit.log_tie.unwrap() - (20.0 / 300f64.sqrt()).ln()).abs() < 1e-8);
        let odds = fit.odds(0, 1);
        assert!((odds.0 - 0.5).abs() < 1e-9 && (odds.2 - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn who_always_wins_stays_finite() {
        let matches: Vec<_> = games(0, 1, Won::A, 50).collect();
        let fit = bradley_terry(&matches, 2, Options::default());
        let lead = fit.strengths[0] - fit.strengths[1];
        assert!(lead > 3.0 && lead < 12.0, "{lead}");
        assert_eq!(fit.log_tie, None);
    }

    #[test]
    fn the_covariate_takes_what_is_its_own() {
        // Thing 0 wins exactly when it is longer: length explains all, strength nothing.
        let mut matches = Vec::new();
        for i in 0..40 {
            let longer = if i % 2 == 0 { 1.0 } else { -1.0 };
            for (won, n) in [(longer, 9), (-longer, 1)] {
                let won = if won > 0.0 { Won::A } else { Won::B };
                matches.extend(games(0, 1, won, n).map(|m| Match { x: longer, cluster: i, ..m }));
            }
        }
        let table = table(
            &matches,
            2,
            40,
            Options { covariate: true, ..Options::default() },
            Resampling { replicates: 50, seed: 1 },
        )
        .unwrap();
        let beta = table.covariate.unwrap();
        assert!((beta.value - 9f64.ln()).abs() < 0.02, "{beta:?}");
        assert!(table.standings[0].strength.value.abs() < 0.01);
        assert_eq!((table.wins[0][1].wins, table.wins[1][0].losses, table.wins[0][0].win_rate), (200, 200, None));
    }
}
