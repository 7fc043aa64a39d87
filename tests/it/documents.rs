//! The documentation names what exists: files of links, headings, source files and tests.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the root and of `docs/`.
fn documents() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in [root().to_owned(), root().join("docs")] {
        let entries = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
        files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "md")));
    }
    assert!(files.len() > 15, "README, ARCHITECTURE and the book");
    files
}

/// The text outside of fenced code.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The anchors that GitHub and mdBook give to headings.
fn anchors(text: &str) -> HashSet<String> {
    let heading = |line: &str| -> Option<String> {
        let title = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?;
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
    };
    prose(text).lines().filter_map(heading).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut links = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for piece in prose(&text).split("](").skip(1) {
            let target = piece.split(')').next().unwrap();
            if target.contains("://") || target.is_empty() {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let found = path.exists()
                && (anchor.is_empty() || anchors(&std::fs::read_to_string(&path).unwrap()).contains(anchor));
            if !found {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(links > 40, "{links} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_book_holds_every_page() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for page in documents().iter().filter(|p| p.parent().unwrap().ends_with("docs")) {
        let name = page.file_name().unwrap().to_string_lossy();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name} is not in docs/SUMMARY.md");
    }
}

/// Names in backticks of the table of invariants, and in the last column of SECURITY.md's tables.
#[test]
fn named_tests_exist() {
    let mut sources = String::new();
    let mut folders = vec![root().join("tests/it"), root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = text.split("## Invariants").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut names = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            names += 1;
            assert!(sources.contains(&format!("fn {name}(")), "ARCHITECTURE.md names the test {name}");
        }
    }
    assert!(names >= 15, "{names} tests are named");
}

/// `folder/file.rs` in backticks, as a path below `src/` or the repository.
#[test]
fn named_source_files_exist() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for name in prose(&text).split('`').skip(1).step_by(2) {
            let is_file = name.contains('/') && name.rsplit('.').next().is_some_and(|e| matches!(e, "rs" | "py" | "toml"));
            if is_file && !name.contains([' ', '…', '*']) && !name.contains("NAME") {
                let exists = root().join(name).exists() || root().join("src").join(name).exists();
                assert!(exists, "{} names {name}", document.display());
            }
        }
    }
}
