//! Converts the token ids of one sample to text deltas: whole characters, without special tokens, and without text that
//! may still become a stop string.

use std::ops::Range;

use super::FinishReason;
use crate::tokenizer::{IncrementalDecoder, Tokenizer};

/// The incremental text of one sample. Without a tokenizer all deltas are empty.
pub struct TextStream {
    source: Option<(Tokenizer, IncrementalDecoder)>,
    stops: Vec<Stop>,
    /// Whether the stop string that was found is part of the text.
    include_stop: bool,
    /// Special tokens that are part of the text.
    shown: Vec<String>,
    /// Text that was not sent yet.
    held: String,
    /// The ranges of special tokens in `held`, ascending. They are not part of the text.
    hidden: Vec<Range<usize>>,
}

struct Stop {
    text: String,
    /// Contains the text of a special token, so it is searched for in the text with special tokens, too.
    raw: bool,
}

/// The text that one token adds.
#[derive(Debug, PartialEq, Eq)]
pub struct TextDelta {
    pub text: String,
    /// A stop string was found. `text` ends before it, or after it with `include_stop`.
    pub stopped: bool,
}

/// What is known of a sample when a token is added to it.
#[derive(Clone, Copy, Debug)]
pub struct SampleProgress {
    /// The token is one of those that end the sample.
    pub ended: bool,
    /// The sample satisfies its constraint and cannot continue.
    pub complete: bool,
    /// The sample has its maximum length.
    pub full: bool,
    /// Stop strings may end the sample: it has `min_tokens` tokens.
    pub may_stop: bool,
}

/// The text of a token of a model without a tokenizer: a space and the id.
pub(super) fn bare_text(id: u32) -> String {
    format!(" {id}")
}

impl TextStream {
    /// The text of a sample that continues the prompt `left`.
    pub fn new(tokenizer: Option<&Tokenizer>, left: &[u32], stops: &[String], include_stop: bool) -> Self {
        let special = |stop: &str| tokenizer.is_some_and(|t| t.special_tokens().any(|name| stop.contains(name)));
        let stops = stops.iter().filter(|s| !s.is_empty());
        Self {
            stops: stops.map(|s| Stop { raw: special(s), text: s.clone() }).collect(),
            source: tokenizer.map(|t| (t.clone(), t.incremental(left, true))),
            include_stop,
            shown: Vec::new(),
            held: String::new(),
            hidden: Vec::new(),
        }
    }

    /// Makes these special tokens part of the text.
    pub fn showing(mut self, shown: &[String]) -> Self {
        self.shown = shown.to_vec();
        self
    }

    /// Adds a token to the sample. Returns the text that can be sent now, and why the sample ends, if it does.
    pub fn accept(&mut self, id: u32, progress: SampleProgress) -> (String, Option<FinishReason>) {
        let (mut text, mut reason) = (String::new(), None);
        if progress.ended {
            reason = Some(FinishReason::Stop);
        } else {
            let added = self.push(id, progress.may_stop);
            text = added.text;
            if added.stopped || progress.complete {
                reason = Some(FinishReason::Stop);
            } else if progress.full {
                reason = Some(FinishReason::Length);
            }
        }
        if reason.is_some() {
            text.push_str(&self.finish());
        }
        (text, reason)
    }

    /// Adds a token. Without `may_stop` (before `min_tokens`) stop strings are ordinary text.
    pub fn push(&mut self, id: u32, may_stop: bool) -> TextDelta {
        let Some((tokenizer, decoder)) = &mut self.source else {
            self.held.push_str(&bare_text(id));
            return self.take(may_stop);
        };
        if let Some(special) = tokenizer.special_text(id).filter(|text| self.shown.iter().any(|s| s == text)) {
            self.held.push_str(special);
            return self.take(may_stop);
        }
        match tokenizer.special_text(id).filter(|_| self.stops.iter().any(|s| s.raw)) {
            Some(special) => {
                let start = self.held.len();
                self.held.push_str(special);
                self.hidden.push(start..self.held.len());
            }
            None => self.held.push_str(&decoder.push(id)),
        }
        self.take(may_stop)
    }

    /// The remaining text, when generation has ended for another reason than a stop string.
    pub fn finish(&mut self) -> String {
        let rest = self.source.as_mut().map(|(_, decoder)| decoder.finish()).unwrap_or_default();
        self.held.push_str(&rest);
        let cut = self.found().map_or(self.held.len(), |found| found.start);
        let text = self.visible(0..cut);
        self.clear(self.held.len());
        text
    }

    fn take(&mut self, may_stop: bool) -> TextDelta {
        if !may_stop {
            let text = self.visible(0..self.held.len());
            self.clear(self.held.len());
            return TextDelta { text, stopped: false };
        }
        if let Some(found) = self.found() {
            let mut text = self.visible(0..found.start);
            if self.include_stop {
                text.push_str(&self.held[found.clone()]);
            }
            self.clear(self.held.len());
            return TextDelta { text, stopped: true };
        }
        let shown = self.visible(0..self.held.len());
        let keep = |stop: &Stop| {
            let from_shown = self.raw_place(shown.len() - overlap(&shown, &stop.text), true);
            let from_raw = if stop.raw { self.held.len() - overlap(&self.held, &stop.text) } else { self.held.len() };
            from_shown.min(from_raw)
        };
        let send = self.stops.iter().map(keep).min().unwrap_or(self.held.len());
        let text = self.visible(0..send);
        self.clear(send);
        TextDelta { text, stopped: false }
    }

    /// The range of the first stop string in `held`. Stop strings are searched for in the text without special tokens,
    /// and those that contain one also in the text with them.
    fn found(&self) -> Option<Range<usize>> {
        let shown = self.visible(0..self.held.len());
        let one = |stop: &Stop| {
            let place = |at: usize| self.raw_place(at, false)..self.raw_place(at + stop.text.len(), true);
            let in_shown = shown.find(&stop.text).map(place);
            let in_raw = self.held.find(&stop.text).filter(|_| stop.raw).map(|at| at..at + stop.text.len());
            in_shown.into_iter().chain(in_raw).min_by_key(|found| found.start)
        };
        self.stops.iter().filter_map(one).min_by_key(|found| found.start)
    }

    /// The part of `held` in `range`, without special tokens.
    fn visible(&self, range: Range<usize>) -> String {
        let mut text = String::new();
        let mut at = range.start;
        for hidden in &self.hidden {
            if hidden.start >= range.end {
                break;
            }
            text.push_str(&self.held[at..hidden.start.max(at)]);
            at = hidden.end.min(range.end).max(at);
        }
        text.push_str(&self.held[at..range.end]);
        text
    }

    /// The index in `held` of an index in the text without special tokens: before the special tokens at that place if
    /// `before`, else after them.
    fn raw_place(&self, shown: usize, before: bool) -> usize {
        let mut place = shown;
        for hidden in &self.hidden {
            if hidden.start > place || (before && hidden.start == place) {
                break;
            }
            place += hidden.len();
        }
        place
    }

    /// Removes `held` up to `end`.
    fn clear(&mut self, end: usize) {
        self.held.drain(..end);
        self.hidden.retain(|hidden| hidden.end > end);
        for hidden in &mut self.hidden {
            *hidden = hidden.start.saturating_sub(end)..hidden.end - end;
        }
    }
}

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(None, &[], &stops, false);
        let mut all = String::new();
        for p in pieces {
            stream.held.push_str(p);
            let added = stream.take(true);
            all.push_str(&added.text);
            if added.stopped {
                return (all, true);
            }
        }
        all.push_str(&stream.finish());
        (all, false)
    }

    #[test]
    fn stop_strings_are_found_across_tokens() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "Z"]), ("a ENZ".into(), false));
        assert_eq!(run(&["好吗", "x"], &["你好", "吗？"]), ("你".into(), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["later", "late"], &["too lat", "er"]), ("too ".into(), true));
        assert_eq!(run(&["END"], &["tail EN"]), ("tail EN".into(), false));
    }

    #[test]
    fn a_stop_string_with_a_special_token_matches_hidden_text() {
        let mut stream = TextStream::new(None, &[], &["b<end>".to_owned(), "xy".to_owned()], false);
        stream.stops[0].raw = true;
        let mut push = |text: &str, hidden: bool| {
            let start = stream.held.len();
            stream.held.push_str(text);
            if hidden {
                stream.hidden.push(start..start + text.len());
            }
            let added = stream.take(true);
            (added.text, added.stopped)
        };
        assert_eq!(push("a<end>", true), (String::new(), false));
        assert_eq!(push("cb", false), ("c".into(), false));
        // "b" is held back: the shown text becomes the stop string if "<end>" follows as plain text.
        assert_eq!(push("<other>", true), (String::new(), false));
        assert_eq!(push("x", false), ("b".into(), false));
        assert_eq!(push("<end>", true), (String::new(), false));
        assert_eq!(push("z", false), ("xz".into(), false));
        assert_eq!(push("qb", false), ("q".into(), false));
        assert_eq!(push("<end>", true), (String::new(), true));
        push("x", false);
        push("<end>", true);
        assert_eq!(push("y", false), (String::new(), true));
    }
}
