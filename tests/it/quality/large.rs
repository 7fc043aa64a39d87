//! Figures of many judgments: how long they take, and that their intervals are those of the plain bootstrap.

use std::sync::OnceLock;
use std::time::Instant;

use instructd::domain::*;
use instructd::eval::quality::statistics::quantile;
use instructd::eval::quality::{
    self, Facts, Figure, Resampling, agreement, bootstrap, bradley_terry, labelers, length,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PEOPLE: usize = 50;
const VERSIONS: usize = 4;

/// `n` judgments: two of each set of `size` completions, one prompt for each set. Labelers differ in attention,
/// versions in quality, and longer texts are preferred.
fn judged(n: usize, size: usize, people: usize, seed: u64) -> Vec<JudgedSet> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut judged = Vec::with_capacity(n);
    for set in 0..n / 2 {
        let items: Vec<(JudgedItem, f64)> = (0..size)
            .map(|i| {
                let version = rng.random_range(0..VERSIONS);
                let length = rng.random_range(20..2000);
                let quality = version as f64 * 0.4 + (length as f64).log2() * 0.5 + rng.random_range(-1.0..1.0);
                let item = JudgedItem {
                    completion_id: format!("01C{:023}", set * size + i).into(),
                    model_version_id: Some(format!("01M{version:023}").into()),
                    origin: CompletionOrigin::Model,
                    length,
                    tier: 0,
                    shown_position: 0,
                };
                (item, quality)
            })
            .collect();
        for k in 0..2 {
            let by = (set + k * rng.random_range(1..people.min(4))) % people;
            let attentive = rng.random_bool(0.6 + 0.4 * by as f64 / people as f64);
            let seen = |quality: f64, rng: &mut ChaCha8Rng| {
                let noise = rng.random_range(0.001..0.999_f64);
                if attentive { quality + (noise / (1.0 - noise)).ln() } else { noise }
            };
            let values: Vec<i64> = items.iter().map(|i| (seen(i.1, &mut rng) * 2.0).round() as i64).collect();
            let turn = rng.random_range(0..size) as i64;
            let ranked = items.iter().zip(&values).enumerate().map(|(i, ((item, _), value))| JudgedItem {
                tier: values.iter().filter(|other| *other > value).count() as i64,
                shown_position: (i as i64 + turn) % size as i64,
                ..item.clone()
            });
            judged.push(JudgedSet {
                judgment_id: format!("01J{:023}", set * 2 + k).into(),
                set_id: format!("01S{set:023}").into(),
                prompt_id: format!("01P{set:023}").into(),
                labeler_id: format!("01L{by:023}").into(),
                kind: SetKind::Normal,
                outcome: Outcome::Ranked,
                active_ms: 20_000,
                leased: true,
                created: 0,
                items: ranked.collect(),
            });
        }
    }
    judged
}

fn people() -> Vec<Labeler> {
    let one = |k: usize| Labeler::new(format!("01L{k:023}").into(), format!("person {k}"), Role::Labeler, 0);
    (0..PEOPLE).map(one).collect()
}

/// The 95 % intervals of `figures` over `clusters` drawn one by one: the bootstrap in its plain form. `figures` gets
/// each drawn cluster as often as it was drawn.
fn plain_intervals(clusters: usize, figures: impl Fn(&[usize]) -> Vec<f64>) -> Vec<(f64, f64)> {
    const REPLICATES: usize = 200;
    let mut rng = ChaCha8Rng::seed_from_u64(77);
    let mut values: Vec<Vec<f64>> = Vec::new();
    for _ in 0..REPLICATES {
        let drawn: Vec<usize> = (0..clusters).map(|_| rng.random_range(0..clusters)).collect();
        let found = figures(&drawn);
        values.resize_with(found.len(), Vec::new);
        values.iter_mut().zip(found).for_each(|(values, value)| values.push(value));
    }
    let interval = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (quantile(&values, 0.025).unwrap(), quantile(&values, 0.975).unwrap())
    };
    values.into_iter().map(interval).collect()
}

/// The ends of an interval of 200 replicates have a standard error of 0.19 standard deviations of the figure, those of
/// 1000 replicates of 1000 groups 0.1: 15 % of the width (0.59 standard deviations) is 2.7 standard errors of the
/// difference.
#[track_caller]
fn agree(name: &str, ours: Figure, plain: (f64, f64)) {
    let (low, high) = (ours.low.unwrap(), ours.high.unwrap());
    let within = 0.15 * (plain.1 - plain.0);
    assert!((low - plain.0).abs() < within && (high - plain.1).abs() < within, "{name}: {ours:?}, plain {plain:?}");
}

#[test]
fn intervals_of_many_sets_are_those_of_the_plain_bootstrap() {
    const SETS: usize = 3000;
    let facts = Facts::new(&judged(2 * SETS, 2, 4, 9), &[], &people());
    let resampling = Resampling { replicates: 1000, seed: 1 };
    let none = Resampling { replicates: 0, seed: 0 };

    let units = facts.units();
    let mut of_set = vec![Vec::new(); facts.sets.len()];
    units.iter().for_each(|unit| of_set[unit.cluster].push(unit.clone()));
    let shared: Vec<_> = of_set.into_iter().filter(|units| units.iter().any(|u| u.ratings.len() > 1)).collect();
    assert!(shared.len() > bootstrap::MAX_GROUPS, "{}", shared.len());
    let values = |a: &agreement::Agreement| {
        let mut cohen = a.cohen.clone();
        cohen.sort_by_key(|c| c.pair);
        let figures = [a.pairwise, a.pairwise_without_ties, a.alpha_ordinal, a.alpha_nominal, a.fleiss_kappa];
        figures.into_iter().chain(cohen.iter().map(|c| c.kappa)).map(Option::unwrap).collect::<Vec<Figure>>()
    };
    let ours = values(&agreement::agreement(&units, resampling));
    let plain = plain_intervals(shared.len(), |drawn| {
        let units: Vec<_> = drawn.iter().flat_map(|set| shared[*set].clone()).collect();
        values(&agreement::agreement(&units, none)).iter().map(|f| f.value).collect()
    });
    assert!(ours.len() > 8 && ours.len() == plain.len(), "{} {}", ours.len(), plain.len());
    for (i, (ours, plain)) in ours.iter().zip(plain).enumerate() {
        agree(&format!("agreement {i}"), *ours, plain);
    }

    let preferences = facts.preferences();
    let mut of_prompt = vec![Vec::new(); facts.prompts];
    preferences.iter().for_each(|p| of_prompt[p.cluster].push(*p));
    let ours = length::length_bias(&preferences, facts.prompts, resampling);
    let plain = plain_intervals(facts.prompts, |drawn| {
        let preferences: Vec<_> = drawn.iter().flat_map(|prompt| of_prompt[*prompt].clone()).collect();
        let found = length::length_bias(&preferences, facts.prompts, none);
        vec![found.longer_wins.unwrap().value, found.per_doubling.unwrap().value]
    });
    agree("longer wins", ours.longer_wins.unwrap(), plain[0]);
    agree("per doubling", ours.per_doubling.unwrap(), plain[1]);

    let matches = facts.matches();
    let mut of_prompt = vec![Vec::new(); facts.prompts];
    matches.iter().for_each(|m| of_prompt[m.cluster].push(m.clone()));
    for covariate in [false, true] {
        let options = bradley_terry::Options { covariate, ..Default::default() };
        let table = |matches: &[bradley_terry::Match], resampling| {
            bradley_terry::table(matches, facts.authors.len(), facts.prompts, options, resampling).unwrap()
        };
        let ours = table(&matches, resampling);
        let plain = plain_intervals(facts.prompts, |drawn| {
            let matches: Vec<_> = drawn.iter().flat_map(|prompt| of_prompt[*prompt].clone()).collect();
            let found = table(&matches, none);
            let strengths = found.standings.iter().map(|s| s.strength.value);
            strengths.chain(found.covariate.map(|f| f.value)).collect()
        });
        for (i, standing) in ours.standings.iter().enumerate() {
            agree(&format!("strength {i}, covariate: {covariate}"), standing.strength, plain[i]);
        }
        if let Some(effect) = ours.covariate {
            agree("length effect", effect, plain[ours.standings.len()]);
        }
    }
}

/// Processor time of this thread, which other programs do not lengthen; the time that passes where it is not known.
fn seconds() -> f64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let passed = BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64();
    let known = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = known.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    nanoseconds.map_or(passed, |n| n * 1e-9)
}

/// Prints the seconds of each part of the report and of the table of versions. `INSTRUCTD_TEST_JUDGMENTS` is the number
/// of judgments.
#[test]
#[ignore = "measures"]
fn seconds_of_each_figure() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let judgments = number("INSTRUCTD_TEST_JUDGMENTS", 100_000);
    let resampling = Resampling { replicates: number("INSTRUCTD_TEST_REPLICATES", 1000), seed: 1 };
    let judged = judged(judgments, 3, PEOPLE, 1);
    let mut begun = seconds();
    let mut part = |name: &str| {
        println!("{name}: {:.2} s", seconds() - begun);
        begun = seconds();
    };
    let facts = Facts::new(&judged, &[], &people());
    part("facts");
    let units = facts.units();
    part("units");
    agreement::agreement(&units, resampling);
    part("agreement");
    labelers::figures(&facts, &[]);
    part("labelers");
    let preferences = facts.preferences();
    part("preferences");
    length::length_bias(&preferences, facts.prompts, resampling);
    part("length");
    let matches = facts.matches();
    part("matches");
    for covariate in [false, true] {
        let options = bradley_terry::Options { covariate, ..Default::default() };
        let resampling = Resampling { replicates: resampling.replicates * 3 / 10, ..resampling };
        bradley_terry::table(&matches, facts.authors.len(), facts.prompts, options, resampling);
        part("versions");
    }
    quality::attention(&facts);
    part("consensus");
}
