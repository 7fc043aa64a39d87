//! What did not fit into `max_length`: counted while data is read, reported once when the run begins.

use serde_json::{Value, json};

use super::run::Run;

/// Blocks of raw text have this many tokens where `max_length` is not given and the context is not shorter.
pub const BLOCK: usize = 1024;

/// The longest sequence of a run, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Length {
    pub tokens: usize,
    /// For people, where the data decided.
    pub told: Option<String>,
}

/// What `max_length` says, within the model's positions; where it says nothing, the length that 99 of 100 sequences
/// have at most, rounded up to 16.
///
/// # Errors
/// What reading the sequences says.
pub fn length(
    max_length: Option<usize>,
    positions: usize,
    sequences: impl FnOnce() -> anyhow::Result<Vec<usize>>,
) -> anyhow::Result<Length> {
    if let Some(given) = max_length {
        return Ok(Length { tokens: given.min(positions), told: None });
    }
    let mut lengths = sequences()?;
    lengths.sort_unstable();
    let most = percentile_99(&lengths).unwrap_or(positions);
    let tokens = most.next_multiple_of(16).min(positions);
    let of = count(lengths.len(), "sequence has", "sequences have");
    let longest = lengths.last().copied().unwrap_or(0);
    let told = format!(
        "max_length: {tokens} tokens, from the data: 99 % of {of} at most {most}, the longest {longest}; the model's \
         context is {positions}"
    );
    Ok(Length { tokens, told: Some(told) })
}

/// The smallest of the sorted numbers that 99 of 100 do not exceed.
pub fn percentile_99(sorted: &[usize]) -> Option<usize> {
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}

impl Length {
    /// An entry of the run's log, and a metric.
    pub fn report(&self, run: &mut Run<'_>) {
        if let Some(told) = &self.told {
            run.tell(told.clone());
        }
        run.metrics([("max_length", self.tokens as f64)]);
    }
}

/// `1 set`, `3 sets`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Counts of what was cut or left out of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    pub max_length: usize,
    pub prompts: usize,
    /// Prompts that lost their beginning.
    pub prompts_cut: usize,
    pub answers: usize,
    /// Ranked answers that lost their end, the end token included.
    pub answers_cut: usize,
    /// Answers to be learned that do not fit: without their end they would teach to stop in mid-sentence.
    pub answers_left_out: usize,
    /// Pairs of a preferred and another answer whose tokens are the same: they say nothing.
    pub equal_pairs: usize,
    /// Sets without any other pair.
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

    /// What people should know, one sentence each.
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

    /// For the end of an error message: why there is less than the file holds. Empty where everything fits.
    pub fn reasons(&self) -> String {
        let all = self.messages();
        if all.is_empty() { String::new() } else { format!("; {}", all.join("; ")) }
    }

    /// Warnings in the event log, and the counts as metrics.
    pub fn report(&self, run: &mut Run<'_>) {
        for message in self.messages() {
            run.warn(message);
        }
        let counts = [
            ("prompts_cut", self.prompts_cut),
            ("answers_cut", self.answers_cut),
            ("answers_left_out", self.answers_left_out),
            ("pairs_left_out", self.equal_pairs),
            ("sets_left_out", self.equal_sets),
        ];
        run.metrics(counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n as f64)));
    }

    /// The counts, for a result.
    pub fn json(&self) -> Value {
        json!({
            "max_length": self.max_length,
            "prompts_cut": self.prompts_cut, "answers_cut": self.answers_cut,
            "answers_left_out": self.answers_left_out, "pairs_left_out": self.equal_pairs,
            "sets_left_out": self.equal_sets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_comes_from_the_data() {
        let length =
            |given, positions, lengths: &[usize]| length(given, positions, || Ok(lengths.to_vec())).expect("one");
        // One of two hundred is very long: it does not decide.
        let mut lengths = vec![20; 199];
        lengths.push(900);
        let found = length(None, 1024, &lengths);
        assert_eq!(found.tokens, 32);
        assert!(found.told.is_some_and(|t| t.contains("32 tokens") && t.contains("900") && t.contains("1024")));
        assert_eq!(length(None, 1024, &[20, 30, 400]).tokens, 400, "few sequences: the longest fits");
        assert_eq!(length(None, 256, &[20, 30, 400]).tokens, 256, "within the context");
        assert_eq!(length(Some(64), 256, &[400]), Length { tokens: 64, told: None });
        assert_eq!(length(Some(640), 256, &[400]).tokens, 256);
        assert_eq!(length(None, 256, &[]).tokens, 256, "nothing to look at");
        assert_eq!(percentile_99(&(1..=100).collect::<Vec<_>>()), Some(99));
        assert_eq!(percentile_99(&(1..=50).collect::<Vec<_>>()), Some(50));
    }

    #[test]
    fn sentences_have_the_right_number() {
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
