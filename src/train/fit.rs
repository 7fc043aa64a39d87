//! What did not fit into `max_length`: counted while data is read, told once when the run begins.

use serde_json::{Value, json};

use super::run::Run;

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
