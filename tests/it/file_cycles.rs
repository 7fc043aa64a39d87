//! Files of `src` do not use each other in circles, apart from a listed few. A file and those of its own directory that
//! it declares with `mod` are exempt: a `mod.rs` re-exports from its children, which use the types beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Circles that exist, each as the files in it. A circle may lose files from this list, but not gain any.
const KNOWN: &[&[&str]] = &[
    // The table of routes has the handlers of the pages that show the table.
    &["http::docs", "http::openapi", "http::routes"],
    // A configuration is read by its family's table, and a family's table makes a configuration.
    &["model::config", "model::families", "model::families::read", "model::gguf::metadata"],
    &[
        "model::adapters::peft",
        "model::adapters::served",
        "model::decoder",
        "model::encoder::text",
        "model::gguf",
        "model::layers",
        "model::load",
        "model::load::side_files",
    ],
    &["train::rl::redraw", "train::rl::rollout"],
    &["train::rl::final_answer::number", "train::rl::final_answer::units"],
];

/// A path such as `["store", "rows", "Conn"]`.
type Names = Vec<String>;

/// The names of a path `a::b`.
fn names(path: &str) -> Names {
    path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A file's module, such as `store::rows` for src/store/rows.rs; `None` for the roots of the crate.
fn module_of(path: &Path) -> Option<String> {
    let mut parts: Names = path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_root = parts.last().is_some_and(|last| last == "mod") || parts == ["ops", "lib"];
    if is_root {
        parts.pop();
    }
    (!matches!(parts.join("::").as_str(), "" | "lib" | "main")).then(|| parts.join("::"))
}

/// Rust source without comments and without its unit tests, which may use what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Reads paths and trees of `use` declarations.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        let found = trimmed.starts_with(token);
        if found {
            self.at += rest.len() - trimmed.len() + token.len();
        }
        found
    }

    fn name(&mut self) -> Option<String> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        let end = trimmed.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(trimmed.len());
        let name = if trimmed.starts_with('*') { "*" } else { &trimmed[..end] };
        self.at += rest.len() - trimmed.len() + name.len();
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Adds every path of the tree that begins here, behind `prefix`.
    fn tree(&mut self, prefix: &[String], out: &mut Vec<Names>) {
        let mut path = prefix.to_vec();
        if self.eat("{") {
            return self.list(&path, out);
        }
        while let Some(name) = self.name() {
            path.push(name);
            if !self.eat("::") {
                break;
            }
            if self.eat("{") {
                return self.list(&path, out);
            }
        }
        out.push(path);
    }

    /// The trees of a list, up to its closing brace.
    fn list(&mut self, prefix: &[String], out: &mut Vec<Names>) {
        while self.at < self.text.len() && !self.eat("}") {
            let start = self.at;
            self.tree(prefix, out);
            if self.eat("as ") {
                self.name();
            }
            self.eat(",");
            if self.at == start {
                return;
            }
        }
    }
}

/// The paths in `text` that begin with `crate`, `super` or `self`, from the root of the crate. `module` is that of the
/// file.
fn paths(text: &str, module: &str) -> Vec<Names> {
    let mut out = Vec::new();
    for (root, ups) in [("crate::", None), ("super::", Some(1)), ("self::", Some(0))] {
        for (at, _) in text.match_indices(root) {
            // `$crate`, `my_crate` and the second `super` of `super::super` are something else.
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
                continue;
            }
            let mut prefix = match ups {
                // `ops` is a crate of its own.
                None if module == "ops" || module.starts_with("ops::") => names("ops"),
                None => Names::new(),
                Some(ups) => {
                    let own = names(module);
                    own[..own.len().saturating_sub(ups)].to_vec()
                }
            };
            let mut reader = Reader { text, at: at + root.len() };
            while reader.eat("super::") {
                prefix.pop();
            }
            reader.tree(&prefix, &mut out);
        }
    }
    out
}

/// The files of the crate by their modules, and where their names are re-exported from.
struct Tree {
    texts: BTreeMap<String, String>,
    /// (module, name) → the path of a `pub use`; the name `*` has several.
    exports: BTreeMap<(String, String), Vec<Names>>,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut texts = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(module) = module_of(path.strip_prefix(root).unwrap())
                    && path.extension().is_some_and(|e| e == "rs")
                {
                    texts.insert(module, code(&std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Self::of(texts)
    }

    fn of(texts: BTreeMap<String, String>) -> Self {
        let mut exports: BTreeMap<_, Vec<Names>> = BTreeMap::new();
        for (module, text) in &texts {
            for declaration in text.split(';') {
                let Some((before, tree)) = declaration.rsplit_once("use ") else { continue };
                let visibility = before.rsplit('\n').next().unwrap_or(before).trim();
                if !visibility.starts_with("pub") {
                    continue;
                }
                let rooted = ["crate::", "super::", "self::"].iter().any(|root| tree.starts_with(root));
                let tree = if rooted { tree.to_owned() } else { format!("self::{tree}") };
                for mut path in paths(&tree, module) {
                    let name = path.last().cloned().unwrap_or_default();
                    if matches!(name.as_str(), "*" | "self") {
                        path.pop();
                    }
                    let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name };
                    exports.entry((module.clone(), name)).or_default().push(path);
                }
            }
        }
        Self { texts, exports }
    }

    fn defines(&self, module: &str, name: &str) -> bool {
        let text = self.texts.get(module).map_or("", String::as_str);
        ["fn", "struct", "enum", "trait", "type", "const", "static", "macro_rules!"].iter().any(|kind| {
            let needle = format!("{kind} {name}");
            text.match_indices(&needle)
                .any(|(at, _)| !text[at + needle.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        })
    }

    /// The file that a path leads to, through re-exports.
    fn file_of(&self, path: &[String], depth: usize) -> Option<String> {
        let length = (1..=path.len()).rev().find(|n| self.texts.contains_key(&path[..*n].join("::")))?;
        let module = path[..length].join("::");
        let Some(name) = path.get(length).filter(|_| depth < 5) else { return Some(module) };
        if let Some(exported) = self.exports.get(&(module.clone(), name.clone())) {
            return self.file_of(&[exported[0].as_slice(), &path[length + 1..]].concat(), depth + 1);
        }
        let globs = self.exports.get(&(module.clone(), "*".to_owned()));
        let found = globs.into_iter().flatten().map(|glob| glob.join("::")).find(|glob| self.defines(glob, name));
        Some(found.unwrap_or(module))
    }

    /// (file, the files that it uses), without those above and below it.
    fn uses(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let related = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}::")) || b.starts_with(&format!("{a}::"));
        let of = |module: &String, text: &String| -> BTreeSet<String> {
            let found = paths(text, module).into_iter().filter_map(|mut path| {
                path.retain(|name| !matches!(name.as_str(), "*" | "self"));
                self.file_of(&path, 0)
            });
            found.filter(|used| !related(module, used)).collect()
        };
        self.texts.iter().map(|(module, text)| (module.as_str(), of(module, text))).collect()
    }

    /// The circles: groups of files that reach one another.
    fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let uses = self.uses();
        let reach = |from: &str| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
            while let Some(file) = open.pop() {
                for used in uses.get(file.as_str()).into_iter().flatten() {
                    if seen.insert(used.clone()) {
                        open.push(used.clone());
                    }
                }
            }
            seen
        };
        let reached: BTreeMap<&str, BTreeSet<String>> = uses.keys().map(|file| (*file, reach(file))).collect();
        let together = |file: &str| -> BTreeSet<String> {
            let back = reached[file].iter().filter(|other| reached[other.as_str()].contains(file));
            back.cloned().collect()
        };
        uses.keys().map(|file| together(file)).filter(|circle| !circle.is_empty()).collect()
    }
}

#[test]
fn files_do_not_use_each_other_in_circles() {
    let tree = Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(tree.texts.len() > 300, "{} files", tree.texts.len());
    let circles = tree.circles();
    let is_in = |circle: &BTreeSet<String>, known: &[&str]| circle.iter().all(|file| known.contains(&file.as_str()));
    let new: Vec<_> = circles.iter().filter(|circle| !KNOWN.iter().any(|known| is_in(circle, known))).collect();
    assert!(new.is_empty(), "files use each other in circles: move what both need into a file below them: {new:#?}");
    let gone: Vec<_> = KNOWN.iter().filter(|known| !circles.iter().any(|circle| is_in(circle, known))).collect();
    assert!(gone.is_empty(), "circles that are listed and cut: take them off the list: {gone:#?}");
}

#[test]
fn circles_are_found_through_lists_and_reexports() {
    let texts = [
        ("a", "pub mod x;\npub mod y;\npub use y::Thing;\npub use x::*;"),
        ("a::x", "use super::{Thing, b::Other as Another};\npub struct Plain;"),
        ("a::y", "fn f(_: crate::a::x::Plain) {}\npub struct Thing;"),
        ("a::z", "use crate::a::{self, Plain};"),
        ("a::b", "pub struct Other;"),
    ];
    let texts = texts.into_iter().map(|(module, text)| (module.to_owned(), text.to_owned())).collect();
    let tree = Tree::of(texts);
    let circle: BTreeSet<String> = ["a::x", "a::y"].map(str::to_owned).into();
    assert_eq!(tree.circles(), BTreeSet::from([circle]));
    let uses = tree.uses();
    assert_eq!(uses["a::x"], ["a::b", "a::y"].map(str::to_owned).into());
    assert_eq!(uses["a::z"], ["a::x"].map(str::to_owned).into(), "a glob leads to the file that defines the name");
}
