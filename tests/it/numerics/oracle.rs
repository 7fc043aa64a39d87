//! Our decoders and encoders against those of candle-transformers, an implementation of its own: the logits behind
//! prefixes of a text, within 1e-4 of the largest. Families and switches that candle-transformers lacks or treats in
//! another way than transformers (windows and `query_pre_attn_scalar` of Gemma 2, all of Gemma 3, every scaling but
//! llama3's) are compared in `models` only.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as theirs;
use instructd::model::{Decoder, Encoder, PackedBatch, Purpose, load};
use serde_json::{Value, json};

use crate::support::{copy_into, fixtures};

/// Shorter than every window of the fixtures, where the windows are not what is compared.
const SHORT: usize = 8;
const LONG: usize = 24;

/// Ids that do not repeat in step with anything.
fn text(len: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i * 7 + i * 13 + 5) % (vocab - 4) + 3) as u32).collect()
}

/// The configuration with what newer versions of transformers have moved, at its older place.
fn config(dir: &Path) -> Value {
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let rope = config["rope_parameters"].clone();
    let full = if rope["full_attention"].is_object() { &rope["full_attention"] } else { &rope };
    for (key, value) in [
        ("rope_theta", full["rope_theta"].clone()),
        ("rope_local_base_freq", rope["sliding_attention"]["rope_theta"].clone()),
        ("sliding_window_pattern", config["_sliding_window_pattern"].clone()),
    ] {
        if config[key].is_null() && !value.is_null() {
            config[key] = value;
        }
    }
    if full["rope_type"] == "llama3" {
        config["rope_scaling"] = full.clone();
    }
    config
}

fn parse<T: serde::de::DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).unwrap()
}

fn weights(dir: &Path) -> VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn flat(logits: candle_core::Result<Tensor>) -> Vec<f32> {
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the logits behind prefixes of a text of `len` tokens; `forward` reads a prefix with a fresh cache.
fn agree(dir: &Path, len: usize, mut forward: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) {
    let (name, loaded) = (dir.display(), load(dir, &Device::Cpu).unwrap());
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let ids = text(len, loaded.config.vocab_size);
    let hidden = decoder.forward(&PackedBatch::new(std::slice::from_ref(&ids))).unwrap();
    for end in [1, 2, len / 2, len] {
        let row = Tensor::new(&[end as u32 - 1], &Device::Cpu).unwrap();
        let ours = flat(decoder.logits(&hidden.index_select(&row, 0).unwrap()));
        let prefix = Tensor::new(&ids[..end], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let want = flat(forward(&prefix));
        assert_eq!(ours.len(), want.len(), "{name}");
        let scale = want.iter().fold(0f32, |most, w| most.max(w.abs()));
        let far = ours.iter().zip(&want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(far <= 1e-4 * scale, "{name}, {end} tokens: {far} of {scale}");
    }
}

macro_rules! with_cache {
    ($dir:expr, $len:expr, $model:expr) => {{
        let mut model = $model;
        agree($dir, $len, |ids| {
            model.clear_kv_cache();
            model.forward(ids, 0)
        });
    }};
}

#[test]
fn llama_agrees_with_candle_transformers() {
    for name in ["llama-tiny", "llama-tied-tiny", "families/llama3-rope"] {
        let dir = fixtures().join(name);
        let config = parse::<theirs::llama::LlamaConfig>(config(&dir)).into_config(false);
        let model = theirs::llama::Llama::load(weights(&dir), &config).unwrap();
        agree(&dir, LONG, |ids| {
            let mut cache = theirs::llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            model.forward(ids, 0, &mut cache)
        });
    }
}

#[test]
fn qwen_agrees_with_candle_transformers() {
    let dir = &fixtures().join("qwen2-tiny");
    let mut given = config(dir);
    given["sliding_window"] = json!(4096);
    given["max_window_layers"] = json!(given["num_hidden_layers"]);
    with_cache!(dir, LONG, theirs::qwen2::ModelForCausalLM::new(&parse(given), weights(dir)).unwrap());
    let dir = &fixtures().join("families/qwen3");
    with_cache!(dir, LONG, theirs::qwen3::ModelForCausalLM::new(&parse(config(dir)), weights(dir)).unwrap());
}

/// A copy of a Gemma whose scores are scaled by the size of a head, as candle-transformers always scales them.
fn scaled_by_head(name: &str, place: &Path) -> PathBuf {
    let dir = place.join(name.rsplit('/').next().unwrap());
    copy_into(&fixtures().join(name), &dir);
    let mut config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["query_pre_attn_scalar"] = config["head_dim"].clone();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn gemma_agrees_with_candle_transformers() {
    let dir = &fixtures().join("families/gemma");
    with_cache!(dir, LONG, theirs::gemma::Model::new(false, &parse(config(dir)), weights(dir)).unwrap());
    let place = tempfile::tempdir().unwrap();
    let dir = &scaled_by_head("families/gemma2", place.path());
    with_cache!(dir, SHORT, theirs::gemma2::Model::new(false, &parse(config(dir)), weights(dir)).unwrap());
}

#[test]
fn mistral_phi_olmo_and_smollm_agree_with_candle_transformers() {
    let dir = &fixtures().join("families/mistral-window");
    with_cache!(dir, SHORT, theirs::mistral::Model::new(&parse(config(dir)), weights(dir)).unwrap());
    let dir = &fixtures().join("families/phi3");
    with_cache!(dir, LONG, theirs::phi3::Model::new(&parse(config(dir)), weights(dir)).unwrap());
    let dir = &fixtures().join("families/olmo2");
    with_cache!(dir, LONG, theirs::olmo2::Model::new(&parse(config(dir)), weights(dir)).unwrap());
    let dir = &fixtures().join("families/smollm3");
    with_cache!(dir, LONG, theirs::smol::smollm3::ModelForCausalLM::new(&parse(config(dir)), weights(dir)).unwrap());
}

#[test]
fn bert_agrees_with_candle_transformers() {
    let dir = fixtures().join("bert-tiny");
    let loaded = load(&dir, &Device::Cpu).unwrap();
    let encoder = Encoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let ids = text(LONG, loaded.config.vocab_size);
    let types: Vec<u32> = (0..LONG).map(|i| u32::from(i >= LONG / 2)).collect();
    let ours = flat(encoder.forward(&PackedBatch::new(std::slice::from_ref(&ids)), &types));
    let model = theirs::bert::BertModel::load(weights(&dir), &parse(config(&dir))).unwrap();
    let row = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let want = flat(model.forward(&row(&ids), &row(&types), None));
    assert_eq!(ours.len(), want.len());
    for (i, (a, b)) in ours.iter().zip(&want).enumerate() {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{i}: {a}, want {b}");
    }
}
