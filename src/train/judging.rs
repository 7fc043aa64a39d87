//! Rankings of sets by a language model: every pair of completions of a set is asked in both orders, without the names
//! of the authors.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{self, DeviceArg, JudgeBy, JudgeSetsArgs};
use super::judge::{Judge, LocalJudge};
use super::on_device::RunDevice;
use super::rl::{Completion, JudgeScorer};
use super::run::open_device;
use super::{Reporter, TrainOutcome};
use crate::data::PromptInput;
use crate::domain::{CompletionId, Message, Metric, Progress, SetId};
use crate::model::Purpose;
use crate::objective::judge::ranking;

/// File with the rankings, as JSON lines: in the directory of checkpoints, or else in the output directory.
pub const RANKINGS: &str = "rankings.jsonl";
/// Number of questions that are collected before the judge is asked.
const QUESTIONS: usize = 64;

/// A set to rank: a line of the file `sets`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetToRank {
    pub set_id: SetId,
    pub prompt: Vec<Message>,
    /// Ids and texts.
    pub completions: Vec<(CompletionId, String)>,
}

/// The ranking of a set: a line of [`RANKINGS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedByJudge {
    pub set_id: SetId,
    /// Each completion with its tier; 0 is the best.
    pub items: Vec<(CompletionId, i64)>,
    /// As in `ModelJudgment`.
    pub doubt: f64,
}

/// The lines of a file; a last line that was not written whole is left out.
///
/// # Errors
/// If the file cannot be read.
pub fn rankings(path: &Path) -> Result<Vec<RankedByJudge>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Runs the recipe.
///
/// # Errors
/// If the judge cannot be asked or loaded, answers none of the questions, or a file cannot be read or written.
pub fn run(value: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: JudgeSetsArgs = args::parse(value)?;
    reporter.progress(&Progress { phase: "loading".to_owned(), ..Progress::default() });
    let judge = open_judge(&args, reporter)?;
    let sets = read_sets(Path::new(&args.sets))?;
    let dir = args.checkpoint_dir.as_ref().unwrap_or(&args.output_dir);
    std::fs::create_dir_all(dir).with_context(|| dir.clone())?;
    let path = Path::new(dir).join(RANKINGS);
    let done = continue_file(&path)?;
    let mut out =
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    let left: Vec<&SetToRank> = sets.iter().filter(|set| !done.contains(&set.set_id)).collect();
    let scorer = JudgeScorer::new(&args.criteria, JudgeBy::Pairs, 0);
    let mut ranked = sets.len() - left.len();
    let total = sets.len() as u64;
    let progress = |ranked: usize| Progress {
        phase: "judging".to_owned(),
        step: ranked as u64,
        total_steps: Some(total),
        ..Progress::default()
    };
    let mut doubts = 0.0;
    for batch in batches(&left) {
        reporter.progress(&progress(ranked));
        if reporter.should_stop() {
            return Ok(TrainOutcome::Stopped { checkpoint: None });
        }
        let found = rank(&scorer, judge.as_ref(), batch)?;
        for line in &found {
            doubts += line.doubt;
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        }
        out.sync_data()?;
        ranked += batch.len();
        let figures = scorer.take_figures();
        let metric = |(name, value): (&'static str, f64)| Metric { step: ranked as i64, name: name.to_owned(), value };
        reporter.metrics(&figures.means().map(metric).collect::<Vec<_>>());
    }
    reporter.progress(&progress(ranked));
    let doubt = if left.is_empty() { None } else { Some(doubts / left.len() as f64) };
    let metrics = json!({"sets": ranked, "doubt": doubt});
    Ok(TrainOutcome::Done { model_dir: args.output_dir, metrics })
}

fn open_judge(args: &JudgeSetsArgs, reporter: &dyn Reporter) -> Result<Arc<dyn Judge>> {
    if let Some(name) = &args.host {
        let found = reporter.judge(name);
        return found.with_context(|| format!("the configuration has no judge '{name}' ([judges] in config.toml)"));
    }
    let path = args.judge_model.as_deref().unwrap_or_default();
    let judge = match args.device {
        DeviceArg::Cuda | DeviceArg::Sim => match RunDevice::for_evaluation(args.device, args.precision)? {
            Some(kernels) => LocalJudge::on_device(path, &kernels, args.micro_batch_tokens),
            None => bail!("device: there is no such device"),
        },
        device => LocalJudge::open(path, &open_device(device)?, Purpose::Score, args.micro_batch_tokens),
    };
    Ok(Arc::new(judge.context("judge_model")?))
}

fn read_sets(path: &Path) -> Result<Vec<SetToRank>> {
    let file = File::open(path).with_context(|| format!("sets: {}", path.display()))?;
    let mut sets = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line?;
        let set = serde_json::from_str(&line);
        sets.push(set.with_context(|| format!("sets: line {} of {}", number + 1, path.display()))?);
    }
    Ok(sets)
}

/// The sets that an earlier attempt has ranked. Removes a last line that was not written whole.
fn continue_file(path: &Path) -> Result<HashSet<SetId>> {
    if !path.exists() {
        return Ok(HashSet::new());
    }
    let found = rankings(path)?;
    let mut text = String::new();
    for line in &found {
        text.push_str(&serde_json::to_string(line)?);
        text.push('\n');
    }
    crate::domain::files::write_atomically(path, text.as_bytes())?;
    Ok(found.into_iter().map(|line| line.set_id).collect())
}

/// Number of questions about a set: each pair in both orders.
fn questions(set: &SetToRank) -> usize {
    set.completions.len() * set.completions.len().saturating_sub(1)
}

/// Consecutive sets with about [`QUESTIONS`] questions.
fn batches<'s, 'a>(sets: &'s [&'a SetToRank]) -> Vec<&'s [&'a SetToRank]> {
    let (mut all, mut start, mut collected) = (Vec::new(), 0, 0);
    for (i, set) in sets.iter().enumerate() {
        collected += questions(set);
        if collected >= QUESTIONS {
            all.push(&sets[start..=i]);
            (start, collected) = (i + 1, 0);
        }
    }
    if start < sets.len() {
        all.push(&sets[start..]);
    }
    all
}

fn rank(scorer: &JudgeScorer, judge: &dyn Judge, sets: &[&SetToRank]) -> Result<Vec<RankedByJudge>> {
    let prompts: Vec<PromptInput> = sets.iter().map(|set| PromptInput::Chat(set.prompt.clone())).collect();
    let completions: Vec<Vec<Completion<'_>>> = sets
        .iter()
        .zip(&prompts)
        // People do not see the right answer either.
        .map(|(set, prompt)| {
            set.completions.iter().map(|(_, text)| Completion { prompt, text, answer: None }).collect()
        })
        .collect();
    let groups: Vec<&[Completion<'_>]> = completions.iter().map(Vec::as_slice).collect();
    let preferences = scorer.preferences(judge, &groups)?;
    let mut rest = preferences.as_slice();
    let mut ranked = Vec::with_capacity(sets.len());
    for set in sets {
        let (own, others) = rest.split_at(questions(set) / 2);
        rest = others;
        let found = ranking(set.completions.len(), own);
        let items = set.completions.iter().zip(found.tiers).map(|((id, _), tier)| (id.clone(), tier));
        ranked.push(RankedByJudge { set_id: set.set_id.clone(), items: items.collect(), doubt: found.doubt });
    }
    Ok(ranked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_about_the_same_number_of_questions() {
        let set = |n: usize| SetToRank {
            set_id: SetId::new(),
            prompt: Vec::new(),
            completions: (0..n).map(|i| (CompletionId::new(), i.to_string())).collect(),
        };
        let sets: Vec<SetToRank> = [2, 8, 9, 3].map(set).into();
        let all: Vec<&SetToRank> = sets.iter().collect();
        let sizes: Vec<usize> = batches(&all).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [3, 1], "58 questions are too few, with 72 more they are enough");
        assert!(batches(&[]).is_empty());
    }

    #[test]
    fn a_torn_line_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RANKINGS);
        let line = RankedByJudge { set_id: SetId::new(), items: vec![(CompletionId::new(), 0)], doubt: 0.25 };
        let whole = serde_json::to_string(&line).unwrap();
        std::fs::write(&path, format!("{whole}\n{}", &whole[..whole.len() / 2])).unwrap();
        assert_eq!(continue_file(&path).unwrap(), HashSet::from([line.set_id.clone()]));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}\n"));
        assert_eq!(rankings(&path).unwrap(), [line]);
    }
}
