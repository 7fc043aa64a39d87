//! Training data that is larger than memory.

use std::path::Path;

use candle_core::Device;
use instructd::data::{Comparison, PromptInput, RankedText};
use instructd::prompt::Texts;
use instructd::train::ranked::Rankings;
use instructd::train::token_file::TokenFile;

use crate::support::{allocations, fixture};

/// Writes `sets` rankings of three answers of 60 to 80 words.
fn write_rankings(path: &Path, sets: usize) {
    let answer = |set: usize, which: usize| {
        let words = (0..60 + 10 * which).map(|word| format!("t{}", (set * 31 + which * 7 + word) % 90 + 3));
        words.collect::<Vec<_>>().join(" ")
    };
    let line = |set: usize| {
        let texts = (0..3).map(|which| RankedText::new(answer(set, which), which as i64)).collect();
        serde_json::to_string(&Comparison::new(PromptInput::Text(format!("t5 t{}", set % 90 + 3)), texts)).unwrap()
    };
    std::fs::write(path, (0..sets).map(|set| line(set) + "\n").collect::<String>()).unwrap();
}

/// Reads the rankings with at most `memory` bytes of token ids in memory: the bytes that were held at most, and the ids.
fn read(file: &Path, memory: usize) -> (usize, Vec<Vec<u32>>) {
    let loaded = instructd::model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let mut found = None;
    let peak = allocations::peak_in(|| {
        let tokens = TokenFile::with_memory(file.parent().unwrap(), memory);
        found = Some(Rankings::read(file.to_str().unwrap(), &texts, 512, 0.1, &[], tokens).unwrap());
    });
    let found = found.unwrap();
    let all = found.train.iter().chain(&found.heldout).flat_map(|set| &set.sequences);
    (peak, all.map(|sequence| sequence.ids.to_vec()).collect())
}

#[test]
fn token_ids_of_rankings_beyond_a_limit_are_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let [small, large] = [("small.jsonl", 500), ("large.jsonl", 1500)].map(|(name, sets)| {
        let path = dir.path().join(name);
        write_rankings(&path, sets);
        path
    });
    // What a set more takes.
    let per_set = |memory| (read(&large, memory).0 - read(&small, memory).0) / 1000;
    let (in_memory, in_file) = (per_set(usize::MAX), per_set(0));
    let ((_, expected), (_, ids)) = (read(&large, usize::MAX), read(&large, 0));
    assert_eq!(ids, expected, "in the same order");
    let tokens = 4 * ids.iter().map(Vec::len).sum::<usize>() / 1500;
    eprintln!("bytes of a set: {in_memory} with ids in memory, {in_file} with a file; its ids take {tokens}");
    assert!(tokens > 800, "{tokens}");
    assert!(in_file + tokens * 9 / 10 < in_memory, "{in_file}, {in_memory}");
    // Neither a text nor an id: counts, hashes, tiers and places in the file.
    assert!(in_file < 1200, "{in_file}");
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left beside the data: {names:?}");
}
