//! A real model: SmolLM2-135M-Instruct computed in f32 against transformers. Runs where
//! `INSTRUCTD_TEST_GGUF` names the file; prints a line and passes elsewhere.

use candle_core::{Device, Tensor};
use instructd::generation::sampling::logprob_and_top;
use instructd::generation::{GenParams, Warpers, generate};
use instructd::model::{Decoder, PackedBatch, Purpose, load};
use serde_json::Value;

use crate::support::fixtures;

#[test]
fn smollm2_matches_transformers() {
    let Some(path) = std::env::var_os("INSTRUCTD_TEST_GGUF") else {
        println!("skipped: INSTRUCTD_TEST_GGUF is not set");
        return;
    };
    let loaded = load(std::path::Path::new(&path), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let text = std::fs::read_to_string(fixtures().join("smollm2.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    for row in reference["rows"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(row["token_ids"].clone()).unwrap();
        let hidden = decoder.forward(&PackedBatch::new(&[&ids[..]])).unwrap();
        let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
        let logits: Vec<f32> = decoder.logits(&last).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let (_, top) = logprob_and_top(&logits, 0, 1.0, 5);
        for ((id, logprob), want) in top.iter().zip(row["next_top5"].as_array().unwrap()) {
            assert_eq!(u64::from(*id), want[0].as_u64().unwrap(), "{}", row["input"]);
            assert!((f64::from(*logprob) - want[1].as_f64().unwrap()).abs() < 2e-3, "{}: {top:?}", row["input"]);
        }
        let before: Vec<u32> = (0..ids.len() as u32 - 1).collect();
        let rows = hidden.index_select(&Tensor::new(before, &Device::Cpu).unwrap(), 0).unwrap();
        let got: Vec<f32> = decoder.token_logprobs(&rows, &ids[1..], 1.0).unwrap().logprobs.to_vec1().unwrap();
        for (g, w) in got.iter().zip(row["prompt_logprobs"].as_array().unwrap()) {
            assert!((f64::from(*g) - w.as_f64().unwrap()).abs() < 2e-3, "{}", row["input"]);
        }
        let want: Vec<u32> = serde_json::from_value(row["greedy_24"].clone()).unwrap();
        let warpers = Warpers { temperature: 0.0, ..Warpers::default() };
        let params = GenParams { max_new_tokens: want.len(), warpers, eos_ids: vec![], ..GenParams::default() };
        let sample = &generate(&decoder, &[ids], &params, &|| false).unwrap()[0];
        assert_eq!(sample.ids, want, "{}", row["input"]);
    }
}
