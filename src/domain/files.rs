//! Writing files so that a crash leaves none in part.

use std::io::Write;
use std::path::Path;

/// Writes a file atomically: into a temporary file beside `path`, synced, then renamed. A crash leaves either the old
/// or the new contents.
///
/// # Errors
/// Errors of the file system.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
