//! Names that become paths, and text that becomes tokens.

use std::path::{Component, Path};
use std::sync::LazyLock;

use instructd::artifacts::{ArtifactError, copy_tree, verify};
use instructd::domain::is_model_name;
use instructd::service::register::version_name;
use instructd::store::ModelFile;
use instructd::tokenizer::Tokenizer;
use proptest::prelude::*;

use crate::data::tokens::byte_tokenizer;

/// Text with everything that paths are attacked with.
fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("..".to_owned()),
        Just("/".to_owned()),
        Just("\\".to_owned()),
        Just("\0".to_owned()),
        Just("%2e%2e%2f".to_owned()),
        Just("~".to_owned()),
        Just("C:".to_owned()),
        Just(".".to_owned()),
        "[a-z0-9._-]{1,20}",
        "\\PC{0,4}",
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

fn stays_inside(name: &str) -> bool {
    Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(byte_tokenizer);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_model_name_is_one_step_of_a_path(name in hostile()) {
        if is_model_name(&name) {
            prop_assert!(stays_inside(&name) && Path::new(&name).components().count() == 1, "{name:?}");
            prop_assert!(name.len() <= 64 && !name.contains("..") && !name.starts_with('.'));
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)));
        }
        let made = version_name(&name);
        prop_assert!(is_model_name(&made), "{name:?} became {made:?}");
        if is_model_name(&name) {
            prop_assert_eq!(made, name, "a good name is kept");
        }
    }

    #[test]
    fn decoding_undoes_encoding(text in "(\\PC|[ \\n\\t]|<\\|end\\|>|\u{200D}|e\u{301}){0,40}") {
        for parse_special in [false, true] {
            let ids = TOKENIZER.encode(&text, false, parse_special).unwrap();
            prop_assert_eq!(TOKENIZER.decode(&ids, false).unwrap(), text.clone());
            if !parse_special {
                prop_assert!(ids.iter().all(|id| !TOKENIZER.is_special(*id)));
            }
        }
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(any::<u32>().prop_map(|id| id % 300), 0..40)) {
        let text = TOKENIZER.decode(&ids, false).unwrap();
        // What is valid text comes back by the same characters, whatever tokens it is made of.
        if !text.contains('\u{FFFD}') {
            let again = TOKENIZER.encode(&text, false, true).unwrap();
            prop_assert_eq!(TOKENIZER.decode(&again, false).unwrap(), text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Paths of a version's files come from a database: none may lead out of its directory.
    #[test]
    fn files_of_a_version_stay_in_its_directory(path in hostile()) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a/from"), dir.path().join("a/to"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(&to).unwrap();
        let file = ModelFile { path: path.clone(), bytes: 0, sha256: String::new() };
        let refused = |e: ArtifactError| match e {
            ArtifactError::Damaged { what, .. } => what.contains("outside"),
            _ => false,
        };
        let outside = !stays_inside(&path) || path.is_empty();
        let checked = verify("m", &from, std::slice::from_ref(&file)).expect_err("there is no such file");
        prop_assert_eq!(refused(checked), outside, "{:?}", path);
        let copied = copy_tree("m", &from, &[file], &to).expect_err("there is no such file");
        prop_assert_eq!(refused(copied), outside, "{:?}", path);
        let around: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        prop_assert_eq!(around.len(), 1, "nothing was written outside");
    }
}
