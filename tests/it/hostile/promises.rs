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

/// The rows of the tables of promises: (promise, tests).
fn promises(text: &str) -> Vec<(String, Vec<String>)> {
    let section = text.split("## Promises").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect() };
    let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    section
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(cells)
        .filter(|c| c.len() == 3 && c[0] != "promise")
        .map(|c| (c[0].clone(), named(&c[2])))
        .collect()
}

/// Whether a test of this name exists, as `cargo test` calls it, or a file of browser tests.
fn exists(sources: &[(String, String)], test: &str) -> bool {
    if test.ends_with(".mjs") {
        return sources.iter().any(|(path, _)| *path == format!("tests/browser/{test}"));
    }
    let Some((module, function)) = test.rsplit_once("::") else { return false };
    let module = module.trim_end_matches("::tests").replace("::", "/");
    let files = ["tests/it/{}.rs", "tests/it/{}/mod.rs", "src/{}.rs", "src/{}/mod.rs", "src/{}/tests.rs"];
    files.iter().any(|file| {
        let file = file.replace("{}", &module);
        sources.iter().any(|(path, text)| *path == file && has_test(text, function))
    })
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
        missing.extend(tests.iter().filter(|test| !exists(&sources, test)).map(|test| format!("{promise}: {test}")));
    }
    assert!(missing.is_empty(), "SECURITY.md promises what no test holds: {missing:#?}");
}

#[test]
fn a_name_in_a_comment_is_no_test() {
    assert!(has_test("#[test]\nfn holds() {}", "holds"));
    assert!(has_test("#[tokio::test(flavor = \"multi_thread\")]\nasync fn holds() {}", "holds"));
    assert!(!has_test("// fn holds() is a test\n", "holds"));
    assert!(!has_test("fn holds() {}", "holds"));
    let page = "# x\n## Promises\n| promise | mechanism | test |\n|---|---|---|\n| a | b | `x::y`, `z` |\n## Other\n| c | d | `e` |";
    assert_eq!(promises(page), [("a".to_owned(), vec!["x::y".to_owned(), "z".to_owned()])]);
    let sources = [("tests/it/x.rs".to_owned(), "#[test]\nfn y() {}".to_owned())];
    assert!(exists(&sources, "x::y") && !exists(&sources, "x::z") && !exists(&sources, "z::y"));
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

/// SECURITY.md lists the files, what they need `unsafe` for and why it is sound.
#[test]
fn every_file_with_unsafe_code_is_listed() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let section = page.split("## Unsafe code").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed: Vec<&str> = section.split('`').skip(1).step_by(2).filter(|name| name.starts_with("src/")).collect();
    for (path, text) in texts(&["src"], &[".rs"]) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let has = code.clone().any(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
        assert_eq!(has, listed.contains(&path.as_str()), "{path}: unsafe code and the list in SECURITY.md");
    }
}

#[test]
fn proofs_are_looked_for_before_the_block() {
    assert_eq!(unproven("let a = 1;\nlet x = unsafe { f() };"), [2]);
    assert!(unproven("// SAFETY: fine.\nlet x = unsafe { f() };").is_empty());
    assert!(unproven("// SAFETY: fine.\nlet x =\n    unsafe { f() };").is_empty());
    assert_eq!(unproven("// SAFETY: of another.\ng();\n\nunsafe { f() }"), [4]);
}
