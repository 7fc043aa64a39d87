//! The longest sequence of a run, and counts of what did not fit into it: counted while data is read, and reported once
//! at the start of the run.

use serde_json::{Value, json};

use super::run::Run;

/// Tokens of a block of raw text, if `max_length` is not given and the context is not shorter.
pub const BLOCK: usize = 1024;

/// The longest sequence of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Length {
    pub tokens: usize,
    /// A message for the log, if the length was derived from the data.
    pub message: Option<String>,
}

/// `max_length`, or without it the 99th percentile of the sequences' lengths, rounded up to a multiple of 16; at most
/// the model's positions.
///
/// # Errors
/// Those of `sequences`.
pub fn length(
    max_length: Option<usize>,
    positions: usize,
    sequences: impl FnOnce() -> anyhow::Result<Vec<usize>>,
) -> anyhow::Result<Length> {
    if let Some(given) = max_length {
        return Ok(Length { tokens: given.min(positions), message: None });
    }
    let mut lengths = sequences()?;
    lengths.sort_unstable();
    let p99 = percentile_99(&lengths).unwrap_or(positions);
    let tokens = p99.next_multiple_of(16).min(positions);
    let of = count(lengths.len(), "sequence has", "sequences have");
    let longest = lengths.last().copied().unwrap_or(0);
    let message = format!(
        "max_length: {tokens} tokens, from the data: 99 % of {of} at most {p99}, the longest {longest}; the model's \
         context is {positions}"
    );
    Ok(Length { tokens, message: Some(message) })
}

/// The 99th percentile of sorted numbers: the smallest that at least 99 % of them do not exceed.
pub fn percentile_99(sorted: &[usize]) -> Option<usize> {
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}

impl Length {
    /// Reports the length to the run's log and as a metric.
    pub fn report(&self, run: &mut Run<'_>) {
        if let Some(message) = &self.message {
            run.info(message.clone());
        }
        run.metrics([("max_length", self.tokens as f64)]);
    }
}

/// `1 set`, `3 sets`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Counts of what was truncated or left out of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    pub max_length: usize,
    pub prompts: usize,
    /// Prompts whose beginning was cut off.
    pub prompts_cut: usize,
    pub answers: usize,
    /// Ranked answers whose end was cut off, with the end token.
    pub answers_cut: usize,
    /// Answers to learn that do not fit. Without their end, they would teach the model to stop in mid-sentence.
    pub answers_left_out: usize,
    /// Answers to learn of which nothing is left without their reasoning.
    pub answers_only_reasoning: usize,
    /// Pairs of answers with the same tokens, which contain no preference.
    pub equal_pairs: usize,
    /// Sets without any other pairs.
    pub equal_sets: usize,
}

impl Fit {
    pub fn new(max_length: usize) -> Self {
        Self { max_length, ..Self::default() }
    }

    pub fn note_prompt(&mut self, cut: bool) {
        self.prompts += 1;
        self.prompts_cut += usize::from(cut);
    }

    pub fn note_answers(&mut self, cut: &[bool]) {
        self.answers += cut.len();
        self.answers_cut += cut.iter().filter(|cut| **cut).count();
    }

    /// Messages about what was cut off or left out.
    pub fn messages(&self) -> Vec<String> {
        let (length, mut all) = (self.max_length, Vec::new());
        if self.prompts_cut > 0 {
            let of = count(self.prompts, "prompt", "prompts");
            all.push(format!(
                "max_length: {} of {of} lost the beginning to fit into {length} tokens with the answers",
                self.prompts_cut
            ));
        }
        if self.answers_cut > 0 {
            let of = count(self.answers, "answer", "answers");
            all.push(format!("max_length: {} of {of} lost the end to fit into {length} tokens", self.answers_cut));
        }
        if self.answers_left_out > 0 {
            let of = count(self.answers, "answer", "answers");
            all.push(format!(
                "max_length: {} of {of} left out because they are longer than {length} tokens with their end token",
                self.answers_left_out
            ));
        }
        if self.answers_only_reasoning > 0 {
            let of = count(self.answers, "answer", "answers");
            all.push(format!(
                "reasoning: {} of {of} left out because nothing follows the reasoning",
                self.answers_only_reasoning
            ));
        }
        if self.equal_pairs > 0 {
            let pairs = count(self.equal_pairs, "pair", "pairs");
            all.push(format!("{pairs} left out because both answers have the same tokens within max_length {length}"));
        }
        if self.equal_sets > 0 {
            all.push(match self.equal_sets {
                1 => "1 set has no pair left and teaches nothing: left out".to_owned(),
                n => format!("{n} sets have no pair left and teach nothing: left out"),
            });
        }
        all
    }

    /// The messages, for the end of an error message; empty if everything fits.
    pub fn reasons(&self) -> String {
        let all = self.messages();
        if all.is_empty() { String::new() } else { format!("; {}", all.join("; ")) }
    }

    /// Reports the messages as warnings, and the counts as metrics.
    pub fn report(&self, run: &mut Run<'_>) {
        for message in self.messages() {
            run.warn(message);
        }
        let counts = [
            ("prompts_cut", self.prompts_cut),
            ("answers_cut", self.answers_cut),
            ("answers_left_out", self.answers_left_out),
            ("answers_only_reasoning", self.answers_only_reasoning),
            ("pairs_left_out", self.equal_pairs),
            ("sets_left_out", self.equal_sets),
        ];
        run.metrics(counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n as f64)));
    }

    /// The counts as JSON, for the result of the run.
    pub fn json(&self) -> Value {
        json!({
            "max_length": self.max_length,
            "prompts_cut": self.prompts_cut, "answers_cut": self.answers_cut,
            "answers_left_out": self.answers_left_out, "answers_only_reasoning": self.answers_only_reasoning,
            "pairs_left_out": self.equal_pairs, "sets_left_out": self.equal_sets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_max_length_the_length_is_derived_from_the_data() {
        let length =
            |given, positions, lengths: &[usize]| length(given, positions, || Ok(lengths.to_vec())).expect("one");
        // One of two hundred is very long and does not matter.
        let mut lengths = vec![20; 199];
        lengths.push(900);
        let found = length(None, 1024, &lengths);
        assert_eq!(found.tokens, 32);
        assert!(found.message.is_some_and(|t| t.contains("32 tokens") && t.contains("900") && t.contains("1024")));
        assert_eq!(length(None, 1024, &[20, 30, 400]).tokens, 400, "few sequences: the longest fits");
        assert_eq!(length(None, 256, &[20, 30, 400]).tokens, 256, "within the context");
        assert_eq!(length(Some(64), 256, &[400]), Length { tokens: 64, message: None });
        assert_eq!(length(Some(640), 256, &[400]).tokens, 256);
        assert_eq!(length(None, 256, &[]).tokens, 256, "nothing to look at");
        assert_eq!(percentile_99(&(1..=100).collect::<Vec<_>>()), Some(99));
        assert_eq!(percentile_99(&(1..=50).collect::<Vec<_>>()), Some(50));
    }

    #[test]
    fn messages_use_the_singular_and_the_plural() {
        let one = Fit { max_length: 16, equal_pairs: 1, equal_sets: 1, ..Fit::default() };
        assert_eq!(
            one.messages(),
            [
                "1 pair left out because both answers have the same tokens within max_length 16",
                "1 set has no pair left and teaches nothing: left out"
            ]
        );
        let two = Fit { max_length: 16, prompts: 3, prompts_cut: 2, equal_sets: 2, ..Fit::default() };
        assert_eq!(
            two.messages(),
            [
                "max_length: 2 of 3 prompts lost the beginning to fit into 16 tokens with the answers",
                "2 sets have no pair left and teach nothing: left out"
            ]
        );
        assert_eq!(Fit::new(16).reasons(), "");
    }
}
