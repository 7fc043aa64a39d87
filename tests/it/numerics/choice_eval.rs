//! `eval` of kind `choice` against naive forward passes: each candidate alone, from scratch.

use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::eval::choices::decide;
use instructd::eval::run::{EvalArgs, EvalResult, run};
use instructd::generation::score::{Continuation, ContinuationScorer};
use instructd::model::adapters::soft_prompt::{SoftPrompt, SoftPromptInfo};
use instructd::model::{Decoder, PackedBatch, Purpose, load};
use serde_json::{Value, json};

use crate::support::{fixture, noise};

/// log p of the tokens from `from` on, by one forward pass.
fn naive(decoder: &Decoder, soft: Option<&Tensor>, ids: &[u32], from: usize) -> Vec<f32> {
    let batch = PackedBatch::new(&[ids]);
    let (hidden, shift) = match soft {
        Some(soft) => (decoder.forward_soft(soft, &batch).unwrap(), soft.dim(0).unwrap()),
        None => (decoder.forward(&batch).unwrap(), 0),
    };
    let rows = hidden.narrow(0, shift + from - 1, ids.len() - from).unwrap();
    decoder.token_logprobs(&rows, &ids[from..], 1.0).unwrap().logprobs.to_vec1().unwrap()
}

#[test]
fn the_scorer_shares_prefixes_and_changes_no_bit() {
    for name in ["llama-tiny", "gpt2-tiny"] {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
        let vectors = Tensor::from_vec(noise(5 * 48, 2), (5, 48), &Device::Cpu).unwrap();
        for soft in [None, Some(vectors)] {
            let mut scorer = ContinuationScorer::new(&decoder, soft.clone(), 4).unwrap();
            let prefix: Vec<u32> = (0..19).map(|i| (i * 7 + 2) % 96).collect();
            for kept in [0, 1, 16, 19] {
                scorer.set_prefix(&prefix[..kept]).unwrap();
                for own in [1usize, 5, 17] {
                    let prompt: Vec<u32> = prefix.iter().copied().chain((0..own as u32).map(|i| i * 5 + 1)).collect();
                    let with = |tail: &[u32]| [prompt.as_slice(), tail].concat();
                    let n = prompt.len();
                    let sequences: Vec<Continuation> =
                        [(with(&[7]), n), (with(&[9]), n), (with(&[7, 8, 20]), n), (with(&[30, 31]), n - 1)]
                            .map(|(ids, from)| Continuation { ids, from })
                            .to_vec();
                    let scores = scorer.score(&sequences).unwrap();
                    for (s, got) in sequences.iter().zip(&scores) {
                        assert_eq!(got, &naive(&decoder, soft.as_ref(), &s.ids, s.from), "{name} {kept} {own}");
                    }
                    let whole = Continuation { ids: with(&[3, 4]), from: 1 };
                    let score = &scorer.score(std::slice::from_ref(&whole)).unwrap()[0];
                    assert_eq!(score, &naive(&decoder, soft.as_ref(), &whole.ids, 1));
                }
            }
            assert!(scorer.score(&[Continuation { ids: vec![1], from: 1 }]).is_err());
        }
    }
}

#[test]
fn texts_that_do_not_fit_the_model_are_refused() {
    for name in ["llama-tiny", "gpt2-tiny"] {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
        let mut scorer = ContinuationScorer::new(&decoder, None, 4).unwrap();
        let most = loaded.config.max_positions;
        let long = |n: usize| Continuation { ids: (0..n).map(|i| i as u32 % 90).collect(), from: n - 1 };
        // The last token is not fed.
        assert!(scorer.score(&[long(most + 1)]).is_ok(), "{name}");
        for refused in [scorer.score(&[long(most + 2)]).map(drop), scorer.set_prefix(&long(most + 1).ids)] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(&format!("exceed the model's {most} positions")), "{name}: {error}");
        }
    }
}

fn words(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|w| w[1..].parse().unwrap()).collect()
}

#[test]
fn accuracy_is_that_of_naive_scores() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    let rows: Vec<(String, &str)> = (0..30u32)
        .map(|i| {
            (format!("t{} t{} t{}", 3 + i, 3 + i * 7 % 90, 3 + i * 31 % 90), if i % 3 == 0 { "good" } else { "bad" })
        })
        .collect();
    let lines: String = rows.iter().map(|(t, l)| format!("{}\n", json!({"text": t, "label": l}))).collect();
    std::fs::write(&data, lines).unwrap();
    let vectors = Tensor::from_vec(noise(4 * 48, 8), (4, 48), &Device::Cpu).unwrap();
    let info = SoftPromptInfo { base_model: "x".into(), base_sha256: String::new(), n_tokens: 4, hidden_size: 48 };
    let adapter = SoftPrompt { info, vectors: vectors.clone() };
    adapter.save(&dir.path().join("soft")).unwrap();
    let args = json!({
        "kind": "choice", "data": data, "template": "t90 {input} t91 {label}", "separator": " t92 ",
        "verbalizers": {"good": ["t10", "t11 t12"], "bad": ["t20"]}, "shots": [0, 2],
        "content_free": ["t50", "t51 t52"], "seed": 5,
        "systems": [
            {"name": "tiny", "model": fixture("llama-tiny")},
            {"name": "tuned", "model": fixture("llama-tiny"), "prompt_adapter": dir.path().join("soft"), "shots": [0]},
        ],
    });
    let args: EvalArgs = serde_json::from_value(args).unwrap();
    let EvalResult::Choice(table) = run(&args).unwrap() else { panic!("a table") };
    assert_eq!(table.labels, ["bad", "good"]);
    let of = |system: &str, shots: usize, calibrated: bool| {
        table.rows.iter().find(|r| (r.system.as_str(), r.shots, r.calibrated) == (system, shots, calibrated)).unwrap()
    };
    assert_eq!(table.rows.len(), 1 + 4 + 2);
    let majority = of("always the same", 0, false);
    assert_eq!((majority.n, majority.correct), (28, 19), "one example of each label is kept aside");
    assert!((majority.balanced_accuracy - 0.5).abs() < 1e-12);

    // Which rows are examples is the run's own choice; zero-shot figures need only the tested rows, and those
    // are the same for every system: count over all rows, and take the two examples off both ways.
    let loaded = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    for (system, soft) in [("tiny", None), ("tuned", Some(&vectors))] {
        let scores = |input: &str| -> Vec<Vec<f64>> {
            [vec!["t20"], vec!["t10", "t11 t12"]]
                .iter()
                .map(|of| {
                    let score = |word: &&str| {
                        let ids = words(&format!("t90 {input} t91 {word}"));
                        let from = ids.len() - words(word).len();
                        naive(&decoder, soft, &ids, from).iter().map(|l| f64::from(*l)).sum::<f64>()
                    };
                    of.iter().map(score).collect()
                })
                .collect()
        };
        let free = [scores("t50"), scores("t51 t52")];
        for (calibrated, free) in [(false, &free[..0]), (true, &free[..])] {
            let right = rows
                .iter()
                .filter(|(text, label)| ["bad", "good"][decide(&scores(text), free)[0].index] == *label)
                .count();
            let got = of(system, 0, calibrated);
            assert!((right - 2..=right).contains(&got.correct), "{system} {calibrated}: {right} and {}", got.correct);
            assert!(got.low < got.accuracy && got.accuracy < got.high);
        }
    }
    assert!(
        table.markdown.lines().count() == 2 + table.rows.len() && table.markdown.contains("| tuned | soft prompt | 0")
    );
}

#[test]
fn bad_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("d.jsonl");
    std::fs::write(&data, "{\"text\": \"t1\", \"label\": \"a\"}\n{\"text\": \"t2\", \"label\": \"b\"}\n").unwrap();
    let fails = |more: Value, data: &Path| {
        let mut args = json!({"kind": "choice", "data": data, "template": "{input} t1 {label}",
            "verbalizers": {"a": ["t5"], "b": ["t6"]}, "systems": [{"name": "m", "model": fixture("llama-tiny")}]});
        for (key, value) in more.as_object().unwrap() {
            args[key] = value.clone();
        }
        match serde_json::from_value::<EvalArgs>(args) {
            Ok(args) => format!("{:#}", run(&args).unwrap_err()),
            Err(e) => e.to_string(),
        }
    };
    for (more, part) in [
        (json!({"systems": []}), "systems"),
        (json!({"template": null}), "template"),
        (json!({"template": "{input}"}), "{label}"),
        (json!({"verbalizers": {"a": ["t5"]}}), "'b' has no words"),
        (json!({"shots": [2]}), "no rows are left"),
        (json!({"shots": [5]}), "only 2 rows"),
        (json!({"calibrated": []}), "calibrated"),
        (json!({"typo": 1}), "typo"),
        (json!({"text_field": "no"}), "no"),
        (json!({"systems": [{"name": "m", "model": "/nowhere"}]}), "system m"),
    ] {
        let error = fails(more.clone(), &data);
        assert!(error.contains(part), "{more}: {error}");
    }
    assert!(fails(json!({}), Path::new("/nowhere.jsonl")).contains("nowhere"));
}
