//! Bounded fuzzing of every loader: kept seeds, damaged at random, through the same entries that the libFuzzer
//! targets in `fuzz/` drive. `INSTRUCTD_FUZZ_ROUNDS` makes a long run, `INSTRUCTD_FUZZ_SEED` another one.

use std::path::Path;

use crate::crash::server::{Dice, setting};
use crate::support::{allocations, fixture};

#[path = "../../../fuzz/entries.rs"]
mod entries;

/// No file of a few kilobytes may make a loader take more in one piece.
const LARGEST: usize = 64 << 20;

/// Starting points of a target: fixtures, and what was once a finding.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).unwrap();
    let mut seeds = Vec::new();
    for model in [
        "llama-tiny",
        "gpt2-tiny",
        "qwen2-tiny",
        "bert-tiny",
        "families/gemma3",
        "families/gpt-neox",
        "families/modernbert",
    ] {
        let dir = fixture(model);
        match target {
            "safetensors" if model == "llama-tiny" => seeds.push(read(&dir.join("model.safetensors"))),
            "config" => seeds.push(read(&dir.join("config.json"))),
            "tokenizer" => seeds.push(read(&dir.join("tokenizer.json"))),
            _ => {}
        }
    }
    if target == "gguf" {
        seeds.push(crate::data::damaged::tiny_gguf());
    }
    if target == "parquet" {
        let version = ::parquet::file::properties::WriterVersion::PARQUET_2_0;
        seeds.extend(crate::data::imports::codecs().map(|codec| crate::data::imports::file(codec, version, 40)));
        seeds.push(read(&fixture("formats").join("preferences.parquet")));
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(kept).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    seeds.extend(files.iter().map(|p| read(p)));
    assert!(!seeds.is_empty(), "no seeds for {target}");
    seeds
}

const WORDS: &[&[u8]] = &[
    b"null",
    b"{}",
    b"[]",
    b"\"\"",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551615",
    b"9223372036854775807",
    b"true",
    b"\\ud800",
    b"\xF0\x9F\x98\x80",
    b"\0",
    b"\n",
    b",",
    b":",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"loop",
    b"..",
    b"[[[[[[",
    b"GGUF",
    b"F32",
    b"BOOL",
    b"999999999999",
];

/// One to eight changes of the kinds that have broken parsers.
fn damage(data: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.roll(8) {
        let length = data.len() as u64;
        let at = dice.roll(length + 1) as usize;
        let inside = at.min(data.len().saturating_sub(1));
        match dice.roll(9) {
            0 if length > 0 => data[inside] ^= 1 << dice.roll(8),
            1 if length > 0 => data[inside] = dice.roll(256) as u8,
            2 => data.truncate(at),
            3 => {
                let word = WORDS[dice.roll(WORDS.len() as u64) as usize];
                data.splice(at..at, word.iter().copied());
            }
            // A number of any width becomes an extreme one.
            4 => {
                let width = [1usize, 2, 4, 8][dice.roll(4) as usize];
                let extreme = [0u64, 1, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 31, 1 << 40][dice.roll(7) as usize];
                for (i, byte) in extreme.to_le_bytes()[..width].iter().enumerate() {
                    if let Some(place) = data.get_mut(at + i) {
                        *place = *byte;
                    }
                }
            }
            5 => {
                let end = (at + dice.roll(64) as usize).min(data.len());
                data.drain(at.min(end)..end);
            }
            6 => {
                let end = (at + dice.roll(256) as usize).min(data.len());
                let piece = data[at.min(end)..end].to_vec();
                let to = dice.roll(data.len() as u64 + 1) as usize;
                data.splice(to..to, piece);
            }
            7 if !other.is_empty() => {
                let from = dice.roll(other.len() as u64) as usize;
                let end = (from + dice.roll(128) as usize).min(other.len());
                data.splice(at..at, other[from..end].iter().copied());
            }
            // A digit inside the text becomes another one: sizes, ids, counts.
            _ => {
                let digits: Vec<usize> = (0..data.len()).filter(|i| data[*i].is_ascii_digit()).collect();
                if let Some(i) = digits.get(dice.roll(digits.len().max(1) as u64) as usize) {
                    data[*i] = b'0' + dice.roll(10) as u8;
                }
            }
        }
        data.truncate(256 << 10);
    }
}

fn survives_damage(target: &str) {
    let entry = entries::ENTRIES.iter().find(|(name, _)| *name == target).unwrap().1;
    let seeds = seeds(target);
    let mut dice = Dice(setting("INSTRUCTD_FUZZ_SEED", 1));
    let rounds = setting("INSTRUCTD_FUZZ_ROUNDS", 300);
    for (i, seed) in seeds.iter().enumerate() {
        check(target, entry, seed, &format!("seed {i}"));
    }
    for round in 0..rounds {
        let mut data = seeds[dice.roll(seeds.len() as u64) as usize].clone();
        let other = &seeds[dice.roll(seeds.len() as u64) as usize];
        damage(&mut data, other, &mut dice);
        check(target, entry, &data, &format!("round {round}"));
    }
}

fn check(target: &str, entry: fn(&[u8]), data: &[u8], what: &str) {
    let largest = allocations::largest_in(|| {
        if let Err(panic) = std::panic::catch_unwind(|| entry(data)) {
            let kept = std::env::temp_dir().join(format!("instructd-finding-{target}"));
            std::fs::write(&kept, data).unwrap();
            println!("{what} of {target} panicked; the file is {}", kept.display());
            std::panic::resume_unwind(panic);
        }
    });
    if largest > LARGEST {
        let kept = std::env::temp_dir().join(format!("instructd-finding-{target}"));
        std::fs::write(&kept, data).unwrap();
        panic!("{what} of {target} took {largest} bytes in one piece; the file is {}", kept.display());
    }
}

#[test]
fn gguf() {
    survives_damage("gguf");
}

#[test]
fn safetensors() {
    survives_damage("safetensors");
}

#[test]
fn config() {
    survives_damage("config");
}

#[test]
fn tokenizer() {
    survives_damage("tokenizer");
}

#[test]
fn imports() {
    survives_damage("imports");
}

#[test]
fn parquet() {
    survives_damage("parquet");
}

#[test]
fn chat_template() {
    survives_damage("chat_template");
}
