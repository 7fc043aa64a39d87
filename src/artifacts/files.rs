//! Files of one version on a local disk: lists them with sizes and hashes, copies and verifies them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::{ArtifactError, Result};
use crate::domain::files::copy_atomically;
use crate::domain::hash;
use crate::store::ModelFile;

/// SHA-256 (hex) over the weight files, in the order of their names.
pub fn weights_sha256(path: &Path) -> anyhow::Result<String> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
        let weights = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        entries.into_iter().map(|e| e.path()).filter(weights).collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    if files.is_empty() {
        anyhow::bail!("{} contains no .safetensors and no .gguf file", path.display());
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        let mut reader = File::open(&file).with_context(|| format!("reading {}", file.display()))?;
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Every file of a directory (or the one file), with sizes and hashes, ordered by path. Links are followed
/// to files, never to directories.
pub fn describe(root: &Path) -> Result<Vec<ModelFile>> {
    let mut found = Vec::new();
    if root.is_file() {
        found.push((root.file_name().unwrap_or_default().to_string_lossy().into_owned(), root.to_owned()));
    } else {
        walk(root, "", &mut found)?;
    }
    found.sort();
    found
        .into_iter()
        .map(|(path, at)| {
            let (sha256, bytes) = hash::of_file(&at).map_err(ArtifactError::io(&at))?;
            Ok(ModelFile { path, bytes: bytes.cast_signed(), sha256 })
        })
        .collect()
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(ArtifactError::io(dir))? {
        let entry = entry.map_err(ArtifactError::io(dir))?;
        let at = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(ArtifactError::io(&at))?;
        if kind.is_dir() {
            walk(&at, &format!("{name}/"), found)?;
        } else if at.is_file() {
            found.push((name, at));
        }
    }
    Ok(())
}

/// Whether `path` stays below a directory: no root, no `..`, no empty component.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// The path of `file` of the version at `root`; `root` may be the file itself.
pub(super) fn place(root: &Path, file: &ModelFile) -> PathBuf {
    if root.is_file() { root.to_owned() } else { root.join(&file.path) }
}

/// Checks every file's size and hash.
///
/// # Errors
/// `Damaged` with the first file that differs or is missing.
pub fn verify(name: &str, root: &Path, files: &[ModelFile]) -> Result<()> {
    for file in files {
        let damaged = |what: String| ArtifactError::Damaged { name: name.to_owned(), file: file.path.clone(), what };
        if !is_inside(&file.path) {
            return Err(damaged("its path leads outside".into()));
        }
        let (sha256, bytes) = hash::of_file(&place(root, file)).map_err(|e| damaged(e.to_string()))?;
        if (&sha256, bytes.cast_signed()) != (&file.sha256, file.bytes) {
            return Err(damaged(format!(
                "{bytes} bytes, SHA-256 {sha256}; expected {} and {}",
                file.bytes, file.sha256
            )));
        }
    }
    Ok(())
}

/// Copies `files` of the version at `from` below `to`, durably and each as a whole or not at all, and checks the copies.
pub fn copy_tree(name: &str, from: &Path, files: &[ModelFile], to: &Path) -> Result<()> {
    for file in files {
        if !is_inside(&file.path) {
            let what = "its path leads outside".to_owned();
            return Err(ArtifactError::Damaged { name: name.to_owned(), file: file.path.clone(), what });
        }
        let (source, target) = (place(from, file), to.join(&file.path));
        let parent = target.parent().unwrap_or(to);
        fs::create_dir_all(parent).map_err(ArtifactError::io(parent))?;
        copy_atomically(&source, &target).map_err(ArtifactError::io(&target))?;
    }
    sync_dir(to).map_err(ArtifactError::io(to))?;
    verify(name, to, files)
}

/// Makes names inside `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
