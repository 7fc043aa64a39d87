//! LoRA adapters in peft's layout: a directory of adapter_config.json and adapter_model.safetensors.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::model::adapters::lora;
use crate::model::families::Heads;
use crate::model::load::{LoadError, read_json};
use crate::model::{LoraConfig, ModelConfig, Weights, names};

/// The folder of a published version that holds the adapter it was trained with.
pub const FOLDER: &str = "adapter";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// An adapter read from a directory.
#[derive(Debug)]
pub struct Adapter {
    /// `{module}.lora_A.weight` [rank, in] and `{module}.lora_B.weight` [out, rank]; B includes the scale, so the term
    /// is B·A.
    factors: Weights,
    /// Matrices of the base that the file holds too, under the model's names. peft writes the embedding and the output
    /// matrix beside an adapter that changes them or a model whose vocabulary grew.
    carried: Weights,
    /// The model that it was trained on, by peft's name for it.
    pub base: Option<String>,
}

/// Writes an adapter of a model of `config`; `base` is the name of the base model, `weights` its tensors.
///
/// # Errors
/// `Io` when a file cannot be written.
pub fn write(
    dir: &Path,
    config: &ModelConfig,
    lora: &LoraConfig,
    adapters: &Weights,
    weights: &Weights,
    base: &str,
) -> Result<(), LoadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e: candle_core::Error| LoadError::io(&path, std::io::Error::other(e))
    };
    std::fs::create_dir_all(dir).map_err(|e| LoadError::io(dir, e))?;
    let mut tensors = HashMap::new();
    for (name, tensor) in adapters {
        let tensor = tensor.detach().to_device(&Device::Cpu).and_then(|t| t.contiguous());
        let tensor = tensor.map_err(failed(dir))?;
        tensors.insert(format!("{PREFIX}{}", names::published(config, name)), tensor);
    }
    let path = dir.join(WEIGHTS);
    candle_core::safetensors::save(&tensors, &path).map_err(failed(&path))?;
    let about = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": targets(config, lora, adapters, weights),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": config.family().layout == crate::ops::linear::WeightLayout::InOut,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": false,
        "use_dora": false,
    });
    let path = dir.join(CONFIG);
    std::fs::write(&path, format!("{about:#}")).map_err(|e| LoadError::io(&path, e))
}

/// The last parts of module names where every module with that last part has an adapter, otherwise full names.
fn targets(config: &ModelConfig, lora: &LoraConfig, adapters: &Weights, weights: &Weights) -> BTreeSet<String> {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let with: BTreeSet<&str> = adapters.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).collect();
    let short: BTreeSet<String> = with.iter().map(|module| last(module)).collect();
    let all = lora::target_modules(config, &LoraConfig { targets: Vec::new(), ..lora.clone() }, weights);
    let complete =
        all.iter().filter(|module| short.contains(&last(module))).all(|module| with.contains(module.as_str()));
    if complete { short } else { with.into_iter().map(str::to_owned).collect() }
}

/// Reads an adapter for a model of `config`.
///
/// # Errors
/// `Malformed` for damage, `Unsupported` for adapters that change more than LoRA's low-rank terms.
pub fn read(dir: &Path, config: &ModelConfig) -> Result<Adapter, LoadError> {
    let path = dir.join(CONFIG);
    let Some(about) = read_json(&path, 1 << 20)? else {
        let message = format!("not a PEFT adapter: there is no {CONFIG}");
        return Err(LoadError::malformed(dir, message));
    };
    supported(&about).map_err(|message| LoadError::unsupported(&path, message))?;
    let file = dir.join(WEIGHTS);
    if !file.is_file() {
        return Err(LoadError::malformed(dir, format!("there is no {WEIGHTS}")));
    }
    let malformed = |message: String| LoadError::malformed(&file, message);
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).map_err(|e| malformed(e.to_string()))?;
    let mut found: HashMap<String, [Option<Tensor>; 2]> = HashMap::new();
    let mut carried = Weights::new();
    for (key, tensor) in tensors {
        let name = key.strip_prefix(PREFIX).unwrap_or(&key).replace(".default.weight", ".weight");
        let parts = [".lora_A.weight", ".lora_B.weight"];
        let part = parts.iter().enumerate().find_map(|(i, end)| Some((i, name.strip_suffix(end)?)));
        let Some((i, module)) = part else {
            let Some(own) = base_matrix(config, &name) else {
                return Err(LoadError::unsupported(&file, format!("tensor {key} is not part of a LoRA adapter")));
            };
            let tensor = tensor.to_dtype(DType::F32).map_err(|e| malformed(format!("tensor {key}: {e}")))?;
            carried.insert(own, tensor);
            continue;
        };
        // Names of adapters are translated as the names of the weights that they change.
        let weight = names::canonical(config, &format!("{module}.weight"));
        let module = weight.as_deref().and_then(|name| name.strip_suffix(".weight")).unwrap_or(module).to_owned();
        let tensor = tensor.to_dtype(DType::F32).map_err(|e| malformed(format!("tensor {key}: {e}")))?;
        found.entry(module).or_default()[i] = Some(tensor);
    }
    let mut factors = Weights::new();
    for (module, pair) in found {
        let [Some(a), Some(b)] = pair else {
            return Err(malformed(format!("{module} has only one of lora_A and lora_B")));
        };
        let rank = a.dim(0).unwrap_or(0);
        if rank == 0 || a.rank() != 2 || b.rank() != 2 || b.dim(1).ok() != Some(rank) {
            let (a, b) = (a.dims(), b.dims());
            return Err(malformed(format!("{module}: lora_A is {a:?} and lora_B {b:?}, which have no rank in common")));
        }
        let said = number(&about, "rank_pattern", &module).or(about["r"].as_f64());
        if said != Some(rank as f64) {
            return Err(malformed(format!("{module} has rank {rank}, {CONFIG} says {said:?}")));
        }
        let alpha = number(&about, "alpha_pattern", &module).or(about["lora_alpha"].as_f64());
        let alpha = alpha.ok_or_else(|| LoadError::malformed(&path, "`lora_alpha` is missing"))?;
        let root = about["use_rslora"] == true;
        let scale = alpha / if root { (rank as f64).sqrt() } else { rank as f64 };
        let b = (b * scale).map_err(|e| malformed(e.to_string()))?;
        factors.insert(format!("{module}.lora_A.weight"), a);
        factors.insert(format!("{module}.lora_B.weight"), b);
    }
    if factors.is_empty() {
        return Err(malformed("it holds no adapter".into()));
    }
    Ok(Adapter { factors, carried, base: about["base_model_name_or_path"].as_str().map(str::to_owned) })
}

/// The model's name of a matrix of the base in an adapter's file: one that is marked as such, or the embedding or output
/// matrix.
fn base_matrix(config: &ModelConfig, name: &str) -> Option<String> {
    let own = |name: &str| names::canonical(config, name).unwrap_or_else(|| name.to_owned());
    if let Some((module, part)) = name.split_once(".base_layer.") {
        return Some(own(&format!("{module}.{part}")));
    }
    let (own, family) = (own(name), config.family());
    let module = own.strip_suffix(".weight")?;
    let output = matches!(family.heads, Heads::Decoder { output, .. } if output == module);
    (output || module == family.words).then_some(own)
}

fn supported(about: &Value) -> Result<(), String> {
    let kind = about["peft_type"].as_str().unwrap_or("LORA");
    if kind != "LORA" {
        return Err(format!("an adapter of type {kind} is not supported (LORA is)"));
    }
    for key in ["use_dora", "use_qalora", "megatron_config", "trainable_token_indices", "target_parameters"] {
        let value = &about[key];
        if !(value.is_null() || *value == false || value.as_array().is_some_and(Vec::is_empty)) {
            return Err(format!("`{key}` = {value} is not supported"));
        }
    }
    if about["bias"].as_str().is_some_and(|bias| bias != "none") {
        return Err(format!("trained biases (`bias` = {}) are not supported", about["bias"]));
    }
    if about["modules_to_save"].as_array().is_some_and(|list| !list.is_empty()) {
        let list = &about["modules_to_save"];
        return Err(format!("modules trained as a whole (`modules_to_save` = {list}) are not supported"));
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        let mut strange = about[key].as_object().into_iter().flatten().map(|(name, _)| name);
        let plain = |name: &&String| !name.chars().all(|c| c.is_alphanumeric() || "._^$".contains(c));
        if let Some(name) = strange.find(plain) {
            return Err(format!("`{key}` names modules by the expression {name:?}, which is not supported"));
        }
    }
    Ok(())
}

/// The value of a pattern that matches a module: its full name or the end of it.
fn number(about: &Value, key: &str, module: &str) -> Option<f64> {
    about[key].as_object()?.iter().find_map(|(name, value)| {
        let name = name.trim_start_matches('^').trim_end_matches('$');
        let ends = module == name || module.ends_with(&format!(".{name}"));
        ends.then(|| value.as_f64()).flatten()
    })
}

impl Adapter {
    /// `{module}.lora_A.weight` [rank, in] and `{module}.lora_B.weight` [out, rank]; B includes the scale.
    pub(in crate::model) fn factors(&self) -> &Weights {
        &self.factors
    }

    /// Whether the file holds matrices of the base, which may differ from those of the base here.
    pub fn carries_base(&self) -> bool {
        !self.carried.is_empty()
    }

    /// The model's weights with the adapter merged. Matrices of the base that the file holds replace those here, as in
    /// peft.
    ///
    /// # Errors
    /// When the model lacks a module or has it in another shape: the adapter is of another model.
    pub fn merge(&self, config: &ModelConfig, weights: &Weights) -> candle_core::Result<Weights> {
        if !self.carries_base() {
            return self.merge_factors(config, weights);
        }
        let mut based = weights.clone();
        for (name, tensor) in &self.carried {
            let tied = config.tie_embeddings && !weights.contains_key(name);
            let own = if tied { format!("{}.weight", config.family().words) } else { name.clone() };
            let Some(here) = weights.get(&own) else {
                candle_core::bail!("the adapter is for another model: there is no {name} in this one");
            };
            if here.dims() != tensor.dims() {
                let (here, there) = (here.dims(), tensor.dims());
                candle_core::bail!(
                    "the adapter was trained with {name} of {there:?} and here it is {here:?}: a vocabulary that was \
                     changed for the adapter is not supported"
                );
            }
            based.insert(own, tensor.to_device(here.device())?.to_dtype(here.dtype())?);
        }
        self.merge_factors(config, &based)
    }

    fn merge_factors(&self, config: &ModelConfig, weights: &Weights) -> candle_core::Result<Weights> {
        let layout = config.family().layout;
        for (name, a) in &self.factors {
            let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
            let Some(weight) = weights.get(&format!("{module}.weight")).filter(|w| w.rank() == 2) else {
                candle_core::bail!("the adapter is for another model: there is no {module} in this one");
            };
            let out = self.factors.get(&format!("{module}.lora_B.weight")).map_or(Ok(0), |b| b.dim(0))?;
            let mut want = vec![out, a.dim(1)?];
            if layout == crate::ops::linear::WeightLayout::InOut {
                want.reverse();
            }
            if weight.dims() != want {
                let has = weight.dims();
                candle_core::bail!("the adapter is for another model: {module} is {has:?} here and {want:?} there");
            }
        }
        // B includes the scale.
        let one = LoraConfig { rank: 1, alpha: 1.0, targets: Vec::new() };
        lora::merge(config, &one, weights, &self.factors)
    }
}
