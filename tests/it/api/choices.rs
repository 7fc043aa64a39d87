//! `/v1/choices` against an independent sum over `/v1/completions` with `echo`, on a real (tiny) model.

use instructd::domain::ModelKind;
use instructd::model::SoftPrompt;
use instructd::model::adapters::soft_prompt::SoftPromptInfo;
use serde_json::{Value, json};

use super::client::{Server, version};
use crate::support::noise;

/// Log-probs of the last `n` tokens of `text`, by the completions route.
async fn echoed(server: &Server, text: &str, n: usize, adapter: Option<&str>) -> f64 {
    let body = json!({"prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0, "prompt_adapter": adapter});
    let answer = server.open_post("/v1/completions", body).await.expect(200).json();
    let all = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    all[all.len() - n..].iter().map(|l| l.as_f64().unwrap()).sum()
}

async fn choices(server: &Server, body: Value) -> Value {
    server.open_post("/v1/choices", body).await.expect(200).json()
}

/// The entry of one label.
fn entry<'a>(answer: &'a Value, label: &str) -> &'a Value {
    answer["choices"].as_array().unwrap().iter().find(|c| c["label"] == label).unwrap()
}

fn close(a: &Value, b: f64) {
    let a = a.as_f64().unwrap();
    assert!((a - b).abs() < 1e-4, "{a} and {b}");
}

const PROMPT: &str = "t5 t9 t2 t40 t7 t31 t18 t3 t77 t60 t12 t8 t8 t41 t90 t33 t21 t2 t6 t50 t51 t52 t53 t54";

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_the_echoed_logprobs() {
    let server = Server::serving("llama-tiny").await;
    let texts = [(" t4", 1), (" t17 t18", 2), (" t4 t4 t9", 3)];
    let body = |normalize: &str| json!({"prompt": PROMPT, "choices": texts.map(|t| t.0), "normalize": normalize, "logprobs": true});
    let sums = futures::future::join_all(texts.map(|(text, n)| {
        let server = &server;
        async move { echoed(server, &format!("{PROMPT}{text}"), n, None).await }
    }))
    .await;
    for (normalize, size) in [("none", None), ("tokens", Some([1.0, 2.0, 3.0])), ("bytes", Some([3.0, 8.0, 9.0]))] {
        let answer = choices(&server, body(normalize)).await;
        let scores: Vec<f64> = (0..3).map(|i| sums[i] / size.map_or(1.0, |s| s[i])).collect();
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        for (i, (text, n)) in texts.iter().enumerate() {
            let found = entry(&answer, text);
            close(&found["score"], scores[i]);
            close(&found["probability"], scores[i].exp() / total);
            close(&found["words"][0]["logprob"], sums[i]);
            close(&found["words"][0]["logprob_per_token"], sums[i] / *n as f64);
            assert_eq!(found["words"][0]["token_logprobs"].as_array().unwrap().len(), *n);
            assert_eq!((&found["index"], &found["calibration"]), (&json!(i), &Value::Null));
        }
        let ranked: Vec<f64> =
            answer["choices"].as_array().unwrap().iter().map(|c| c["score"].as_f64().unwrap()).collect();
        assert!(ranked.is_sorted_by(|a, b| a >= b), "{ranked:?}");
        assert_eq!(answer["answer"], answer["choices"][0]["label"]);
    }
    // Token ids ask the same question.
    let tokens = server.open_post("/tokenize", json!({"prompt": PROMPT})).await.expect(200).json();
    let by_ids = choices(&server, json!({"prompt": tokens["tokens"], "choices": texts.map(|t| t.0)})).await;
    close(&entry(&by_ids, " t4")["score"], sums[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_is_computed_once_for_all_candidates() {
    let server = Server::serving("llama-tiny").await;
    let engine = server.services.engine().unwrap();
    let prompt: Vec<u32> = (0..40).map(|i| (i * 13 + 1) % 96).collect();
    let texts: Vec<String> = (0..12).map(|i| format!("t{i}")).collect();
    choices(&server, json!({"prompt": prompt, "choices": texts})).await;
    // 40 once; then each candidate the 8 tokens after the last full page, and its own.
    assert_eq!(engine.stats().prompt_tokens, 40 + 12 * 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_in_the_middle_is_scored_by_the_whole_text() {
    let server = Server::serving("gpt2-tiny").await;
    let body = json!({"prompt": "t1 t2 t3 ____ t9 t10", "choices": ["t4", "t5 t6", "t7"]});
    let answer = choices(&server, body).await;
    for (word, n) in [("t4", 5), ("t5 t6", 6), ("t7", 5)] {
        close(&entry(&answer, word)["score"], echoed(&server, &format!("t1 t2 t3 {word} t9 t10"), n, None).await);
    }
    let alone = choices(&server, json!({"prompt": "t1 ____ t9", "choices": ["t4"]})).await;
    close(&alone["choices"][0]["score"], echoed(&server, "t1 t4 t9", 2, None).await);
    assert_eq!(alone["choices"][0]["probability"], 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_shot_calibrated_with_verbalizers() {
    let server = Server::serving("llama-tiny").await;
    let body = json!({
        "template": "t1 {input} t2 {label}", "instruction": "t90", "separator": " t3 ", "input": "t8 t9",
        "examples": [{"input": "t5", "label": "good"}, {"input": "t6 t7", "label": "bad"}],
        "verbalizers": {"good": ["t11", "t12 t13"], "bad": "t14"},
        "content_free": ["t50", "t51 t52"],
    });
    let answer = choices(&server, body).await;
    let shots = "t90 t3 t1 t5 t2 t11 t3 t1 t6 t7 t2 t14 t3";
    let mut scores = Vec::new();
    for (label, words) in [("good", vec![("t11", 1), ("t12 t13", 2)]), ("bad", vec![("t14", 1)])] {
        let mut of = Vec::new();
        for input in ["t8 t9", "t50", "t51 t52"] {
            let mut total = 0.0;
            for (word, n) in &words {
                total += echoed(&server, &format!("{shots} t1 {input} t2 {word}"), *n, None).await.exp();
            }
            of.push(total);
        }
        let offset = ((of[1] + of[2]) / 2.0).ln();
        close(&entry(&answer, label)["calibration"], offset);
        close(&entry(&answer, label)["score"], of[0].ln() - offset);
        assert_eq!(entry(&answer, label)["words"].as_array().unwrap().len(), words.len());
        scores.push(of[0].ln() - offset);
    }
    let probability = scores[0].exp() / (scores[0].exp() + scores[1].exp());
    close(&entry(&answer, "good")["probability"], probability);
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_prompts_by_name() {
    let server = Server::serving("llama-tiny").await;
    let store = &server.services.store;
    let base = store.models().find("base").await.unwrap().unwrap();
    for (name, sha256) in [("tuned", base.sha256.as_str()), ("stranger", "another model")] {
        let vectors = candle_core::Tensor::from_vec(noise(3 * 48, 1), (3, 48), &candle_core::Device::Cpu).unwrap();
        let info = SoftPromptInfo { base_model: "x".into(), base_sha256: sha256.into(), n_tokens: 3, hidden_size: 48 };
        let adapter = version(name, ModelKind::PromptAdapter, Some(&base));
        let dir = server.services.config.data_dir.join(&adapter.artifact_uri);
        SoftPrompt { info, vectors }.save(&dir).unwrap();
        store.models().put(adapter).await.unwrap();
    }
    let body = json!({"prompt": "t1 t2", "choices": [" t4", " t5"], "prompt_adapter": "tuned"});
    let answer = choices(&server, body.clone()).await;
    close(&entry(&answer, " t4")["score"], echoed(&server, "t1 t2 t4", 1, Some("tuned")).await);
    let bare = choices(&server, json!({"prompt": "t1 t2", "choices": [" t4", " t5"]})).await;
    assert_ne!(bare["choices"], answer["choices"]);
    // With a soft prompt before it, even the first token has a probability.
    choices(&server, json!({"prompt": "____ t2", "choices": ["t4", "t5"], "prompt_adapter": "tuned"})).await;
    for (adapter, status) in [("stranger", 400), ("base", 400), ("nope", 404)] {
        for path in ["/v1/choices", "/v1/completions"] {
            let mut body = body.clone();
            if path == "/v1/completions" {
                body.as_object_mut().unwrap().remove("choices");
            }
            body["prompt_adapter"] = json!(adapter);
            let refused = server.open_post(path, body).await.expect(status);
            assert_eq!(refused.param().as_deref(), Some("prompt_adapter"), "{}", refused.text);
        }
    }
    // The context is shorter by the soft prompt.
    let long = json!({"prompt": vec![1; 60], "max_tokens": 2, "prompt_adapter": "tuned"});
    assert_eq!(server.open_post("/v1/completions", long).await.expect(400).param().as_deref(), Some("max_tokens"));
    // The stored completion says which soft prompt wrote it.
    let wrote = json!({"prompt": "t1 t2", "max_tokens": 4, "prompt_adapter": "tuned", "ignore_eos": true});
    let wrote = server.open_post("/v1/completions", wrote).await.expect(200).json();
    let id = wrote["instructd"]["completion_ids"][0].as_str().unwrap().into();
    let stored = store.completions().get(&id).await.unwrap();
    let adapter = store.models().find("tuned").await.unwrap().unwrap();
    assert_eq!(stored.sampling["prompt_adapter"], json!(adapter.id));
}

#[tokio::test]
async fn bad_input() {
    let server = Server::start().await;
    let ab = json!(["a", "b"]);
    let many: Vec<String> = (0..257).map(|i| i.to_string()).collect();
    for (body, status, param) in [
        (json!({"choices": ab}), 400, "prompt"),
        (json!({"prompt": "x"}), 400, "choices"),
        (json!({"prompt": "x", "choices": []}), 400, "choices"),
        (json!({"prompt": "x", "choices": many}), 400, "choices"),
        (json!({"prompt": "x", "choices": ["a", "a"]}), 400, "choices[1]"),
        (json!({"prompt": "x", "choices": ["a", ""]}), 400, "choices[1]"),
        (json!({"prompt": "x", "choices": ["a", 3]}), 400, "choices[1]"),
        (json!({"prompt": "x", "choices": ab, "verbalizers": {"a": "b"}}), 400, "choices"),
        (json!({"prompt": "x", "verbalizers": {"a": []}}), 400, "verbalizers.a"),
        (json!({"prompt": "x", "verbalizers": {"a": [3]}}), 400, "verbalizers.a"),
        (json!({"prompt": "", "choices": ab}), 400, "prompt"),
        (json!({"prompt": 3, "choices": ab}), 400, "prompt"),
        (json!({"prompt": [1, "x"], "choices": ab}), 400, "prompt[1]"),
        (json!({"prompt": [1, 9999], "choices": ab}), 400, "prompt"),
        (json!({"prompt": "____ x", "choices": ab}), 400, "prompt"),
        (json!({"prompt": "x ____ y ____", "choices": ab}), 400, "prompt"),
        (json!({"prompt": "x".repeat(5000), "choices": ab}), 400, "prompt"),
        (json!({"prompt": "x", "messages": [], "choices": ab}), 400, "prompt"),
        (json!({"messages": [], "choices": ab}), 400, "messages"),
        (json!({"messages": [{"role": "assistant", "content": "x"}], "choices": ab}), 400, "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}], "choices": ab}), 400, "messages[0].role"),
        (json!({"template": "x", "input": "y", "choices": ab}), 400, "template"),
        (json!({"template": "{input} {label}", "choices": ab}), 400, "input"),
        (json!({"prompt": "x", "input": "y", "choices": ab}), 400, "input"),
        (json!({"prompt": "x", "instruction": "y", "choices": ab}), 400, "instruction"),
        (json!({"prompt": "x", "examples": [{"input": "a", "label": "a"}], "choices": ab}), 400, "examples"),
        (
            json!({"template": "{input} {label}", "input": "y", "choices": ab, "examples": [{"input": "a", "label": "c"}]}),
            400,
            "examples[0].label",
        ),
        (json!({"prompt": "x", "choices": ab, "normalize": "words"}), 400, "normalize"),
        (json!({"prompt": "x", "choices": ab, "content_free": []}), 400, "content_free"),
        (json!({"prompt": "x", "choices": ab, "content_free": [""]}), 400, "content_free"),
        (json!({"prompt": "x", "choices": ab, "calibrate": false, "content_free": ["N/A"]}), 400, "content_free"),
        (json!({"prompt": "x", "choices": ab, "model": "nope"}), 404, "model"),
        (json!({"prompt": "x", "choices": ab, "prompt_adapter": "nope"}), 404, "prompt_adapter"),
        (json!({"prompt": "x", "choices": ab, "temperature": 1}), 400, "temperature"),
    ] {
        let answer = server.open_post("/v1/choices", body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.param().as_deref()),
            (status, Some(param)),
            "{body}: {}",
            answer.text
        );
    }
    server.open_post("/v1/choices", json!({"prompt": "x", "choices": ab})).await.expect(200);
}
