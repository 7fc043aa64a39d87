//! SECURITY.md promises what a test holds: every row of its table names tests, and all of them exist. And every
//! `unsafe` block says why it is sound.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, endings: &[&str], out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "node_modules" && name != "target" {
                files(&path, endings, out);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            out.push(path);
        }
    }
}

fn texts(dirs: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    dirs.iter().for_each(|dir| files(&root().join(dir), endings, &mut found));
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(read).collect()
}

/// The rows of the table of promises: (promise, tests). A test is `file.rs` + `::` + its function, or a file of
/// tests/browser.
fn promises(text: &str) -> Vec<(String, Vec<String>)> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect() };
    let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.map(cells)
        .filter(|c| c.len() == 3 && c[0] != "promise" && !c[0].starts_with("---"))
        .map(|c| (c[0].clone(), named(&c[2])))
        .collect()
}

/// Whether a function of this name, marked as a test, stands in the text.
fn has_test(text: &str, name: &str) -> bool {
    let marks = ["#[test]", "#[tokio::test", "proptest!", "#[ignore"];
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before: Vec<&str> = text[..at].lines().rev().take(6).collect();
        before.iter().any(|line| marks.iter().any(|mark| line.trim_start().starts_with(mark)))
    })
}

#[test]
fn every_promise_of_the_security_page_has_its_tests() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let sources = texts(&["tests", "src"], &[".rs", ".mjs"]);
    let promises = promises(&page);
    assert!(promises.len() >= 30, "{} promises", promises.len());
    let mut missing = Vec::new();
    for (promise, tests) in promises {
        if tests.is_empty() {
            missing.push(format!("{promise}: no test"));
        }
        for test in tests {
            let found = match test.rsplit_once("::") {
                Some((file, function)) => sources.iter().any(|(path, text)| path == file && has_test(text, function)),
                None => sources.iter().any(|(path, _)| path.ends_with(".mjs") && *path == test),
            };
            if !found {
                missing.push(format!("{promise}: {test}"));
            }
        }
    }
    assert!(missing.is_empty(), "SECURITY.md promises what no test holds: {missing:#?}");
}

#[test]
fn a_name_in_a_comment_is_no_test() {
    assert!(has_test("#[test]\nfn holds() {}", "holds"));
    assert!(has_test("#[tokio::test(flavor = \"multi_thread\")]\nasync fn holds() {}", "holds"));
    assert!(!has_test("// fn holds() is a test\n", "holds"));
    assert!(!has_test("fn holds() {}", "holds"));
    assert_eq!(promises("| a | b | `x.rs::y`, `z` |").len(), 1);
}

/// The lines of a file with `unsafe` blocks or impls that no `SAFETY` comment stands before.
fn unproven(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let begins = |line: &str| {
        let line = code(line);
        let block = line.contains("unsafe {") || line.contains("unsafe impl") || line.trim_end().ends_with("unsafe");
        block && !line.contains("unsafe fn")
    };
    let is_proof = |line: &str| line.trim_start().starts_with("//") && line.contains("SAFETY");
    (0..lines.len())
        .filter(|i| begins(lines[*i]))
        .filter(|i| {
            // Before the statement that holds the block: comments and attributes, or the head of the statement.
            let before = lines[..*i].iter().rev().take(12);
            let mut proven = is_proof(lines[*i]);
            for line in before {
                let line = line.trim();
                if is_proof(line) {
                    proven = true;
                }
                let ends = line.is_empty() || line.ends_with(';') || line == "}";
                if proven || (ends && !line.starts_with("//")) {
                    break;
                }
            }
            !proven
        })
        .map(|i| i + 1)
        .collect()
}

#[test]
fn every_unsafe_block_has_its_proof() {
    let mut blocks = 0;
    let mut found = Vec::new();
    for (path, text) in texts(&["src", "tests", "benches"], &[".rs"]) {
        // This file speaks of such blocks.
        if path.ends_with("hostile/promises.rs") {
            continue;
        }
        blocks += text.matches("unsafe {").count();
        found.extend(unproven(&text).into_iter().map(|line| format!("{path}:{line}")));
    }
    assert!(blocks > 30, "{blocks} blocks");
    assert!(found.is_empty(), "unsafe without `// SAFETY:`: {found:#?}");
}

#[test]
fn proofs_are_looked_for_before_the_block() {
    assert_eq!(unproven("let a = 1;\nlet x = unsafe { f() };"), [2]);
    assert!(unproven("// SAFETY: fine.\nlet x = unsafe { f() };").is_empty());
    assert!(unproven("// SAFETY: fine.\nlet x =\n    unsafe { f() };").is_empty());
    assert_eq!(unproven("// SAFETY: of another.\ng();\n\nunsafe { f() }"), [4]);
}
