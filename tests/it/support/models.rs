//! Model files that tests read.

use std::path::{Path, PathBuf};

/// A file or directory under tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The real model that `INSTRUCTD_TEST_GGUF` names; without it the test says that it is skipped.
pub fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("INSTRUCTD_TEST_GGUF").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: INSTRUCTD_TEST_GGUF names no SmolLM2-135M-Instruct GGUF");
    }
    path
}

/// A copy of a flat directory that a test may damage.
pub fn copy_dir(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Copies the files of a directory into another one, which is made.
pub fn copy_into(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
