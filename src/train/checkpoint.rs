//! Checkpoints that survive a crash at any time: they are written to a temporary directory, synced, hashed and renamed,
//! and an older one is kept.
//!
//! `ckpt-{step}-a{n}/` contains `*.safetensors`, `state.json` and `manifest.json`, which has the sizes and SHA-256 of
//! the other files. Loading verifies the manifest, and falls back to the previous checkpoint with a warning.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::domain::hash;
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Tensors of one file by name.
pub type TensorFile = BTreeMap<String, Tensor>;

/// Everything that a run needs to continue as if it had not been interrupted.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub step: u64,
    /// File stem (`weights`, `optimizer`) → tensors.
    pub tensors: BTreeMap<String, TensorFile>,
    /// Recipe state: optimizer steps, data cursor, KL coefficient, running statistics, hashes.
    pub state: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

const FORMAT: u32 = 1;

/// The checkpoints of one run.
pub struct CheckpointDir {
    dir: PathBuf,
    /// Number of checkpoints to keep in addition to the best.
    keep: usize,
}

impl CheckpointDir {
    /// Opens `dir`, creating it if necessary, and removes what interrupted writes have left.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tmp") && path.is_dir() {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), keep: 2 })
    }

    /// Writes `checkpoint` durably, then removes old ones. `best` marks it as the best so far.
    pub fn save(&self, checkpoint: &Checkpoint, best: bool) -> Result<PathBuf> {
        let attempt = self.generations()?.iter().filter(|g| g.step == checkpoint.step).map(|g| g.attempt).max();
        let name = format!("ckpt-{:08}-a{}", checkpoint.step, attempt.map_or(1, |n| n + 1));
        let (tmp, done) = (self.dir.join(format!("{name}.tmp")), self.dir.join(&name));
        let written = write_files(&tmp, checkpoint).and_then(|()| {
            fs::rename(&tmp, &done)?;
            sync_dir(&self.dir)
        });
        if let Err(error) = written {
            // Frees the space of a failed write, such as on a full disk. The first error is returned.
            let _ = fs::remove_dir_all(&tmp);
            return Err(error).with_context(|| format!("cannot write checkpoint {}", done.display()));
        }
        if best {
            let tmp = self.dir.join("best.json.part");
            write_synced(&tmp, serde_json::json!({"name": name, "step": checkpoint.step}).to_string().as_bytes())?;
            fs::rename(&tmp, self.dir.join("best.json"))?;
            sync_dir(&self.dir)?;
        }
        self.prune()?;
        Ok(done)
    }

    /// The newest intact checkpoint, with a warning for every newer one that is damaged. `None` if there is no
    /// checkpoint.
    ///
    /// # Errors
    /// If there are checkpoints and none is intact: the operator must decide to start again.
    pub fn load_latest(&self) -> Result<Option<(Checkpoint, Vec<String>)>> {
        let mut warnings = Vec::new();
        for generation in self.generations()?.into_iter().rev() {
            match read_files(&generation.path) {
                Ok(checkpoint) => return Ok(Some((checkpoint, warnings))),
                Err(error) => warnings.push(format!("checkpoint {} is unusable: {error:#}", generation.path.display())),
            }
        }
        if warnings.is_empty() {
            return Ok(None);
        }
        bail!("no checkpoint in {} can be used:\n{}", self.dir.display(), warnings.join("\n"))
    }

    /// The state of the newest checkpoint whose state can be read, without its tensors. `None` if there is none.
    pub fn newest_state(dir: &Path) -> Option<serde_json::Value> {
        let generations = Self { dir: dir.to_owned(), keep: 2 }.generations().ok()?;
        generations
            .into_iter()
            .rev()
            .find_map(|generation| serde_json::from_slice(&fs::read(generation.path.join("state.json")).ok()?).ok())
    }

    /// The checkpoint that is marked as the best.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn load_best(&self) -> Result<Option<Checkpoint>> {
        match self.best_name() {
            Some(name) => read_files(&self.dir.join(name)).map(Some),
            None => Ok(None),
        }
    }

    fn best_name(&self) -> Option<String> {
        let text = fs::read_to_string(self.dir.join("best.json")).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        value["name"].as_str().map(str::to_owned)
    }

    /// Complete checkpoints, oldest first.
    fn generations(&self) -> Result<Vec<Generation>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let parsed = path.file_name().and_then(|n| n.to_str()).and_then(|name| {
                let (step, attempt) = name.strip_prefix("ckpt-")?.split_once("-a")?;
                Some((step.parse().ok()?, attempt.parse().ok()?))
            });
            if let Some((step, attempt)) = parsed {
                found.push(Generation { step, attempt, path });
            }
        }
        found.sort_by_key(|g| (g.step, g.attempt));
        Ok(found)
    }

    fn prune(&self) -> Result<()> {
        let generations = self.generations()?;
        let best = self.best_name();
        let old = generations.len().saturating_sub(self.keep);
        for generation in &generations[..old] {
            if generation.path.file_name().and_then(|n| n.to_str()) != best.as_deref() {
                fs::remove_dir_all(&generation.path)?;
            }
        }
        Ok(())
    }
}

struct Generation {
    step: u64,
    attempt: u64,
    path: PathBuf,
}

fn write_files(tmp: &Path, checkpoint: &Checkpoint) -> Result<()> {
    fs::create_dir_all(tmp)?;
    let mut names = Vec::new();
    for (stem, tensors) in &checkpoint.tensors {
        let name = format!("{stem}.safetensors");
        let host: BTreeMap<&str, Tensor> = tensors
            .iter()
            .map(|(name, t)| Ok((name.as_str(), t.detach().contiguous()?.to_device(&Device::Cpu)?)))
            .collect::<candle_core::Result<_>>()?;
        safetensors::serialize_to_file(host, None, &tmp.join(&name))?;
        File::open(tmp.join(&name))?.sync_all()?;
        names.push(name);
    }
    write_synced(&tmp.join("state.json"), &serde_json::to_vec_pretty(&checkpoint.state)?)?;
    names.push("state.json".to_owned());
    let mut files = BTreeMap::new();
    for name in names {
        files.insert(name.clone(), entry_of(&tmp.join(name))?);
    }
    let manifest = Manifest { format: FORMAT, step: checkpoint.step, files };
    write_synced(&tmp.join("manifest.json"), &serde_json::to_vec_pretty(&manifest)?)?;
    sync_dir(tmp)
}

fn read_files(dir: &Path) -> Result<Checkpoint> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join("manifest.json")).context("manifest.json")?)
        .context("manifest.json")?;
    if manifest.format != FORMAT {
        bail!("format {} is not {FORMAT}", manifest.format);
    }
    let mut tensors = BTreeMap::new();
    for (name, expected) in &manifest.files {
        if Path::new(name).components().count() != 1 {
            bail!("manifest.json names {name}, which is not a plain file name");
        }
        let path = dir.join(name);
        if entry_of(&path).with_context(|| name.clone())? != *expected {
            bail!("{name} does not have the size and SHA-256 of the manifest");
        }
        if let Some(stem) = name.strip_suffix(".safetensors") {
            let loaded = candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| name.clone())?;
            tensors.insert(stem.to_owned(), loaded.into_iter().collect());
        }
    }
    let state = serde_json::from_slice(&fs::read(dir.join("state.json"))?).context("state.json")?;
    Ok(Checkpoint { step: manifest.step, tensors, state })
}

fn entry_of(path: &Path) -> Result<FileEntry> {
    let (sha256, bytes) = hash::of_file(path)?;
    Ok(FileEntry { bytes, sha256 })
}

/// SHA-256 (hex) of names, shapes and f32 bits, in the order of the names. Equal if and only if the weights are equal.
pub fn weights_hash<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in tensors {
        hasher.update(format!("{name}{:?}", tensor.dims()));
        let values: Vec<f32> = tensor.detach().flatten_all()?.to_vec1()?;
        hasher.update(bytemuck::cast_slice(&values));
    }
    Ok(hex::encode(hasher.finalize()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

/// Makes renames inside `dir` durable.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)?.sync_all()?;
    Ok(())
}
