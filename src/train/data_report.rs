//! Counts of the data of a run: lengths, repetitions, ties, agreement, how often the longer answer is preferred, and
//! texts that are on both sides of the split.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::fit::{count, percentile_99};
use super::run::Run;
use crate::data::{Comparison, PromptInput};
use crate::domain::Split;

/// Counts of one file of data, filled line by line.
#[derive(Default)]
pub struct DataReport {
    /// For training and held out, as the following arrays.
    rows: [usize; 2],
    /// Hashes of prompts.
    prompts: [BTreeSet<Hash>; 2],
    /// Hashes of prompts with an answer.
    answers: [BTreeSet<Hash>; 2],
    /// How often each prompt occurred with the same answers.
    seen: BTreeMap<Hash, usize>,
    labelers: BTreeSet<String>,
    /// Lengths of answers in tokens.
    lengths: Vec<usize>,
    pairs: usize,
    tied_pairs: usize,
    /// Pairs of different lengths.
    unequal: usize,
    /// Pairs of different lengths of which the longer answer is preferred.
    longer: usize,
}

/// Half of a SHA-256. Hashes take less memory than the texts of a large file.
type Hash = [u8; 16];

fn hash<'t>(prompt: &PromptInput, texts: impl IntoIterator<Item = &'t str>) -> Hash {
    let mut all = Sha256::new();
    for message in prompt.messages() {
        all.update(format!("{}\u{0}{}\u{0}", message.role, message.content));
    }
    texts.into_iter().for_each(|text| all.update(format!("\u{1}{text}\u{0}")));
    let mut half = Hash::default();
    half.copy_from_slice(&all.finalize()[..16]);
    half
}

impl DataReport {
    fn note_texts(&mut self, prompt: &PromptInput, texts: &[&str], side: Split) {
        let of = usize::from(side == Split::Heldout);
        let mut sorted = texts.to_vec();
        sorted.sort_unstable();
        *self.seen.entry(hash(prompt, sorted.iter().copied())).or_default() += 1;
        self.answers[of].extend(sorted.into_iter().map(|text| hash(prompt, [text])));
        self.prompts[of].insert(hash(prompt, []));
        self.rows[of] += 1;
    }

    /// Counts a prompt and an answer of `tokens` tokens.
    pub fn note_answer(&mut self, prompt: &PromptInput, text: &str, tokens: usize, side: Split) {
        self.note_texts(prompt, &[text], side);
        self.lengths.push(tokens);
    }

    /// Counts a ranked set; `tokens` are the lengths of its answers.
    pub fn note_ranking(&mut self, comparison: &Comparison, tokens: &[usize], side: Split) {
        let texts: Vec<&str> = comparison.completions.iter().map(|c| c.text.as_str()).collect();
        self.note_texts(&comparison.prompt, &texts, side);
        self.labelers.extend(comparison.labeler.clone());
        self.lengths.extend(tokens);
        for (i, (a, length)) in comparison.completions.iter().zip(tokens).enumerate() {
            for (b, other) in comparison.completions.iter().zip(tokens).skip(i + 1) {
                match a.tier == b.tier {
                    true => self.tied_pairs += 1,
                    false => {
                        self.pairs += 1;
                        self.unequal += usize::from(length != other);
                        self.longer += usize::from((a.tier < b.tier) == (length > other) && length != other);
                    }
                }
            }
        }
    }

    /// The counts as JSON, with the agreement of two people if it is known.
    pub fn json(&self, agreement: Option<f64>) -> Value {
        let mut lengths = self.lengths.clone();
        lengths.sort_unstable();
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        let share = |part: usize, all: usize| (all > 0).then(|| part as f64 / all as f64);
        let both = |sides: &[BTreeSet<Hash>; 2]| sides[0].intersection(&sides[1]).count();
        let mut report = json!({
            "rows": {"train": self.rows[0], "heldout": self.rows[1]},
            "prompts": {"train": self.prompts[0].len(), "heldout": self.prompts[1].len()},
            "prompts_on_both_sides": both(&self.prompts),
            "answers_on_both_sides": both(&self.answers),
            "repeated_rows": self.seen.values().map(|n| n - 1).sum::<usize>(),
            "answer_tokens": {
                "mean": mean, "median": lengths.get(lengths.len() / 2), "p99": percentile_99(&lengths),
                "longest": lengths.last(),
            },
        });
        if self.pairs + self.tied_pairs > 0 {
            report["pairs"] = self.pairs.into();
            report["tied_pairs"] = self.tied_pairs.into();
            report["longer_is_preferred"] = share(self.longer, self.unequal).into();
            report["labelers"] = (!self.labelers.is_empty()).then_some(self.labelers.len()).into();
            report["labeler_agreement"] = agreement.into();
        }
        report
    }

    /// Reports an event `data` with a message and the counts, and a warning if a prompt is on both sides of the split.
    pub fn report(&self, run: &mut Run<'_>, agreement: Option<f64>) {
        let mut report = self.json(agreement);
        let mut message = format!(
            "{} to train on, {} held out; answers of {:.0} tokens on average",
            count(self.rows[0], "row", "rows"),
            self.rows[1],
            report["answer_tokens"]["mean"].as_f64().unwrap_or(0.0)
        );
        if let Some(longer) = report["longer_is_preferred"].as_f64() {
            message += &format!("; the longer answer is preferred in {:.0} % of the pairs", 100.0 * longer);
        }
        if let Some(agreement) = agreement {
            message += &format!("; two people agree on {:.0} %", 100.0 * agreement);
        }
        run.data_report = Some(report.clone());
        report["message"] = message.into();
        run.reporter.event("data", report);
        let leaked = self.prompts[0].intersection(&self.prompts[1]).count();
        if leaked > 0 {
            let prompts = count(leaked, "prompt is", "prompts are");
            run.warn(format!("{prompts} on both sides of the split: held-out figures also measure what was memorised"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::RankedText;

    fn ranking(prompt: &str, texts: &[(&str, i64)], labeler: Option<&str>) -> Comparison {
        let mut found = Comparison::preferred(PromptInput::Text(prompt.into()), String::new(), String::new());
        found.completions = texts.iter().map(|(text, tier)| RankedText::new(*text, *tier)).collect();
        found.labeler = labeler.map(str::to_owned);
        found
    }

    #[test]
    fn counts_are_those_of_the_rows() {
        let mut report = DataReport::default();
        report.note_ranking(&ranking("p", &[("a", 0), ("b", 1), ("c", 1)], Some("x")), &[9, 2, 20], Split::Train);
        report.note_ranking(&ranking("p", &[("b", 0), ("a", 1), ("c", 2)], Some("y")), &[2, 9, 20], Split::Train);
        report.note_ranking(&ranking("p", &[("a", 0), ("d", 1)], None), &[9, 9], Split::Heldout);
        let json = report.json(Some(0.75));
        assert_eq!(json["rows"], json!({"train": 2, "heldout": 1}));
        assert_eq!((&json["prompts_on_both_sides"], &json["answers_on_both_sides"]), (&json!(1), &json!(1)));
        assert_eq!((&json["repeated_rows"], &json["labelers"]), (&json!(1), &json!(2)));
        assert_eq!((&json["pairs"], &json["tied_pairs"]), (&json!(6), &json!(1)));
        // a over b; never a, b over c; of the second: b over a, b over c, a over c. One pair has equal lengths.
        assert_eq!(json["longer_is_preferred"], json!(0.2));
        assert_eq!(json["answer_tokens"], json!({"mean": 10.0, "median": 9, "p99": 20, "longest": 20}));
        assert_eq!(json["labeler_agreement"], json!(0.75));
        assert!(DataReport::default().json(None).get("pairs").is_none());
    }
}
