//! Writing files so that a crash or a full disk leaves none in part.

use std::io::Write;
use std::path::Path;

/// Writes a file atomically: into a temporary file beside `path`, synced, then renamed. A crash leaves either the old
/// or the new contents; an error also removes the temporary file.
///
/// # Errors
/// Errors of the file system.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replaced(path, &path.with_extension("tmp"), |file| file.write_all(bytes))
}

/// Copies a file atomically, as `write_atomically` writes one. The temporary file's name is that of `to` with `.part`.
///
/// # Errors
/// Errors of the file system.
pub fn copy_atomically(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = std::fs::File::open(from)?;
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(".part");
    replaced(to, Path::new(&temporary), |file| std::io::copy(&mut source, file).map(drop))
}

/// Fills the file `temporary` by `fill`, syncs it and moves it to `path`. The file is removed when that fails.
fn replaced(
    path: &Path,
    temporary: &Path,
    fill: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut file = std::fs::File::create(temporary)?;
    let done = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    done
}

/// Whether a write failed for lack of space: on the disk, or in the user's quota of it.
pub fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
