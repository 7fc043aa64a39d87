//! `/v1/attention` and `/v1/plan`.

use candle_core::Device;
use instructd::domain::ModelKind;
use instructd::engine::attention_maps;
use instructd::model::{self, Decoder, Purpose};
use serde_json::json;

use super::client::{Server, version};
use crate::support::fixture;

#[tokio::test(flavor = "multi_thread")]
async fn maps_of_a_decoder_and_of_an_encoder() {
    let server = Server::serving("llama-tiny").await;
    let mut encoder = version("bert", ModelKind::Encoder, None);
    encoder.artifact_uri = fixture("bert-tiny").display().to_string();
    server.services.store.models().put(encoder).await.unwrap();
    let ask = async |body| server.open_post("/v1/attention", body).await;
    let answer = ask(json!({"text": "t5 t9 t2 t5"})).await.expect(200).json();
    assert_eq!((&answer["causal"], &answer["kind"]), (&json!(true), &json!("policy")));
    assert_eq!((&answer["tokens"][1], &answer["n_heads"], &answer["n_layers"]), (&json!(" t9"), &json!(6), &json!(2)));
    assert_eq!(answer["bytes"][1], json!(b" t9"));
    let loaded = model::load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let maps = attention_maps::of_decoder(&decoder, &[5, 9, 2, 5]).unwrap();
    for layer in 0..2 {
        for head in 0..6 {
            for from in 0..4 {
                let got = &answer["maps"][layer]["heads"][head][from];
                for (to, want) in maps.row(layer, head, from).iter().enumerate() {
                    assert!((got[to].as_f64().unwrap() - f64::from(*want)).abs() < 1e-5);
                }
            }
        }
    }
    let full = ask(json!({"text": "t5 t9 t2 t5", "model": "bert", "layers": [1]})).await.expect(200).json();
    assert_eq!((&full["causal"], &full["maps"][0]["layer"]), (&json!(false), &json!(1)));
    assert!(full["maps"][0]["heads"][0][0][3].as_f64().unwrap() > 0.0, "an encoder looks ahead");
    assert_eq!(full["maps"].as_array().unwrap().len(), 1);
    for (body, status, param) in [
        (json!({}), 400, "text"),
        (json!({"text": ""}), 400, "text"),
        (json!({"text": "t1 ".repeat(65)}), 400, "text"),
        (json!({"text": "x".repeat(5000)}), 400, "text"),
        (json!({"text": "t1", "layers": [2]}), 400, "layers[0]"),
        (json!({"text": "t1", "model": "nope"}), 404, "model"),
        (json!({"text": "t1", "head": 0}), 400, "head"),
    ] {
        let refused = ask(body.clone()).await;
        let got = (refused.status.as_u16(), refused.param());
        assert_eq!((got.0, got.1.as_deref()), (status, Some(param)), "{body}: {}", refused.text);
    }
    ask(json!({"text": "t1", "model": "encoder"})).await.expect(409);
}

#[tokio::test]
async fn plans_by_query() {
    let server = Server::start().await;
    let get = async |query: &str| server.call("GET", &format!("/v1/plan{query}"), &[], None).await;
    let list = get("").await.expect(200).json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"gpt2-xl") && names.contains(&"gpt3-175b"), "{names:?}");
    let plan = get("?preset=gpt2-xl&memory_gib=24&batch=4&context=512").await.expect(200).json();
    assert_eq!(plan["preset"]["parameters"], 1_557_611_200_u64);
    assert_eq!(plan["plan"]["serve"][1]["kv_bytes"], 4 * 512 * 2 * 48 * 1600 * 2);
    for (query, param) in [
        ("?preset=gpt5", "preset"),
        ("?preset=gpt2&context=1025", "context"),
        ("?preset=gpt2&tflops=-1", "tflops"),
        ("?preset=gpt2&batch=x", "batch"),
        ("?preset=gpt2&colour=red", "colour"),
    ] {
        let refused = get(query).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some(param), "{query}: {}", refused.text);
    }
}
