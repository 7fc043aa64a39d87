//! File modes: judgments, prompts, hashes of keys and models are readable by the owner of the process only.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Mode bits of the group and of others.
const OF_OTHERS: u32 = 0o077;

/// Sets the umask so that files and directories of this process and its children are accessible to their owner only
/// (0600 and 0700).
pub fn only_for_the_owner() {
    // SAFETY: umask takes a number, touches no memory and cannot fail.
    unsafe { libc::umask(OF_OTHERS as libc::mode_t) };
}

/// Creates a directory, with its parents, that only the owner may enter. An existing empty one is closed to others; the
/// mode of one with files is left as it is. Returns whether others may enter it.
///
/// # Errors
/// I/O errors.
pub fn make_dir(dir: &Path) -> io::Result<bool> {
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        return Ok(false);
    }
    let found = fs::metadata(dir)?;
    if found.mode() & OF_OTHERS == 0 {
        return Ok(false);
    }
    let empty = fs::read_dir(dir)?.next().is_none();
    Ok(!(empty && close(dir, 0o700).is_ok()))
}

/// Creates the data directory, which holds judgments, hashes of keys and models. Logs a warning when other users of
/// this machine may enter one that exists already.
///
/// # Errors
/// I/O errors.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    if make_dir(dir).with_context(|| format!("making the data directory {}", dir.display()))? {
        tracing::warn!(
            dir = %dir.display(),
            "other users of this machine can read the data directory. The files of instructd are for its own \
             user only; close the directory too with chmod 700"
        );
    }
    Ok(())
}

/// Closes an existing file to others. Files of another owner stay as they are.
pub fn close_file(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & OF_OTHERS != 0);
    if open && let Err(error) = close(path, 0o600) {
        tracing::warn!(path = %path.display(), %error, "other users can read this file, and its mode cannot be changed");
    }
}

fn close(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn directories_are_closed_to_others_unless_they_hold_files() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        assert!(!make_dir(&new).unwrap());
        assert_eq!(mode(&new), 0o700);
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        assert!(!make_dir(&new).unwrap());
        assert_eq!(mode(&new), 0o700);
        let file = new.join("file");
        fs::write(&file, "x").unwrap();
        for path in [&new, &file] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        assert!(make_dir(&new).unwrap(), "others may enter it");
        assert_eq!(mode(&new), 0o755);
        close_file(&file);
        assert_eq!(mode(&file), 0o600);
    }
}
