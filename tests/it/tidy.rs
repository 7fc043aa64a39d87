//! Holds the walls between rooms: who may name which crate, and how long a file may be.

use std::path::{Path, PathBuf};

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// (path relative to the repository, text) of every Rust file under `dir`.
fn sources(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join(dir), &mut files);
    assert!(!files.is_empty(), "no Rust files under {dir}");
    files
        .into_iter()
        .map(|p| {
            let text = std::fs::read_to_string(&p).unwrap();
            (p.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"), text)
        })
        .collect()
}

fn room(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// Lines of `path` that name `needle` outside comments, as "path:line".
fn uses(path: &str, text: &str, needle: &str) -> Vec<String> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//") && line.contains(needle))
        .map(|(i, _)| format!("{path}:{}", i + 1))
        .collect()
}

fn forbid(needle: &str, allowed: impl Fn(&str) -> bool) {
    let found: Vec<_> = sources("src")
        .iter()
        .filter(|(path, _)| !allowed(room(path)))
        .flat_map(|(path, text)| uses(path, text, needle))
        .collect();
    assert!(found.is_empty(), "`{needle}` where it may not be: {found:#?}");
}

#[test]
fn sql_only_in_store_and_app() {
    forbid("sqlx::", |room| matches!(room, "store" | "app"));
}

#[test]
fn axum_only_in_http_and_app() {
    forbid("axum::", |room| matches!(room, "http" | "app"));
}

/// The engine serves no HTTP; asking another server is the business of `engine/upstream` alone.
#[test]
fn the_engine_has_no_http_server_and_one_client() {
    for needle in ["TcpListener", "hyper", "reqwest"] {
        let found: Vec<_> = sources("src/engine")
            .iter()
            .filter(|(path, _)| needle != "reqwest" || !path.starts_with("src/engine/upstream/"))
            .flat_map(|(path, text)| uses(path, text, needle))
            .collect();
        assert!(found.is_empty(), "`{needle}` in the engine: {found:#?}");
    }
}

#[test]
fn no_tensors_in_http_service_or_store() {
    forbid("candle", |room| !matches!(room, "http" | "service" | "store"));
}

#[test]
fn no_http_or_sql_in_training() {
    for needle in ["crate::http", "crate::store", "crate::service", "crate::engine"] {
        forbid(needle, |room| !matches!(room, "train" | "objective" | "model" | "ops" | "generation" | "data"));
    }
}

/// Rewards by HTTP go through a trait: training opens no connection.
#[test]
fn no_client_in_training() {
    for needle in ["reqwest", "std::net", "tokio::net"] {
        forbid(needle, |room| !matches!(room, "train" | "objective" | "model" | "ops" | "generation" | "data"));
    }
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = ["src", "tests"]
        .iter()
        .flat_map(|d| sources(d))
        .filter(|(_, text)| text.lines().count() > 550)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "files over 550 lines: {long:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = ["src", "tests"]
        .iter()
        .flat_map(|d| sources(d))
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "files without a //! header: {silent:#?}");
}
