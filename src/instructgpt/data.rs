//! The data that steps pass to each other, in the recipes' formats: demonstrations, comparisons, prompts.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;

use super::Collect;
use crate::data::{self, Comparison, DataError, PromptInput, PromptRecord, RankedText, Written};
use crate::generation::{GenParams, Warpers, generate};
use crate::model::{self, Decoder, Purpose};
use crate::prompt::Texts;

/// Writes records as they come; returns their number.
fn write_lines<T: serde::Serialize>(
    path: &Path,
    lines: impl IntoIterator<Item = Result<T, DataError>>,
) -> Result<usize> {
    let part = path.with_extension("jsonl.part");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&part)?);
    let mut written = 0;
    for line in lines {
        serde_json::to_writer(&mut file, &line?)?;
        file.write_all(b"\n")?;
        written += 1;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))?;
    Ok(written)
}

/// The given demonstrations, or the best completion of every training comparison (ties: the first).
pub fn demonstrations(given: Option<&Path>, comparisons: Option<&Path>, out: &Path) -> Result<usize> {
    if let Some(path) = given {
        return write_lines(out, data::read_demonstrations(path)?);
    }
    let Some(path) = comparisons else { bail!("there are neither demonstrations nor comparisons") };
    let best = |set: Comparison| {
        let best = set.completions.iter().min_by_key(|c| c.tier)?.text.clone();
        let (prompt_id, prompt) = (set.prompt_id, set.prompt);
        let written = Written { prompt_id, prompt, completion: best, corrects: None, labeler: None, project: None };
        (!written.completion.trim().is_empty()).then_some(written)
    };
    let written = write_lines(out, data::read_comparisons(path)?.filter_map(|set| set.map(best).transpose()))?;
    ensure!(written > 0, "{} holds no completion to learn from", path.display());
    Ok(written)
}

/// Reads people's rankings and writes them in instructd's format.
pub fn copy_comparisons(given: &Path, out: &Path) -> Result<usize> {
    write_lines(out, data::read_comparisons(given)?)
}

/// The given prompts, or each prompt of the comparisons once.
pub fn prompts(given: Option<&Path>, comparisons: &Path, out: &Path) -> Result<usize> {
    if let Some(path) = given {
        return write_lines(out, data::read_prompts(path)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut new = |set: Comparison| {
        let (prompt_id, prompt) = (set.prompt_id, set.prompt);
        let record = PromptRecord { prompt_id, prompt, answer: None, tags: Vec::new(), lang: None, project: None };
        seen.insert(data::content_hash(&record.prompt.messages())).then_some(record)
    };
    write_lines(out, data::read_comparisons(comparisons)?.filter_map(|set| set.map(&mut new).transpose()))
}

/// Completions of prompts by one model; `None` when a stop was requested.
pub fn sample(
    path: &Path,
    prompts: &[PromptInput],
    params: &GenParams,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<String>>> {
    let loaded = model::load(path, &Device::Cpu)?;
    let texts = Texts::new(&loaded)?;
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve)?;
    let room = loaded.config.max_positions.saturating_sub(params.max_new_tokens);
    ensure!(room >= 1, "{} holds {} tokens only", path.display(), loaded.config.max_positions);
    let (mut ids, mut cut) = (Vec::with_capacity(prompts.len()), 0);
    for prompt in prompts {
        let all = texts.prompt(prompt)?;
        cut += usize::from(all.len() > room);
        ids.push(all[all.len().saturating_sub(room)..].to_vec());
    }
    if cut > 0 {
        eprintln!("warning: {cut} of {} prompts lost the beginning to leave room for the answer", prompts.len());
    }
    let params = GenParams { eos_ids: texts.eos_ids().to_vec(), ..params.clone() };
    let samples = generate(&decoder, &ids, &params, stop)?;
    if stop() {
        return Ok(None);
    }
    samples.iter().zip(&ids).map(|(s, prompt)| texts.text(prompt, &s.ids)).collect::<Result<_>>().map(Some)
}

/// Samples of the SFT model ranked by the rule: (sets, prompts whose samples all scored the same).
pub fn collect(
    collect: &Collect,
    sft: &Path,
    seed: u64,
    out: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<Option<(usize, usize)>> {
    let records = data::read_prompts(&collect.prompts)?.collect::<Result<Vec<_>, _>>()?;
    let repeated: Vec<PromptInput> =
        records.iter().flat_map(|r| std::iter::repeat_n(r.prompt.clone(), collect.samples)).collect();
    let params =
        GenParams { max_new_tokens: collect.max_tokens, warpers: Warpers::default(), seed, ..GenParams::default() };
    let Some(written) = sample(sft, &repeated, &params, stop)? else { return Ok(None) };
    let (mut sets, mut equal) = (Vec::new(), 0);
    for (record, texts) in records.into_iter().zip(written.chunks(collect.samples)) {
        let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
        let scores = crate::train::score_texts(&collect.judge, &record.prompt, record.answer.as_deref(), &borrowed)?;
        let tier = |score: f64| scores.iter().filter(|s| **s > score).count() as i64;
        if scores.iter().all(|s| *s == scores[0]) {
            equal += 1;
            continue;
        }
        let completions = texts.iter().zip(&scores).map(|(text, s)| RankedText::new(text, tier(*s))).collect();
        sets.push(Comparison::new(record.prompt, completions));
    }
    ensure!(!sets.is_empty(), "the judge found no difference between any samples");
    Ok(Some((write_lines(out, sets.into_iter().map(Ok))?, equal)))
}
