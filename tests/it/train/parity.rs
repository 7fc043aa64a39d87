//! Pretraining against PyTorch: the same weights, text, order and masks give the same losses over a whole run.
//! The values are made by tests/fixtures/make_pretrain_fixture.py.

use std::path::Path;

use serde_json::{Value, json};

use crate::loop_closes::world::train;
use crate::support::{copy_dir, fixture};

fn check(recipe: &str, model: &Path, expected: &Value) {
    let out = tempfile::tempdir().unwrap();
    let mut args = expected["args"].clone();
    for (key, value) in [
        ("model", json!(model)),
        ("texts", json!([fixture("pretrain/text.txt")])),
        ("output_dir", json!(out.path())),
        ("device", json!("cpu")),
    ] {
        args[key] = value;
    }
    let (recorder, _) = train(recipe, &args);
    for (metric, name, bound) in [("loss", "losses", 1e-3), ("grad_norm", "grad_norms", 2e-3)] {
        let want: Vec<f64> = expected[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let got = recorder.curve(metric);
        assert_eq!(got.len(), want.len());
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        println!("{recipe} {metric}: worst difference {worst:.1e} over {} steps", want.len());
        assert!(worst < bound, "{recipe} {metric}: {got:?}, PyTorch {want:?}");
    }
}

#[test]
fn fifty_steps_of_gpt2_and_twenty_of_bert_match_pytorch() {
    let text = std::fs::read_to_string(fixture("pretrain/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    check("pretrain", &fixture("gpt2-tiny"), &expected["pretrain"]);
    let bert = copy_dir(&fixture("bert-tiny"));
    let roles = json!({"cls_token": "t1", "sep_token": "t2", "mask_token": "t3"});
    std::fs::write(bert.path().join("tokenizer_config.json"), roles.to_string()).unwrap();
    check("mlm", bert.path(), &expected["mlm"]);
}
