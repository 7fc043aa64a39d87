//! The small model inside the program, which is served when no other model is available.

use std::path::{Path, PathBuf};

use rust_embed::RustEmbed;

use super::files::models_dir;

/// Its name for `--model`.
pub const NAME: &str = "builtin";

#[derive(RustEmbed)]
#[folder = "builtin/"]
struct Files;

/// Files of the built-in model, by name.
pub fn files() -> impl Iterator<Item = (String, Vec<u8>)> {
    let of_the_model = |name: &str| name.ends_with(".json") || name.ends_with(".safetensors");
    Files::iter()
        .filter(move |name| of_the_model(name))
        .filter_map(|name| Some((name.to_string(), Files::get(&name)?.data.into_owned())))
}

/// Writes the model under `DATA_DIR/models/builtin` unless the same files are there, and returns that
/// directory. Files appear whole or not at all, the weights last.
///
/// # Errors
/// When the directory cannot be written.
pub fn unpack(data_dir: &Path) -> std::io::Result<PathBuf> {
    let dir = models_dir(data_dir).join(NAME);
    std::fs::create_dir_all(&dir)?;
    let mut all: Vec<(String, Vec<u8>)> = files().collect();
    all.sort_by_key(|(name, _)| name.ends_with(".safetensors"));
    for (name, bytes) in all {
        let path = dir.join(&name);
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        let mut temporary = tempfile::NamedTempFile::new_in(&dir)?;
        std::io::Write::write_all(&mut temporary, &bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(&path)?;
    }
    Ok(dir)
}
