//! File modes: judgments, prompts, hashes of keys and models are readable by the owner of the process only.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Mode bits of the group and of others.
const OF_OTHERS: u32 = 0o077;

/// From now on, every file and directory that this process and its children make is for its owner only (0600 and
/// 0700), whatever the shell's umask is.
pub fn only_for_the_owner() {
    // SAFETY: umask takes a number, touches no memory and cannot fail.
    unsafe { libc::umask(OF_OTHERS as libc::mode_t) };
}

/// Makes a directory, with its parents, that only the owner may enter. One that exists is closed to others when it is
/// empty; with files in it, its mode is the operator's choice, and `true` says that others may enter it.
///
/// # Errors
/// What keeps it from being made.
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

/// Makes the data directory, which holds judgments, hashes of keys and models. Logs a warning when other users of this
/// machine may enter one that exists already.
///
/// # Errors
/// What keeps it from being made.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    if make_dir(dir).with_context(|| format!("making the data directory {}", dir.display()))? {
        tracing::warn!(
            dir = %dir.display(),
            "other users of this machine may look into the data directory; what instructd writes there is for its own \
             user only, but close it too: chmod 700"
        );
    }
    Ok(())
}

/// Closes an existing file to others. Files of another owner stay as they are.
pub fn close_file(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & OF_OTHERS != 0);
    if open && let Err(error) = close(path, 0o600) {
        tracing::warn!(path = %path.display(), %error, "others may read this file, and its mode cannot be changed");
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
