//! Training data that is larger than memory.

use std::path::Path;

use candle_core::Device;
use instructd::data::{Comparison, DataError, PromptInput, RankedText, Thumbed, mixture};
use instructd::prompt::Texts;
use instructd::train::args::{PpoArgs, parse};
use instructd::train::ranked::Rankings;
use instructd::train::thumbed::{Feedback, FeedbackExample};
use instructd::train::token_file::TokenFile;
use instructd::train::turns;
use serde_json::json;

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

/// Writes completions with thumbs. Each is a prompt's number and its own text.
fn write_thumbs(path: &Path, thumbs: impl IntoIterator<Item = (usize, String)>) {
    let line = |(prompt, completion)| {
        let prompt = PromptInput::Text(format!("t3 t{}", prompt + 4));
        // All on one side.
        let split = Some(instructd::domain::Split::Train);
        let one = Thumbed { prompt_id: None, prompt, completion, label: true, split };
        serde_json::to_string(&one).unwrap() + "\n"
    };
    std::fs::write(path, thumbs.into_iter().map(line).collect::<String>()).unwrap();
}

fn words(seed: usize, n: usize) -> String {
    (0..n).map(|word| format!("t{}", (seed * 31 + word * 7) % 90 + 3)).collect::<Vec<_>>().join(" ")
}

/// Reads the thumbs with at most `memory` bytes of token ids in memory.
fn read_thumbs(texts: &Texts, file: &Path, memory: usize) -> Vec<FeedbackExample> {
    let tokens = TokenFile::with_memory(file.parent().unwrap(), memory);
    Feedback::read(file.to_str().unwrap(), texts, 512, 0.0, tokens).unwrap().train
}

#[test]
fn every_prompt_is_paired_with_the_completion_of_the_next_other_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("thumbs.jsonl");
    let loaded = instructd::model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let cases: [&[usize]; 8] = [
        &[0],
        &[0, 0],
        &[0, 0, 0],
        &[0, 1],
        &[0, 0, 1, 1, 2, 0],
        &[0, 0, 1, 1, 0, 0],
        &[1, 0, 0, 0],
        &[2, 1, 1, 2, 2, 0, 2, 2],
    ];
    for prompts in cases {
        write_thumbs(&file, prompts.iter().enumerate().map(|(i, prompt)| (*prompt, words(i, 5 + i))));
        let n = prompts.len();
        for memory in [usize::MAX, 0] {
            let found = read_thumbs(&texts, &file, memory);
            assert_eq!(found.len(), n);
            for (i, one) in found.iter().enumerate() {
                let after = (1..n).map(|k| (i + k) % n);
                let other = after.clone().find(|&j| prompts[j] != prompts[i]).or(after.clone().next()).unwrap_or(i);
                let response = |ids: &[u32], start: usize| ids[start..].to_vec();
                let expected = response(&found[other].sequence.ids, found[other].sequence.start);
                assert_eq!(response(&one.mismatched.ids, one.mismatched.start), expected, "{prompts:?}: {i}");
                let start = one.sequence.start;
                assert_eq!(one.mismatched.ids[..start], one.sequence.ids[..start], "the prompt stays");
            }
        }
    }
}

#[test]
fn token_ids_of_thumbs_beyond_a_limit_are_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = instructd::model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    // By the number of completions that share a prompt: all of them, two, one.
    for alike in [usize::MAX, 2, 1] {
        let [small, large] = [1000, 3000].map(|n| {
            let file = dir.path().join("thumbs.jsonl");
            write_thumbs(&file, (0..n).map(|i| (i / alike % 80, words(i, 80))));
            [usize::MAX, 0].map(|memory| {
                let mut ids = 0;
                let peak = allocations::peak_in(|| {
                    let found = read_thumbs(&texts, &file, memory);
                    ids = 4 * found.iter().map(|one| one.sequence.ids.len()).sum::<usize>() / n;
                });
                (peak, ids)
            })
        });
        let per_completion = [0, 1].map(|which: usize| (large[which].0 - small[which].0) / 2000);
        let [in_memory, in_file] = per_completion;
        let tokens = large[0].1;
        eprintln!(
            "bytes of a completion: {in_memory} with ids in memory, {in_file} with a file; its ids take {tokens}"
        );
        assert!(tokens > 320 && in_memory > tokens, "{tokens}, {in_memory}");
        assert!(in_file < 600, "{in_file}");
    }
}

#[test]
fn rows_of_a_mixture_are_not_held_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = json!({"tasks": [{"name": "say", "file": "rows.jsonl", "templates": [{"prompt": "{q}", "completion": "{a}"}]}]});
    let path = dir.path().join("mixture.json");
    std::fs::write(&path, tasks.to_string()).unwrap();
    let peak = |n: usize| {
        let rows = (0..n).map(|i| json!({"q": words(i, 5), "a": words(i, 200)}).to_string() + "\n");
        std::fs::write(dir.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
        let mut total = 0;
        let peak = allocations::peak_in(|| {
            let rows = mixture::read(&path, dir.path(), |_, n| (0..n).collect(), |_, _, _| 0).unwrap();
            total = rows
                .demonstrations()
                .map(|row| Ok::<_, DataError>(row?.completion.len()))
                .sum::<Result<usize, _>>()
                .unwrap();
        });
        assert!(total > n * 600, "{total}");
        peak
    };
    let per_row = (peak(4000) - peak(2000)) / 2000;
    assert!(per_row < 60, "{per_row} bytes of a row of more than 600");
}

/// Writes `prompts` conversations of three user turns, of 60 to 80 words each, with answers between them.
fn write_conversations(path: &Path, prompts: usize) {
    let words = |prompt: usize, turn: usize| {
        let words = (0..60 + 10 * turn).map(|word| format!("t{}", (prompt * 31 + turn * 7 + word) % 90 + 3));
        words.collect::<Vec<_>>().join(" ")
    };
    let line = |prompt: usize| {
        let message = |turn: usize| {
            let role = if turn.is_multiple_of(2) { "user" } else { "assistant" };
            json!({"role": role, "content": words(prompt, turn / 2)})
        };
        json!({"messages": (0..5).map(message).collect::<Vec<_>>(), "answer": format!("t{prompt}")}).to_string()
    };
    std::fs::write(path, (0..prompts).map(|prompt| line(prompt) + "\n").collect::<String>()).unwrap();
}

/// Reads the prompts of a run over whole conversations with at most `memory` bytes of ids and texts in memory: the bytes
/// that were held at most, and for each prompt its ids and texts.
fn read_conversations(file: &Path, memory: usize) -> (usize, Vec<(Vec<u32>, turns::PromptTexts)>) {
    let loaded = instructd::model::load(&fixture("llama-tied-tiny"), &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let args = json!({"model": "m", "output_dir": "o", "prompts": file, "reward": {"kind": "length", "target": 4},
        "turns": "all", "response_length": 8});
    let rl = parse::<PpoArgs>(&args).unwrap().rl();
    let mut found = None;
    let peak = allocations::peak_in(|| {
        let tokens = TokenFile::with_memory(file.parent().unwrap(), memory);
        found = Some(turns::read(&rl, &texts, 512, tokens).unwrap().0);
    });
    let all = found.unwrap().into_iter().map(|prompt| {
        let ids = (0..prompt.ids.turns()).flat_map(|turn| prompt.ids.before(turn).to_vec());
        (ids.collect(), prompt.texts().unwrap())
    });
    (peak, all.collect())
}

#[test]
fn prompts_of_conversations_beyond_a_limit_are_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let [small, large] = [("small.jsonl", 500), ("large.jsonl", 1500)].map(|(name, prompts)| {
        let path = dir.path().join(name);
        write_conversations(&path, prompts);
        path
    });
    // What a prompt more takes.
    let per_prompt = |memory| (read_conversations(&large, memory).0 - read_conversations(&small, memory).0) / 1000;
    let (in_memory, in_file) = (per_prompt(usize::MAX), per_prompt(0));
    let ((_, expected), (_, found)) = (read_conversations(&large, usize::MAX), read_conversations(&large, 0));
    assert!(found == expected, "in the same order, with the same ids and texts");
    assert_eq!((found[7].1.next.len(), found[7].1.answer.as_deref()), (2, Some("t7")));
    let tokens = 4 * found.iter().map(|(ids, _)| ids.len()).sum::<usize>() / 1500;
    eprintln!(
        "bytes of a prompt: {in_memory} with ids and texts in memory, {in_file} with a file; its ids take {tokens}"
    );
    assert!(tokens > 800, "{tokens}");
    assert!(in_file + tokens < in_memory, "{in_file}, {in_memory}");
    // Neither a text nor an id: places in the file.
    assert!(in_file < 600, "{in_file}");
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left beside the data: {names:?}");
}
