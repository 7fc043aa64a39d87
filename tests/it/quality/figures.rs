//! Figures against scikit-learn, krippendorff, statsmodels, choix, scipy and crowd-kit on the same data
//! (tests/fixtures/quality/make.py).

use instructd::eval::quality::Resampling;
use instructd::eval::quality::agreement::{Unit, agreement};
use instructd::eval::quality::bradley_terry::{Match, Options, Won, bradley_terry};
use instructd::eval::quality::consensus::{Consensus, Vote, consensus, log_likelihood};
use instructd::eval::quality::length::{Preference, length_bias};
use instructd::eval::quality::statistics::share;
use serde_json::Value;

const QUICK: Resampling = Resampling { replicates: 50, seed: 1 };

fn fixture(part: &str) -> Value {
    let path = crate::support::fixture("quality").join("quality.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[part].clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(ours: f64, theirs: &Value, within: f64) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() < within, "{ours} here, {theirs} there");
}

#[test]
fn agreement_is_that_of_krippendorff_sklearn_and_statsmodels() {
    let wanted = fixture("agreement");
    let rows = wanted["ratings"].as_array().unwrap();
    let unit = |(cluster, row): (usize, &Value)| {
        let given = numbers(row).into_iter().enumerate().filter(|(_, v)| *v >= 0.0);
        Unit { cluster, ratings: given.map(|(k, v)| (k, v as usize)).collect() }
    };
    let units: Vec<Unit> = rows.iter().enumerate().map(unit).collect();
    let ours = agreement(&units, QUICK);
    close(ours.alpha_nominal.unwrap().value, &wanted["alpha_nominal"], 1e-12);
    close(ours.alpha_ordinal.unwrap().value, &wanted["alpha_ordinal"], 1e-12);
    close(ours.fleiss_kappa.unwrap().value, &wanted["fleiss"], 1e-12);
    assert_eq!(ours.fleiss_raters.unwrap() as u64, wanted["fleiss_raters"].as_u64().unwrap());
    let cohen = wanted["cohen"].as_array().unwrap();
    assert_eq!(ours.cohen.len(), cohen.len());
    for theirs in cohen {
        let pair = numbers(&theirs["pair"]);
        let found = ours.cohen.iter().find(|c| c.pair == (pair[0] as usize, pair[1] as usize)).unwrap();
        close(found.kappa.unwrap().value, &theirs["kappa"], 1e-12);
        close(found.weighted_kappa.unwrap(), &theirs["linear"], 1e-12);
        assert_eq!(found.kappa.unwrap().n as u64, theirs["n"].as_u64().unwrap());
    }
}

#[test]
fn shares_have_scipys_jeffreys_intervals() {
    for case in fixture("jeffreys").as_array().unwrap() {
        let figure = share(case["hits"].as_f64().unwrap(), case["n"].as_u64().unwrap() as usize).unwrap();
        close(figure.low.unwrap(), &case["low"], 1e-9);
        close(figure.high.unwrap(), &case["high"], 1e-9);
    }
}

#[test]
fn bradley_terry_is_that_of_choix() {
    let wanted = fixture("bradley_terry");
    let game = |(cluster, g): (usize, &Value)| {
        let g = numbers(g);
        Match { a: g[0] as usize, b: g[1] as usize, won: Won::A, weight: 1.0, x: 0.0, cluster }
    };
    let games: Vec<Match> = wanted["games"].as_array().unwrap().iter().enumerate().map(game).collect();
    let options = Options { prior_sd: wanted["prior_sd"].as_f64().unwrap(), covariate: false };
    let fit = bradley_terry(&games, 5, options);
    for (ours, theirs) in fit.strengths.iter().zip(wanted["strengths"].as_array().unwrap()) {
        close(*ours, theirs, 1e-6);
    }
}

#[test]
fn ties_and_the_covariate_are_where_scipy_finds_them() {
    let wanted = fixture("davidson");
    let one = |(cluster, m): (usize, &Value)| {
        let m = numbers(m);
        let won = [Won::A, Won::B, Won::Tie][m[2] as usize];
        Match { a: m[0] as usize, b: m[1] as usize, won, weight: m[3], x: m[4], cluster }
    };
    let matches: Vec<Match> = wanted["matches"].as_array().unwrap().iter().enumerate().map(one).collect();
    let options = Options { prior_sd: wanted["prior_sd"].as_f64().unwrap(), covariate: true };
    let fit = bradley_terry(&matches, 5, options);
    for (ours, theirs) in fit.strengths.iter().zip(wanted["strengths"].as_array().unwrap()) {
        close(*ours, theirs, 1e-5);
    }
    close(fit.log_tie.unwrap(), &wanted["log_tie"], 1e-5);
    close(fit.covariate.unwrap(), &wanted["covariate"], 1e-5);
}

#[test]
fn the_consensus_is_the_maximum_of_crowd_kits_likelihood() {
    let wanted = fixture("consensus");
    let word = |w: &Value| {
        let w = numbers(w);
        let [by, first, second] = [w[0], w[1], w[2]].map(|v| v as usize);
        Vote { by, first, second, preferred_first: w[3], weight: 1.0 }
    };
    let words: Vec<Vote> = wanted["words"].as_array().unwrap().iter().map(word).collect();
    let ours = consensus(&words, 8, 4);
    for (part, values) in [("scores", &ours.scores), ("attention", &ours.attention), ("first", &ours.first)] {
        for (ours, theirs) in values.iter().zip(wanted[part].as_array().unwrap()) {
            close(*ours, theirs, 1e-5);
        }
    }
    close(log_likelihood(&words, &ours), &wanted["log_likelihood"], 1e-5);
    let start = Consensus { scores: vec![0.0; 8], attention: vec![0.875; 4], first: vec![0.5; 4] };
    close(log_likelihood(&words, &start), &wanted["log_likelihood_at_start"], 1e-9);
}

#[test]
fn the_length_slope_is_that_of_sklearn() {
    let wanted = fixture("length");
    let one = |(cluster, p): (usize, &Value)| {
        let p = numbers(p);
        Preference { preferred: p[0], other: p[1], weight: 1.0, cluster }
    };
    let all: Vec<Preference> = wanted["preferences"].as_array().unwrap().iter().enumerate().map(one).collect();
    let ours = length_bias(&all, all.len(), QUICK);
    close(ours.per_doubling.unwrap().value, &wanted["per_doubling"], 1e-6);
    close(ours.longer_wins.unwrap().value, &wanted["longer_wins"], 1e-12);
}
