//! Erasure in the files of training jobs: a job freezes what it learns from, so a person's words lie there too.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What of those files is one person's.
#[derive(Debug, Default)]
pub struct Theirs {
    /// Texts that they wrote: every line that holds one goes.
    pub texts: Vec<String>,
    /// Rankings that they gave. Lines carry no author, so of equal lines one goes for each ranking.
    pub lines: Vec<Value>,
}

/// Takes a person's lines out of the files in every job's directory; returns how many. A file is replaced whole.
///
/// # Errors
/// A directory that cannot be read, a file that cannot be written.
pub fn forget(jobs: &Path, theirs: Theirs) -> std::io::Result<u64> {
    let texts: HashSet<String> = theirs.texts.into_iter().filter(|text| !text.is_empty()).collect();
    if (texts.is_empty() && theirs.lines.is_empty()) || !jobs.is_dir() {
        return Ok(0);
    }
    let mut taken = 0;
    for job in std::fs::read_dir(jobs)? {
        let job = job?.path();
        // What it froze from what people wrote and ranked, and the samples among its logs.
        for dir in [job.clone(), job.join("logs")] {
            for path in line_files(&dir)? {
                taken += forget_in(&path, &texts, theirs.lines.clone())?;
            }
        }
    }
    Ok(taken)
}

/// Files of JSON lines in a directory; none where there is no directory.
fn line_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == "jsonl") {
            found.push(path);
        }
    }
    Ok(found)
}

fn forget_in(path: &Path, texts: &HashSet<String>, mut rankings: Vec<Value>) -> std::io::Result<u64> {
    let beside = path.with_extension("erasing");
    let mut out = BufWriter::new(std::fs::File::create(&beside)?);
    let mut taken = 0;
    for line in BufReader::new(std::fs::File::open(path)?).lines() {
        let line = line?;
        let theirs = match serde_json::from_str::<Value>(&line) {
            Ok(value) => match rankings.iter().position(|ranking| *ranking == value) {
                Some(at) => {
                    rankings.swap_remove(at);
                    true
                }
                None => holds(&value, texts),
            },
            // Whose a broken line is cannot be told.
            Err(_) => true,
        };
        if theirs {
            taken += 1;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    if taken == 0 {
        std::fs::remove_file(&beside)?;
    } else {
        std::fs::rename(&beside, path)?;
    }
    Ok(taken)
}

fn holds(value: &Value, texts: &HashSet<String>) -> bool {
    match value {
        Value::String(text) => texts.contains(text.as_str()),
        Value::Array(list) => list.iter().any(|v| holds(v, texts)),
        Value::Object(map) => map.values().any(|v| holds(v, texts)),
        _ => false,
    }
}
