//! Erasure in the files of training jobs, which contain frozen copies of people's texts and rankings.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One person's texts and rankings in those files.
#[derive(Debug, Default)]
pub struct PersonalData {
    /// Texts that the person wrote: every line that contains one is removed.
    pub texts: Vec<String>,
    /// Rankings of the person. Lines have no author, so one of several equal lines is removed for each ranking.
    pub lines: Vec<Value>,
}

/// Removes a person's lines from the files in every job's directory; returns their number. Each file is replaced
/// atomically.
///
/// # Errors
/// A directory that cannot be read, a file that cannot be written.
pub fn remove_personal_lines(jobs: &Path, personal: PersonalData) -> std::io::Result<u64> {
    let texts: HashSet<String> = personal.texts.into_iter().filter(|text| !text.is_empty()).collect();
    if (texts.is_empty() && personal.lines.is_empty()) || !jobs.is_dir() {
        return Ok(0);
    }
    let mut taken = 0;
    for job in std::fs::read_dir(jobs)? {
        let job = job?.path();
        // Frozen data, and the samples among the job's logs.
        for dir in [job.clone(), job.join("logs")] {
            for path in line_files(&dir)? {
                taken += remove_lines_in(&path, &texts, personal.lines.clone())?;
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

fn remove_lines_in(path: &Path, texts: &HashSet<String>, mut rankings: Vec<Value>) -> std::io::Result<u64> {
    let partial = path.with_extension("erasing");
    let mut out = BufWriter::new(std::fs::File::create(&partial)?);
    let mut taken = 0;
    for line in BufReader::new(std::fs::File::open(path)?).lines() {
        let line = line?;
        let personal = match serde_json::from_str::<Value>(&line) {
            Ok(value) => match rankings.iter().position(|ranking| *ranking == value) {
                Some(at) => {
                    rankings.swap_remove(at);
                    true
                }
                None => holds(&value, texts),
            },
            // The author of a broken line is unknown.
            Err(_) => true,
        };
        if personal {
            taken += 1;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    if taken == 0 {
        std::fs::remove_file(&partial)?;
    } else {
        std::fs::rename(&partial, path)?;
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
