//! Evaluation commands against numbers known from elsewhere.

use instructd::eval::classify::macro_f1;
use instructd::eval::run::{EvalArgs, EvalResult, run};
use instructd::statistics::interval::wilson;

use crate::support::fixtures;

#[test]
fn perplexity_of_a_text_is_that_of_its_reference_logprobs() {
    let dir = fixtures().join("llama-tiny");
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids: Vec<u32> = serde_json::from_value(expected["input_ids"][0].clone()).unwrap();
    let want: Vec<f64> = serde_json::from_value(expected["token_logprobs"][0].clone()).unwrap();
    let words = ids.iter().map(|i| format!("t{i}")).collect::<Vec<_>>().join(" ");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, &words).unwrap();
    let args = EvalArgs::Perplexity { model: dir, text: file, max_length: 64 };
    let EvalResult::Perplexity { tokens, bytes, loss, perplexity, .. } = run(&args).unwrap() else { panic!() };
    assert_eq!((tokens, bytes), (want.len(), words.len()));
    let mean = -want.iter().sum::<f64>() / want.len() as f64;
    assert!((loss - mean).abs() < 1e-4 * mean && (perplexity - mean.exp()).abs() < 1e-3 * mean.exp());
}

#[test]
fn a_policy_is_not_a_reward_model() {
    let comparisons = fixtures().join("oasst-en-ranked.jsonl");
    let args =
        serde_json::json!({ "kind": "reward", "model": fixtures().join("llama-tiny"), "comparisons": comparisons });
    let error = run(&serde_json::from_value(args).unwrap()).unwrap_err();
    assert!(error.to_string().contains("score.weight"), "{error}");
    let unknown = serde_json::json!({ "kind": "reward", "model": "x", "comparisons": "y", "typo": 1 });
    assert!(serde_json::from_value::<EvalArgs>(unknown).is_err());
}

#[test]
fn intervals_and_f1() {
    let (low, high) = wilson(8, 10);
    assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
    // Class 0: one of one said, two are: F1 2/3; class 1: two said, one is, one right: 2/3.
    assert!((macro_f1(&[0, 1, 1], &[0, 0, 1], 3) - 2.0 / 3.0).abs() < 1e-12);
}
