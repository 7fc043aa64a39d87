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
fn unsupported_configurations_are_refused() {
    for (name, changes, word) in [
        ("llama-tiny", json!({"rope_parameters": {"rope_type": "axial"}}), "longrope"),
        ("llama-tiny", json!({"rope_parameters": {"rope_type": "linear"}}), "factor"),
        ("llama-tiny", json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}), "short_factor"),
        ("llama-tiny", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("llama-tiny", json!({"model_type": "mixtral"}), "mixture of experts"),
        ("llama-tiny", json!({"model_type": "t5"}), "cross-attention"),
        ("families/gemma2", json!({"layer_types": ["chunked_attention", "x", "x", "x"]}), "chunked_attention"),
        ("families/gemma3", json!({"use_bidirectional_attention": true}), "both directions"),
        ("families/smollm3", json!({"no_rope_layers": [1, 2]}), "no_rope_layers"),
        ("families/modernbert", json!({"norm_bias": true}), "norm_bias"),
        ("llama-tiny", json!({"model_type": "mamba"}), "mamba"),
        ("llama-tiny", json!({"hidden_act": "quick_gelu"}), "quick_gelu"),
        ("llama-tiny", json!({"num_key_value_heads": 4}), "divide"),
        ("llama-tiny", json!({"vocab_size": -1}), "vocab_size"),
        ("llama-tiny", json!({"num_hidden_layers": 1e9}), "num_hidden_layers"),
        ("gpt2-tiny", json!({"scale_attn_weights": false}), "attention scaling"),
        ("bert-tiny", json!({"position_embedding_type": "relative_key"}), "relative_key"),
    ] {
        let error = model::ModelConfig::from_hf(&config(name, changes.clone()), None).unwrap_err().to_string();
        assert!(error.contains(word), "{changes}: {error}");
    }
}

/// A multimodal directory's text half, in the names of old and of new files; what is saved is a model of text alone.
#[test]
fn the_text_half_of_a_multimodal_model_loads() {
    let plain = load("families/gemma3");
    for prefix in ["language_model.model.", "model.language_model."] {
        let name = |k: &str| Some(k.replacen("model.", prefix, 1));
        let dir = rewritten("families/gemma3", name, DType::F32);
        let weights = dir.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let other = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        for vision in ["vision_tower.patch.weight", "model.vision_tower.patch.weight", "multi_modal_projector.w"] {
            tensors.insert(vision.into(), other.clone());
        }
        candle_core::safetensors::save(&tensors, &weights).unwrap();
        let mut text = config("families/gemma3", json!({}));
        text.as_object_mut().unwrap().remove("eos_token_id");
        let whole = json!({"model_type": "gemma3", "eos_token_id": [3, 7], "text_config": text, "vision_config": {}});
        std::fs::write(dir.path().join("config.json"), whole.to_string()).unwrap();
        let loaded = model::load(dir.path(), &Device::Cpu).unwrap();
        assert_same(&loaded.weights, &plain.weights);
        assert_eq!(loaded.config.eos_ids, [3, 7]);
        let out = tempfile::tempdir().unwrap();
        let (c, h, w) = (&loaded.config, &loaded.hf_config, &loaded.weights);
        model::save_dir(out.path(), c, h, w, loaded.tokenizer.as_ref(), None, None).unwrap();
        let saved: Value =
            serde_json::from_str(&std::fs::read_to_string(out.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(
            (&saved["model_type"], &saved["architectures"]),
            (&json!("gemma3_text"), &json!(["Gemma3ForCausalLM"]))
        );
        assert_same(&model::load(out.path(), &Device::Cpu).unwrap().weights, &plain.weights);
    }
}

/// `rope_scaling` of older files and `rope_parameters` of newer ones say the same, for every kind of scaling.
#[test]
fn every_scaling_reads_alike_from_old_and_new_files() {
    for name in [
        "llama-linear-rope",
        "llama-yarn",
        "llama3-rope",
        "llama-dynamic",
        "phi3-longrope",
        "phi4-mini",
        "qwen2-window",
    ] {
        let name = format!("families/{name}");
        let new = config(&name, json!({}));
        let mut old = new.clone();
        let map = old.as_object_mut().unwrap();
        let mut rope = map.remove("rope_parameters").unwrap();
        let fields = rope.as_object_mut().unwrap();
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = fields.remove(key) {
                map.insert(key.into(), value);
            }
        }
        let kind = fields.remove("rope_type").unwrap();
        fields.insert("type".into(), kind);
        map.insert("rope_scaling".into(), rope);
        let read = |config: &Value| model::ModelConfig::from_hf(config, None).unwrap();
        assert_eq!(read(&old), read(&new), "{name}");
        assert_ne!(read(&new).switches.rope_scaling, model::RopeScaling::None, "{name}");
    }
    // Gemma 3's older fields.
    let new = config("families/gemma3-scaled", json!({}));
    let old = json!({"rope_parameters": null, "layer_types": null, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
    let read = |config: &Value| model::ModelConfig::from_hf(config, None).unwrap();
    assert_eq!(read(&config("families/gemma3-scaled", old)), read(&new));
    let windows: Vec<_> = (0..4).map(|i| read(&new).layer(i).window).collect();
    assert_eq!(windows, [Some(5), None, Some(5), None]);
}

/// Files keep the names that transformers reads, whatever the models here call their parts.
#[test]
fn saved_files_have_the_names_of_their_family() {
    for (name, tensor, class) in [
        ("gpt-neox", "embed_out.weight", "GPTNeoXForCausalLM"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", "Phi3ForCausalLM"),
        ("gemma2", "model.layers.0.pre_feedforward_layernorm.weight", "Gemma2ForCausalLM"),
        ("smollm3", "model.embed_tokens.weight", "SmolLM3ForCausalLM"),
        ("roberta", "lm_head.layer_norm.weight", "RobertaForMaskedLM"),
        ("distilbert", "vocab_projector.bias", "DistilBertForMaskedLM"),
        ("modernbert", "decoder.bias", "ModernBertForMaskedLM"),
    ] {
        let loaded = load(&format!("families/{name}"));
        let out = tempfile::tempdir().unwrap();
        let (c, h, w) = (&loaded.config, &loaded.hf_config, &loaded.weights);
        model::save_dir(out.path(), c, h, w, loaded.tokenizer.as_ref(), None, None).unwrap();
        let saved: Value =
            serde_json::from_str(&std::fs::read_to_string(out.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(saved["architectures"], json!([class]));
        let names = |dir: &std::path::Path| -> std::collections::BTreeSet<String> {
            let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
            tensors.into_keys().collect()
        };
        let saved = names(out.path());
        assert!(saved.contains(tensor), "{name}: {saved:?}");
        assert_eq!(saved, names(&fixture(&format!("families/{name}"))), "{name}");
    }
}
