//! LoRA versions beside one base: the numbers of merged weights but for rounding, the same bits alone and in company,
//! and one copy of the base.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use candle_core::{Device, Tensor};
use instructd::domain::ModelVersion;
use instructd::engine::{EngineError, EngineOptions, GenerateRequest, Generator, LocalEngine, ModelFiles};
use instructd::model::adapters::{lora, peft};
use instructd::model::{self, LoraConfig, Weights};

use super::{on_device, params, request, run, version};
use crate::support::{fixture, noise};

/// Versions by their own paths, all trained from one.
#[derive(Debug)]
struct Files(HashMap<String, ModelVersion>);

#[async_trait]
impl ModelFiles for Files {
    async fn path(&self, version: &ModelVersion) -> Result<PathBuf, EngineError> {
        Ok(PathBuf::from(&version.artifact_uri))
    }

    async fn parent(&self, version: &ModelVersion) -> Option<ModelVersion> {
        self.0.get(version.parent_id.as_ref()?.as_str()).cloned()
    }
}

/// A version as a job publishes it: merged weights, and the adapter beside them.
fn published(base: &Path, dir: &Path, rank: usize, seed: u64) {
    let loaded = model::load(base, &Device::Cpu).unwrap();
    let config = LoraConfig { rank, alpha: 2.0 * rank as f64, targets: Vec::new() };
    let mut adapters = lora::init(&loaded.config, &config, &loaded.weights, seed).unwrap();
    let mut stream = seed;
    // B is zero at the start: as if it had been trained.
    for (_, b) in adapters.iter_mut().filter(|(name, _)| name.ends_with("lora_B.weight")) {
        stream += 1;
        let values = noise(b.elem_count(), stream).into_iter().map(|v| v * 0.05).collect::<Vec<_>>();
        *b = Tensor::from_vec(values, b.dims(), &Device::Cpu).unwrap();
    }
    let merged: Weights = lora::merge(&loaded.config, &config, &loaded.weights, &adapters).unwrap();
    peft::write(&dir.join(peft::FOLDER), &loaded.config, &config, &adapters, &loaded.weights, "base").unwrap();
    let (texts, template) = (loaded.tokenizer.as_ref(), loaded.chat_template.as_deref());
    model::save_dir(dir, &loaded.config, &loaded.hf_config, &merged, texts, template, None).unwrap();
}

/// A base and three versions that were trained from it, in `dir`.
pub(super) fn family(base: &Path, dir: &Path) -> Vec<ModelVersion> {
    let named = |id: &str, path: &Path| {
        let mut version = version(id, "llama-tiny");
        version.artifact_uri = path.display().to_string();
        version
    };
    let mut all = vec![named("b", base)];
    for (i, rank) in [4usize, 20, 1].into_iter().enumerate() {
        let path = dir.join(i.to_string());
        published(base, &path, rank, i as u64 + 1);
        let mut own = named(&format!("l{i}"), &path);
        own.parent_id = Some(all[0].id.clone());
        all.push(own);
    }
    all
}

/// Options of an engine that finds these versions.
pub(super) fn options(all: &[ModelVersion], share_base: bool) -> EngineOptions {
    let files = Files(all.iter().map(|v| (v.id.to_string(), v.clone())).collect());
    EngineOptions { share_base, files: Some(Arc::new(files)), ..EngineOptions::default() }
}

async fn engine(all: &[ModelVersion], share_base: bool, change: impl FnOnce(&mut EngineOptions)) -> Arc<LocalEngine> {
    let mut options = on_device(options(all, share_base));
    change(&mut options);
    let engine = LocalEngine::start(options).unwrap();
    // Adapters first: they bring their base with them.
    for version in all.iter().rev() {
        engine.load(version).await.unwrap();
    }
    engine.activate(&all[0].id).await.unwrap();
    engine
}

pub(super) fn ask(version: &ModelVersion, seed: u64, n: usize) -> GenerateRequest {
    let prompt: Vec<u32> = (0..23 + seed as u32 % 5).map(|i| (i * 7 + 3) % 90).collect();
    GenerateRequest { version: Some(version.id.clone()), ..request(prompt, n, params(seed, 7)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_give_the_results_of_merged_weights_in_any_batch() {
    for name in crate::support::DECODERS {
        let dir = tempfile::tempdir().unwrap();
        let all = family(&fixture(name), dir.path());
        let (merged, beside) = (engine(&all, false, |_| {}).await, engine(&all, true, |_| {}).await);
        let mut told = Vec::new();
        for version in &all {
            let echo = GenerateRequest { prompt_logprobs: Some(0), ..ask(version, 1, 1) };
            let of = |c: super::Collected| c.prompt.iter().filter_map(|t| t.logprob).collect::<Vec<_>>();
            let (want, got) = (of(run(&merged, echo.clone()).await), of(run(&beside, echo).await));
            assert_eq!(want.len(), got.len());
            for (w, g) in want.iter().zip(&got) {
                assert!((w - g).abs() < 2e-4, "{name} {}: {w} merged, {g} beside", version.id);
            }
            if version.id == all[0].id {
                assert_eq!(want, got, "{name}: the base alone has the bits that it has without adapters");
            }
            told.push(got);
        }
        assert!(told[1] != told[0] && told[2] != told[1], "{name}: the adapters do something");
        // Alone, and all at once in small pieces with little room: the same bits.
        let mut alone = Vec::new();
        for (i, version) in all.iter().cycle().take(12).enumerate() {
            alone.push(run(&beside, ask(version, i as u64, 2)).await);
        }
        let crowded = engine(&all, true, |o| (o.kv_tokens, o.prefill_tokens, o.max_running) = (400, 7, 9)).await;
        for round in 0..2 {
            let asked = all.iter().cycle().take(12).enumerate();
            let asked = asked.map(|(i, version)| run(&crowded, ask(version, i as u64, 2)));
            for (i, got) in futures::future::join_all(asked).await.into_iter().enumerate() {
                assert_eq!(got, alone[i], "{name}, request {i}, round {round}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_an_adapter_of_its_parent_is_loaded_completely() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = family(&fixture("llama-tiny"), dir.path());
    // Another model's child: its configuration differs.
    let other = version("other", "llama-tied-tiny");
    all[1].parent_id = Some(other.id.clone());
    all.push(other);
    // No adapter at all.
    std::fs::remove_dir_all(dir.path().join("1").join(peft::FOLDER)).unwrap();
    let (merged, beside) = (engine(&all, false, |_| {}).await, engine(&all, true, |_| {}).await);
    for version in &all {
        let exact = run(&merged, ask(version, 3, 1)).await == run(&beside, ask(version, 3, 1)).await;
        assert_eq!(exact, version.id.as_str() != "l2", "{}: only l2 stands beside its base", version.id);
    }
    // A damaged adapter is an error, not a model without it.
    std::fs::write(dir.path().join("2").join(peft::FOLDER).join("adapter_model.safetensors"), b"nonsense").unwrap();
    let error =
        LocalEngine::start(on_device(options(&all, true))).unwrap().load(&all[3]).await.unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

/// A model that is large beside what else a process holds: 52 MB of f32.
fn wide(dir: &Path) {
    let tiny = fixture("llama-tiny");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(tiny.join("config.json")).unwrap()).unwrap();
    for (key, value) in [("hidden_size", 384), ("intermediate_size", 1024), ("num_hidden_layers", 8), ("head_dim", 64)]
    {
        config[key] = value.into();
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(tiny.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    std::fs::copy(tiny.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let described = model::describe(dir).unwrap();
    let values = |stream, n| noise(n, stream + 1).into_iter().map(f64::from).collect();
    let weights = model::init::init(&described.config, model::init::Heads::Backbone, &Device::Cpu, values).unwrap();
    model::save_dir(dir, &described.config, &config, &weights, described.tokenizer.as_ref(), None, None).unwrap();
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

const FOLDER: &str = "INSTRUCTD_TEST_BESIDE";

/// Run by the test below in a process of its own: prints the bytes that three versions take beside their base.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of adapters_cost_no_second_copy_of_the_base"]
async fn three_versions_in_memory() {
    let (dir, share) =
        std::env::var(FOLDER).unwrap().split_once('=').map(|(a, b)| (PathBuf::from(b), a == "share")).unwrap();
    let named = |id: &str, path: PathBuf| {
        let mut version = version(id, "llama-tiny");
        version.artifact_uri = path.display().to_string();
        version.parent_id = (id != "b").then(|| "b".into());
        version
    };
    let mut all = vec![named("b", dir.join("base"))];
    all.extend((0..3).map(|i| named(&format!("l{i}"), dir.join(i.to_string()))));
    let options = EngineOptions { kv_tokens: 256, ..options(&all, share) };
    let engine = LocalEngine::start(options).unwrap();
    let mut held = Vec::new();
    for version in &all {
        engine.load(version).await.unwrap();
        engine.activate(&version.id).await.unwrap();
        run(&engine, ask(version, 1, 1)).await;
        held.push(resident_bytes());
    }
    println!("grown by {}", held[3] as i64 - held[0] as i64);
}

#[test]
fn adapters_cost_no_second_copy_of_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    wide(&base);
    let copy = std::fs::metadata(base.join("model.safetensors")).unwrap().len() as i64;
    assert!(copy > 40_000_000, "{copy}");
    family(&base, dir.path());
    let grown = |how: &str| {
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "engine::lora_versions::three_versions_in_memory", "--ignored", "--nocapture"])
            .env(FOLDER, format!("{how}={}", dir.path().display()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let found =
            text.split("grown by ").nth(1).unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
        found.split_whitespace().next().unwrap().parse::<i64>().unwrap()
    };
    let (whole, shared) = (grown("whole"), grown("share"));
    assert!(whole > 2 * copy, "three whole versions take {whole} bytes beside a base of {copy}");
    assert!(shared < copy / 2, "three adapters take {shared} bytes beside a base of {copy}");
}
