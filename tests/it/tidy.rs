//! The rules of the source tree: which module may use which, who may name which crate, where clocks and randomness are
//! read, and how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
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

fn module(path: &str) -> &str {
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
        .filter(|(path, _)| !allowed(module(path)))
        .flat_map(|(path, text)| uses(path, text, needle))
        .collect();
    assert!(found.is_empty(), "`{needle}` where it may not be: {found:#?}");
}

/// Modules (the directories of `src`), from the lowest to the highest, with what each may use: modules before it only, so
/// that there are no cycles. `edges_are_those_of_the_table` refuses an edge that is missing here, and one that no file
/// uses any more. ARCHITECTURE.md shows this table.
#[rustfmt::skip]
const MODULES: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("domain", &[]),
    ("gpu", &[]),
    ("ops", &[]),
    ("tokenizer", &[]),
    ("objective", &[]),
    ("statistics", &[]),
    ("model", &["domain", "gpu", "ops", "tokenizer"]),
    ("hub", &["domain", "model"]),
    ("prompt", &["domain", "tokenizer", "model"]),
    ("generation", &["ops", "model"]),
    ("data", &["domain", "tokenizer", "prompt"]),
    ("engine", &["domain", "gpu", "ops", "tokenizer", "model", "prompt", "generation", "data"]),
    ("train", &["domain", "gpu", "ops", "tokenizer", "objective", "statistics", "model", "prompt", "generation", "data"]),
    ("eval", &["domain", "tokenizer", "objective", "statistics", "model", "prompt", "generation", "data", "train"]),
    ("instructgpt", &["domain", "model", "prompt", "generation", "data", "train"]),
    ("store", &["domain"]),
    ("artifacts", &["config", "domain", "hub", "engine", "store"]),
    ("jobs", &["config", "domain", "ops", "model", "data", "engine", "train", "store", "artifacts"]),
    ("service", &["config", "domain", "model", "hub", "prompt", "data", "engine", "train", "eval", "store", "artifacts", "jobs"]),
    ("http", &["config", "domain", "model", "prompt", "data", "engine", "train", "eval", "store", "jobs", "service"]),
    ("app", &["config", "domain", "ops", "hub", "engine", "train", "store", "artifacts", "jobs", "service", "http"]),
    ("cli", &["config", "domain", "ops", "tokenizer", "model", "hub", "data", "engine", "train", "eval", "instructgpt", "store", "artifacts", "jobs", "service", "app"]),
];

/// Files outside every module.
const ROOTS: [&str; 2] = ["src/lib.rs", "src/main.rs"];

/// `text` without comments. A line of a string that contains `//` loses its end, which no rule here looks at.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// The names that follow `crate::` in `text`, also in `crate::{a, b::c}`.
fn modules_named(text: &str) -> BTreeSet<String> {
    let code = code(text);
    let word = |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, needle) in code.match_indices("crate::") {
        // `$crate` and `my_crate` are something else.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + needle.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (1, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || depth == 1 && c == ',' {
                found.insert(word(&list[start..i]));
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn names_of_modules_are_found_in_every_form() {
    let text = "use crate::a::b;\nuse crate::{c, d::{e, f}};\nfn g() { crate::h::i() } // crate::j\n$crate::k";
    assert_eq!(modules_named(text).into_iter().collect::<Vec<_>>(), ["a", "c", "d", "h"]);
}

/// (module, used module) → a file that uses it.
fn edges() -> BTreeMap<(String, String), String> {
    let mut edges = BTreeMap::new();
    for (path, text) in sources("src").iter().filter(|(path, _)| !ROOTS.contains(&path.as_str())) {
        // `ops` is a crate of its own: what it calls `crate` is itself, and Cargo keeps it from using the others.
        let named = if module(path) == "ops" { BTreeSet::new() } else { modules_named(text) };
        for used in named.into_iter().filter(|used| used != module(path)) {
            edges.entry((module(path).to_owned(), used)).or_insert_with(|| path.clone());
        }
    }
    edges
}

#[test]
fn edges_are_those_of_the_table() {
    let listed = |from: &str, to: &str| MODULES.iter().any(|(module, uses)| *module == from && uses.contains(&to));
    let edges = edges();
    let missing: Vec<_> = edges.iter().filter(|((from, to), _)| !listed(from, to)).collect();
    assert!(missing.is_empty(), "edges that the table of modules does not allow: {missing:#?}");
    let unused: Vec<_> = MODULES
        .iter()
        .flat_map(|(module, uses)| uses.iter().map(move |to| ((*module).to_owned(), (*to).to_owned())))
        .filter(|edge| !edges.contains_key(edge))
        .collect();
    assert!(unused.is_empty(), "edges of the table of modules that no file uses: {unused:#?}");
}

#[test]
fn the_table_has_every_module_once_and_no_cycle() {
    let directories: BTreeSet<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !ROOTS.contains(&format!("src/{name}").as_str()))
        .collect();
    let listed: BTreeSet<_> = MODULES.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(directories, listed, "files and directories of src, and modules of the table");
    assert_eq!(listed.len(), MODULES.len(), "a module is listed twice");
    for (i, (module, uses)) in MODULES.iter().enumerate() {
        // Every edge leads to an earlier module, in the order of the table.
        let places: Vec<_> = uses.iter().map(|to| MODULES[..i].iter().position(|(lower, _)| lower == to)).collect();
        assert!(places.iter().all(Option::is_some), "{module} uses a module that is not before it: {uses:?}");
        assert!(places.is_sorted(), "what {module} uses is not in the order of the table: {uses:?}");
    }
}

/// The table of modules as ARCHITECTURE.md shows it, from the highest module to the lowest.
fn diagram() -> String {
    let lines = MODULES.iter().rev().map(|(module, uses)| match uses {
        [] => format!("{module:<12}\n"),
        _ => format!("{module:<12} → {}\n", uses.iter().rev().copied().collect::<Vec<_>>().join(", ")),
    });
    let lines: String = lines.map(|line| format!("{}\n", line.trim_end())).collect();
    format!("<!-- modules: made from tests/it/tidy.rs -->\n```text\n{lines}```\n<!-- /modules -->")
}

#[test]
fn the_diagram_of_the_architecture_is_that_of_the_table() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let end = "<!-- /modules -->";
    let shown = text.find("<!-- modules").zip(text.find(end)).map(|(a, b)| &text[a..b + end.len()]);
    let made = diagram();
    assert!(shown == Some(made.as_str()), "ARCHITECTURE.md has another diagram; it must be:\n{made}");
}

/// Sources of time and randomness, and the only places (prefixes of paths) that may read them. Everything else is given
/// times, seeds and ids, so that tests can repeat it.
const SOURCES: &[(&str, &[&str])] = &[
    // The time of day.
    ("Timestamp::now", &["src/service/clock.rs"]),
    ("SystemTime::now", &["src/train/meter.rs"]),
    ("Zoned::now", &[]),
    ("clock_gettime", &["src/service/clock.rs"]),
    // A clock without a date: durations and deadlines.
    (
        "Instant::now",
        &[
            "src/app/",
            "src/data/limits.rs",
            "src/engine/",
            "src/http/",
            "src/hub/",
            "src/instructgpt/",
            "src/jobs/",
            "src/service/cached.rs",
            "src/service/complete.rs",
            "src/service/searches.rs",
            "src/store/connect.rs",
            "src/store/postgres.rs",
            "src/tokenizer/probe.rs",
            "src/train/",
        ],
    ),
    // Randomness.
    ("getrandom::", &["src/service/random.rs"]),
    ("RandomState", &["src/http/auth.rs"]),
    ("Ulid::generate", &["src/domain/ids.rs"]),
    ("Ulid::new", &[]),
    ("rand::rng", &[]),
    ("OsRng", &[]),
    ("SysRng", &[]),
];

#[test]
fn clocks_and_randomness_are_read_in_named_places_only() {
    let all = sources("src");
    for (needle, places) in SOURCES {
        let users: Vec<(&str, String)> = all
            .iter()
            .flat_map(|(path, text)| uses(path, text, needle).into_iter().map(|line| (path.as_str(), line)))
            .collect();
        let outside: Vec<_> =
            users.iter().filter(|(path, _)| !places.iter().any(|p| path.starts_with(p))).map(|(_, l)| l).collect();
        assert!(outside.is_empty(), "`{needle}` where it may not be read: {outside:#?}");
        for place in *places {
            assert!(users.iter().any(|(path, _)| path.starts_with(place)), "{place} reads no `{needle}` any more");
        }
    }
}

#[test]
fn sql_only_in_store() {
    forbid("sqlx::", |module| module == "store");
}

/// Routes ask the service, which decides who may see what.
#[test]
fn routes_do_not_ask_the_store() {
    let found: Vec<_> =
        sources("src/http").iter().flat_map(|(path, text)| uses(path, text, "services.store")).collect();
    assert!(found.is_empty(), "the store is asked in http: {found:#?}");
}

#[test]
fn axum_only_in_http_and_app() {
    forbid("axum::", |module| matches!(module, "http" | "app"));
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
    forbid("candle", |module| !matches!(module, "http" | "service" | "store"));
}

/// Rewards by HTTP go through a trait: training opens no connection.
#[test]
fn no_client_in_training() {
    for needle in ["reqwest", "std::net", "tokio::net"] {
        forbid(needle, |module| !matches!(module, "train" | "objective" | "model" | "ops" | "generation" | "data"));
    }
}

/// What differs between families is in their tables, so a new family touches no other file. `presets` describes models by
/// name and has to name their families.
#[test]
fn families_are_named_in_their_tables_only() {
    let found: Vec<_> = sources("src")
        .iter()
        .filter(|(path, _)| !path.starts_with("src/model/families/") && path != "src/model/presets.rs")
        .flat_map(|(path, text)| uses(path, text, "Arch::"))
        .collect();
    assert!(found.is_empty(), "a family is named outside its table: {found:#?}");
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
