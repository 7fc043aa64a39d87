//! A model that was saved is the model that was loaded, bit for bit.

use candle_core::{Device, Tensor};
use instructd::model;
use serde_json::{Value, json};
use sha2::Digest;

use super::super::support::{DECODERS, ENCODERS, fixture, smollm2};
use super::fixtures::assert_same;

fn save(loaded: &model::Loaded, dir: &std::path::Path) -> String {
    model::save_dir(
        dir,
        &loaded.config,
        &loaded.hf_config,
        &loaded.weights,
        loaded.tokenizer.as_ref(),
        loaded.chat_template.as_deref(),
        loaded.instructd.as_ref(),
    )
    .unwrap()
}

fn read_json(path: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn save_then_load_is_bit_identical() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let first = model::load(&fixture(name), &Device::Cpu).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sha = save(&first, dir.path());
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(sha, hex::encode(sha2::Sha256::digest(&bytes)), "{name}");
        let second = model::load(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(first.config, second.config, "{name}");
        assert_same(&first.weights, &second.weights);
        let ids = |m: &model::Loaded| m.tokenizer.as_ref().unwrap().encode("t5 t77 t3", true, false).unwrap();
        assert_eq!(ids(&first), ids(&second), "{name}");
        // The same weights give the same file, and no half-written ones stay behind.
        let again = tempfile::tempdir().unwrap();
        assert_eq!(sha, save(&second, again.path()), "{name}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|f| !f.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }
}

#[test]
fn a_saved_reward_model_states_its_kind() {
    let mut loaded = model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let head = Tensor::arange(0f32, 48., &Device::Cpu).unwrap().reshape((1, 48)).unwrap();
    loaded.weights.insert("score.weight".into(), head);
    loaded.instructd = Some(json!({"kind": "reward", "reward": {"gain": 2.0, "bias": -0.5}}));
    let dir = tempfile::tempdir().unwrap();
    save(&loaded, dir.path());
    let config = read_json(&dir.path().join("config.json"));
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "LABEL_0"}));
    let again = model::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(again.instructd, loaded.instructd);
    assert_same(&again.weights, &loaded.weights);
}

#[test]
fn a_tied_output_layer_is_left_out() {
    let mut loaded = model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let copy = loaded.weights["model.embed_tokens.weight"].clone();
    loaded.weights.insert("lm_head.weight".into(), copy);
    let dir = tempfile::tempdir().unwrap();
    save(&loaded, dir.path());
    assert!(!model::load(dir.path(), &Device::Cpu).unwrap().weights.contains_key("lm_head.weight"));
}

#[test]
fn a_gguf_becomes_a_hugging_face_directory() {
    let Some(path) = smollm2() else { return };
    let first = model::load(&path, &Device::Cpu).unwrap();
    assert_eq!((first.config.n_layers, first.config.n_heads, first.config.n_kv_heads), (30, 9, 3));
    assert_eq!(first.config.norm_eps, 1e-5);
    assert_eq!(
        (first.config.bos_id, first.config.eos_ids.as_slice(), first.config.pad_id),
        (Some(1), &[2][..], Some(2))
    );
    assert!(first.config.tie_embeddings);
    let dir = tempfile::tempdir().unwrap();
    save(&first, dir.path());
    let config = read_json(&dir.path().join("config.json"));
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(config["rope_theta"], json!(100_000.0));
    let tokenizer = read_json(&dir.path().join("tokenizer_config.json"));
    assert_eq!((&tokenizer["bos_token"], &tokenizer["eos_token"]), (&json!("<|im_start|>"), &json!("<|im_end|>")));
    let second = model::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(first.config, second.config);
    assert_eq!(first.chat_template, second.chat_template);
    assert_same(&first.weights, &second.weights);
    let ids = |m: &model::Loaded| m.tokenizer.as_ref().unwrap().encode("Emoji 😀 2024 <|im_end|>", true, true).unwrap();
    assert_eq!(ids(&first), ids(&second));
}

/// The q rows that the raw accessor hands out are those of the dequantised tensor.
#[test]
fn raw_gguf_tensors_have_hugging_face_rows() {
    let Some(path) = smollm2() else { return };
    let (_, raw) = model::gguf::open_raw(&path).unwrap().into_parts();
    let all = model::load(&path, &Device::Cpu).unwrap().weights;
    assert_eq!(raw.iter().count(), 272);
    let name = "model.layers.3.self_attn.q_proj.weight";
    let bytes = raw.bytes(name).unwrap();
    assert_eq!(bytes.len(), 576 * 576 / 32 * 20);
    let mut q = vec![0f32; 576 * 576];
    instructd::ops::blocks::dequantize(&bytes, instructd::ops::blocks::BlockType::Q4_1, &mut q);
    assert_eq!(q, all[name].flatten_all().unwrap().to_vec1::<f32>().unwrap());
}
