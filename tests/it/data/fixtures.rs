//! Every published form of a model loads under the same names with the same values.

use candle_core::{DType, Device, Tensor};
use instructd::model::{self, Activation, Arch, PositionKind, Weights};
use serde_json::{Value, json};

use super::super::support::{copy_dir, fixture};

fn load(name: &str) -> model::Loaded {
    model::load(&fixture(name), &Device::Cpu).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Names, shapes and bits are the same.
pub fn assert_same(a: &Weights, b: &Weights) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in a {
        assert_eq!(tensor.dims(), b[name].dims(), "{name}");
        let bits = |t: &Tensor| -> Vec<u32> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(tensor), bits(&b[name]), "{name}");
    }
}

#[test]
fn all_fixtures_load() {
    let gpt2 = load("gpt2-tiny");
    assert_eq!(gpt2.config.arch, Arch::Gpt2);
    assert_eq!((gpt2.config.vocab_size, gpt2.config.hidden_size, gpt2.config.intermediate_size), (96, 48, 192));
    assert_eq!((gpt2.config.n_heads, gpt2.config.head_dim, gpt2.config.max_positions), (4, 12, 64));
    assert_eq!((gpt2.config.activation, gpt2.config.position), (Activation::GeluTanh, PositionKind::Learned));
    assert!(gpt2.config.tie_embeddings);
    assert_eq!(gpt2.config.eos_ids, [0]);
    assert_eq!(gpt2.weights["transformer.h.1.attn.c_attn.weight"].dims(), [48, 144]);

    let llama = load("llama-tiny");
    assert_eq!((llama.config.n_heads, llama.config.n_kv_heads, llama.config.head_dim), (6, 2, 8));
    assert_eq!(llama.config.position, PositionKind::Rope { theta: 10_000.0 });
    assert_eq!((llama.config.bos_id, llama.config.eos_ids.as_slice()), (Some(1), &[2][..]));
    assert!(!llama.config.tie_embeddings && llama.weights.contains_key("lm_head.weight"));

    let tied = load("llama-tied-tiny");
    assert_eq!(tied.config.position, PositionKind::Rope { theta: 100_000.0 });
    assert!(tied.config.tie_embeddings && !tied.weights.contains_key("lm_head.weight"));

    let qwen = load("qwen2-tiny");
    assert_eq!((qwen.config.arch, qwen.config.qkv_bias), (Arch::Qwen2, true));
    assert_eq!(qwen.weights["model.layers.1.self_attn.k_proj.bias"].dims(), [24]);
    assert!(qwen.config.eos_ids.is_empty());

    let bert = load("bert-tiny");
    assert_eq!((bert.config.arch, bert.config.type_vocab_size), (Arch::Bert, 2));
    assert_eq!((bert.config.activation, bert.config.pad_id), (Activation::GeluErf, Some(0)));
    assert_eq!(bert.config.norm_eps, 1e-12);

    for model in [&gpt2, &llama, &tied, &qwen, &bert] {
        assert!(model.tokenizer.is_some());
        assert!(model.weights.values().all(|t| t.dtype() == DType::F32));
    }
}

/// Rewrites the weights of a copied fixture through `change`.
fn rewritten(name: &str, change: impl Fn(&str) -> Option<String>, dtype: DType) -> tempfile::TempDir {
    let dir = copy_dir(&fixture(name));
    let path = dir.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let renamed: std::collections::HashMap<String, Tensor> =
        tensors.into_iter().filter_map(|(k, t)| Some((change(&k)?, t.to_dtype(dtype).unwrap()))).collect();
    candle_core::safetensors::save(&renamed, &path).unwrap();
    dir
}

#[test]
fn names_without_prefix_are_normalised() {
    for (name, prefix) in [("gpt2-tiny", "transformer."), ("llama-tiny", "model."), ("bert-tiny", "bert.")] {
        let dir = rewritten(name, |k| Some(k.strip_prefix(prefix).unwrap_or(k).to_owned()), DType::F32);
        let bare = model::load(dir.path(), &Device::Cpu).unwrap();
        assert_same(&bare.weights, &load(name).weights);
    }
}

#[test]
fn half_precision_is_widened() {
    for dtype in [DType::F16, DType::BF16] {
        let dir = rewritten("llama-tiny", |k| Some(k.to_owned()), dtype);
        let loaded = model::load(dir.path(), &Device::Cpu).unwrap();
        let expected: Weights = load("llama-tiny")
            .weights
            .into_iter()
            .map(|(k, t)| (k, t.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()))
            .collect();
        assert_same(&loaded.weights, &expected);
    }
}

#[test]
fn shards_load_as_one() {
    let dir = copy_dir(&fixture("llama-tiny"));
    let single = dir.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&single, &Device::Cpu).unwrap();
    std::fs::remove_file(&single).unwrap();
    let mut shards = [std::collections::HashMap::new(), std::collections::HashMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", i % 2 + 1)));
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        let path = dir.path().join(format!("model-0000{}-of-00002.safetensors", i + 1));
        candle_core::safetensors::save(shard, path).unwrap();
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let loaded = model::load(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(loaded.source.weight_files.len(), 2);
    assert_same(&loaded.weights, &load("llama-tiny").weights);

    std::fs::write(&index, r#"{"weight_map": {"a": "../model.safetensors"}}"#).unwrap();
    let error = model::load(dir.path(), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("plain file name"), "{error}");
}

/// The fixture's config.json with changes.
fn config(name: &str, changes: Value) -> Value {
    let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn old_and_new_rope_fields_mean_the_same() {
    let old = config("llama-tiny", json!({"rope_parameters": null, "rope_theta": 5e5}));
    let parsed = model::ModelConfig::from_hf(&old, None).unwrap();
    assert_eq!(parsed.position, PositionKind::Rope { theta: 5e5 });
    let eos = model::ModelConfig::from_hf(&old, Some(&json!({"eos_token_id": [7, 2, 9]}))).unwrap().eos_ids;
    assert_eq!(eos, [2, 7, 9]);
}

#[test]
fn what_would_be_computed_wrongly_is_refused() {
    for (name, changes, word) in [
        ("llama-tiny", json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}), "rotary scaling"),
        ("llama-tiny", json!({"mlp_bias": true}), "mlp_bias"),
        ("llama-tiny", json!({"model_type": "mamba"}), "mamba"),
        ("llama-tiny", json!({"hidden_act": "relu"}), "relu"),
        ("llama-tiny", json!({"num_key_value_heads": 4}), "divide"),
        ("llama-tiny", json!({"vocab_size": -1}), "vocab_size"),
        ("llama-tiny", json!({"num_hidden_layers": 1e9}), "num_hidden_layers"),
        ("qwen2-tiny", json!({"use_sliding_window": true, "sliding_window": 8}), "sliding-window"),
        ("gpt2-tiny", json!({"scale_attn_weights": false}), "attention scaling"),
        ("bert-tiny", json!({"position_embedding_type": "relative_key"}), "relative_key"),
    ] {
        let error = model::ModelConfig::from_hf(&config(name, changes.clone()), None).unwrap_err().to_string();
        assert!(error.contains(word), "{changes}: {error}");
    }
}
