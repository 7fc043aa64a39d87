//! The inputs of a reinforcement-learning run: its prompts, the hashes of all files, and checks of the held-out signal.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::rollout::PromptIds;
use crate::data::read_prompts;
use crate::prompt::Texts;
use crate::train::args::RlCommon;
use crate::train::fit::{Fit, count};
use crate::train::run::{file_hash, model_hash};

/// Refuses a held-out signal that is a copy of the reward: a reward model with the same weights, or the rankings from
/// which the reward model has learned.
pub fn check_held_out(rl: &RlCommon) -> Result<()> {
    let Some(reward) = &rl.reward_model else { return Ok(()) };
    if let Some(gold) = &rl.gold_reward_model
        && same_weights(reward, gold).context("gold_reward_model")?
    {
        bail!("gold_reward_model: it has the weights of the reward model that the policy is trained on");
    }
    let learned = std::fs::read(Path::new(reward).join("instructd.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        .and_then(|about| about["data"]["comparisons"].as_str().map(str::to_owned));
    if let (Some(learned), Some(gold)) = (learned, &rl.gold_comparisons)
        && file_hash(gold)? == learned
    {
        bail!("gold_comparisons: these are the rankings from which the reward model has learned; give other ones");
    }
    Ok(())
}

/// Whether two models are the same file, or have weight files of the same contents.
fn same_weights(a: &str, b: &str) -> Result<bool> {
    let files = |path: &str| -> Result<Vec<std::path::PathBuf>> {
        if !Path::new(path).is_dir() {
            return Ok(vec![path.into()]);
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {path}"))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        Ok(files)
    };
    let (a, b) = (files(a)?, files(b)?);
    let size = |file: &std::path::PathBuf| std::fs::metadata(file).map_or(0, |meta| meta.len());
    // Files of different sizes need not be hashed.
    if a.is_empty() || a.iter().map(size).ne(b.iter().map(size)) {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(&b) {
        if file_hash(&a.display().to_string())? != file_hash(&b.display().to_string())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hashes of all files that determine the result of the run.
pub fn data_hashes(rl: &RlCommon, ptx: Option<(String, String)>) -> Result<BTreeMap<String, String>> {
    let mut data = BTreeMap::from([("prompts".to_owned(), file_hash(&rl.prompts)?)]);
    data.extend(ptx);
    if let Some(path) = &rl.gold_comparisons {
        data.insert("gold_comparisons".to_owned(), file_hash(path)?);
    }
    for (name, path) in [
        ("reward_model", &rl.reward_model),
        ("gold_reward_model", &rl.gold_reward_model),
        ("judge_model", &rl.judge_model),
    ] {
        // Only checkpoints need them, and hashing a model takes long.
        if let Some(path) = path.as_ref().filter(|_| rl.common.checkpoint_dir.is_some()) {
            data.insert(name.to_owned(), model_hash(path)?);
        }
    }
    Ok(data)
}

/// Removes the prompts without an answer. Returns their names: the line of the file, and the id if the record has one.
///
/// # Errors
/// If none is left.
pub fn answered(prompts: &mut Vec<PromptIds>) -> Result<Vec<String>> {
    let is_answered = |p: &PromptIds| p.answer.as_deref().is_some_and(|answer| !answer.trim().is_empty());
    let missing: Vec<String> = prompts.iter().filter(|p| !is_answered(p)).map(|p| p.name.clone()).collect();
    prompts.retain(is_answered);
    if prompts.is_empty() {
        bail!("prompts: none of the {} has an `answer`, which the reward compares with", missing.len());
    }
    Ok(missing)
}

/// The warning about prompts without an answer; it names the first ones.
pub fn left_out(names: &[String], rest: usize) -> String {
    const SHOWN: usize = 10;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!(
        "{shown}{more} {verb} left out: the reward compares with the prompt's `answer`, and there is none; {} left",
        count(rest, "prompt is", "prompts are")
    )
}

/// Lengths in tokens of the prompts, without truncation, each with a response of the maximum length.
pub fn lengths(rl: &RlCommon, texts: &Texts) -> Result<Vec<usize>> {
    let mut lengths = Vec::new();
    for record in read_prompts(Path::new(&rl.prompts)).context("prompts")? {
        lengths.push(texts.prompt(&record.context("prompts")?.prompt)?.len() + rl.response_length);
    }
    Ok(lengths)
}

/// The prompts as ids, whose beginnings are cut off so that a response of the maximum length fits; and how many were
/// cut.
pub fn prompts(rl: &RlCommon, texts: &Texts, max_length: usize) -> Result<(Vec<PromptIds>, Fit)> {
    let Some(room) = max_length.checked_sub(rl.response_length).filter(|room| *room > 0) else {
        bail!("response_length: {} tokens leave no room for a prompt in {max_length}", rl.response_length)
    };
    let (mut prompts, mut fit) = (Vec::new(), Fit::new(max_length));
    for (i, record) in read_prompts(Path::new(&rl.prompts)).context("prompts")?.enumerate() {
        let record = record.context("prompts")?;
        let ids = texts.prompt(&record.prompt)?;
        fit.note_prompt(ids.len() > room);
        let ids = ids[ids.len().saturating_sub(room)..].to_vec();
        let id = record.prompt_id.map(|id| format!(" ({id})")).unwrap_or_default();
        let name = format!("prompt {}{id}", i + 1);
        prompts.push(PromptIds { ids, prompt: record.prompt, answer: record.answer, name });
    }
    Ok((prompts, fit))
}
