//! Checkpoints: complete or absent, verified on loading, one generation back when damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::train::checkpoint::{Checkpoint, CheckpointDir};
use serde_json::json;

fn checkpoint(step: u64) -> Checkpoint {
    let w = Tensor::new(&[step as f32, 0.5], &Device::Cpu).unwrap();
    let weights = BTreeMap::from([("w".to_owned(), w)]);
    Checkpoint { step, tensors: BTreeMap::from([("weights".to_owned(), weights)]), state: json!({"cursor": step}) }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_newest_is_loaded_and_old_ones_are_removed_but_not_the_best() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(tmp.path()).unwrap();
    assert!(dir.load_latest().unwrap().is_none());
    for step in [10, 20, 30, 40] {
        dir.save(&checkpoint(step), step == 10).unwrap();
    }
    let (latest, warnings) = dir.load_latest().unwrap().unwrap();
    assert_eq!((latest.step, &latest.state, warnings.len()), (40, &json!({"cursor": 40}), 0));
    assert_eq!(latest.tensors["weights"]["w"].to_vec1::<f32>().unwrap(), [40.0, 0.5]);
    assert_eq!(names(tmp.path()), ["best.json", "ckpt-00000010-a1", "ckpt-00000030-a1", "ckpt-00000040-a1"]);
    assert_eq!(dir.load_best().unwrap().unwrap().step, 10);
}

#[test]
fn a_damaged_newest_falls_back_one_generation_with_a_warning() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(tmp.path()).unwrap();
    dir.save(&checkpoint(1), false).unwrap();
    let newest = dir.save(&checkpoint(2), false).unwrap();
    // One flipped bit in the weights: same size, still a valid safetensors file.
    let file = newest.join("weights.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let (loaded, warnings) = dir.load_latest().unwrap().unwrap();
    assert_eq!(loaded.step, 1);
    assert!(warnings[0].contains("ckpt-00000002") && warnings[0].contains("weights.safetensors"), "{warnings:?}");

    fs::remove_file(tmp.path().join("ckpt-00000001-a1/manifest.json")).unwrap();
    let error = dir.load_latest().unwrap_err().to_string();
    assert!(error.contains("no checkpoint") && error.contains("ckpt-00000001"), "{error}");
}

#[test]
fn a_write_cut_off_by_a_crash_is_invisible() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(tmp.path()).unwrap();
    dir.save(&checkpoint(1), false).unwrap();
    let partial = tmp.path().join("ckpt-00000002-a1.tmp");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("weights.safetensors"), b"half").unwrap();
    assert_eq!(dir.load_latest().unwrap().unwrap().0.step, 1);
    CheckpointDir::open(tmp.path()).unwrap();
    assert!(!partial.exists());
}

#[test]
fn a_manifest_cannot_point_outside_its_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(tmp.path()).unwrap();
    let path = dir.save(&checkpoint(1), false).unwrap();
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    fs::write(path.join("manifest.json"), manifest.replace("state.json", "../../etc/passwd")).unwrap();
    assert!(dir.load_latest().unwrap_err().to_string().contains("plain file name"));
}

/// The same step again (a run resumed and stopped at once) gets a new attempt number.
#[test]
fn saving_a_step_twice_keeps_both_until_pruned() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(tmp.path()).unwrap();
    dir.save(&checkpoint(7), false).unwrap();
    dir.save(&checkpoint(7), false).unwrap();
    assert_eq!(names(tmp.path()), ["ckpt-00000007-a1", "ckpt-00000007-a2"]);
}
