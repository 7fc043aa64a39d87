//! The inputs of a reinforcement-learning run: its prompts, the hashes of all files, and checks of the held-out signal.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Algorithm;
use crate::prompt::Texts;
use crate::train::args::{RlCommon, Turns};
use crate::train::fit::{self, Fit, count};
use crate::train::run::{Run, file_hash, model_hash};
use crate::train::sft::{Demonstrations, lengths_of_file};
use crate::train::step::Sequence;
use crate::train::token_file::TokenFile;
use crate::train::turns::StoredPrompt;

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
pub fn answered(prompts: &mut Vec<StoredPrompt>) -> Result<Vec<String>> {
    let missing = prompts.iter().filter(|prompt| !prompt.is_answered);
    let missing: Vec<String> = missing.map(|prompt| Ok(prompt.texts()?.name)).collect::<Result<_>>()?;
    prompts.retain(|prompt| prompt.is_answered);
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

/// Reports the numbers of turns of the prompts, and warns of conversations that are too long for answers of the maximum
/// length to all turns. Returns the numbers as JSON; null with `turns` last.
pub fn report_turns(rl: &RlCommon, prompts: &[StoredPrompt], max_length: usize, run: &mut Run<'_>) -> Value {
    if rl.turns == Turns::Last {
        return Value::Null;
    }
    let turns: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.turns()).collect();
    let mean = turns.iter().sum::<usize>() as f64 / turns.len().max(1) as f64;
    let several = turns.iter().filter(|turns| **turns > 1).count();
    let too_long = prompts.iter().filter(|prompt| prompt.ids.most_tokens(rl.response_length) > max_length).count();
    let report = json!({
        "prompts": prompts.len(), "prompts_of_several_turns": several,
        "turns": {"mean": mean, "longest": turns.iter().max()}, "may_be_cut": too_long,
    });
    let of = count(prompts.len(), "prompt has", "prompts have");
    let mut event = report.clone();
    event["message"] = format!("turns: {several} of {of} several user turns; {mean:.1} turns on average").into();
    run.reporter.event("data", event);
    run.data_report = Some(report.clone());
    if several == 0 {
        run.warn("turns: no prompt has several user turns, so `all` is the same as `last`".to_owned());
    }
    if too_long > 0 {
        run.warn(format!(
            "turns: {} too long for answers of {} tokens to all turns within max_length {max_length}; such a conversation \
             ends before the first turn that does not fit (`conversations_cut`)",
            count(too_long, "conversation is", "conversations are"),
            rl.response_length
        ));
    }
    report
}

/// The demonstrations of PPO's pretraining loss, the hash of their file by its argument, and what was left out of them.
pub type PtxData = (Vec<Sequence>, Option<(String, String)>, Fit);

/// Reads the demonstrations of `ptx_demonstrations`, if PPO has a pretraining loss.
///
/// # Errors
/// If the file is missing or cannot be read, or if nothing in it fits into the context.
pub fn ptx(algorithm: &Algorithm, texts: &Texts, max_length: Option<usize>, positions: usize) -> Result<PtxData> {
    match algorithm {
        Algorithm::Ppo(args) if args.ptx_coef > 0.0 => {
            let Some(path) = &args.ptx_demonstrations else { bail!("ptx_demonstrations: is required") };
            let length = fit::length(max_length, positions, || lengths_of_file(path, texts))?;
            let tokens = TokenFile::new(Path::new(&args.output_dir));
            let data = Demonstrations::read(path, texts, length.tokens, 0.0, tokens).context("ptx_demonstrations")?;
            if data.train.is_empty() {
                bail!("ptx_demonstrations: none is left to learn from{}", data.fit.reasons());
            }
            Ok((data.train, Some(("ptx_demonstrations".to_owned(), file_hash(path)?)), data.fit))
        }
        _ => Ok((Vec::new(), None, Fit::default())),
    }
}
