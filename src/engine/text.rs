//! Token ids of one sample → text deltas: whole characters only, and nothing that may still become a stop
//! string.

use crate::tokenizer::IncrementalDecoder;

/// Text side of one sample. Without a tokenizer everything is empty text.
pub struct TextStream {
    decoder: Option<IncrementalDecoder>,
    stops: Vec<String>,
    held: String,
}

/// What one token adds.
#[derive(Debug, PartialEq, Eq)]
pub struct Added {
    pub text: String,
    /// A stop string is complete; `text` ends before it.
    pub stopped: bool,
}

impl TextStream {
    pub fn new(decoder: Option<IncrementalDecoder>, stops: &[String]) -> Self {
        Self { decoder, stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// `may_stop` is false before `min_tokens`: stop strings that end there are ordinary text.
    pub fn push(&mut self, id: u32, may_stop: bool) -> Added {
        let fresh = self.decoder.as_mut().map(|d| d.push(id)).unwrap_or_default();
        self.take(&fresh, may_stop)
    }

    /// The rest, when generation ended for another reason than a stop string.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.as_mut().map(IncrementalDecoder::finish).unwrap_or_default();
        self.held.push_str(&rest);
        let cut = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min().unwrap_or(self.held.len());
        self.held.truncate(cut);
        std::mem::take(&mut self.held)
    }

    fn take(&mut self, fresh: &str, may_stop: bool) -> Added {
        self.held.push_str(fresh);
        if !may_stop {
            return Added { text: std::mem::take(&mut self.held), stopped: false };
        }
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return Added { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Added { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = TextStream::new(None, &stops);
        let mut all = String::new();
        for p in pieces {
            let added = stream.take(p, true);
            all.push_str(&added.text);
            if added.stopped {
                return (all, true);
            }
        }
        all.push_str(&stream.finish());
        (all, false)
    }

    #[test]
    fn stop_strings_across_pieces() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "Z"]), ("a ENZ".into(), false));
        assert_eq!(run(&["好吗", "x"], &["你好", "吗？"]), ("你".into(), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["later", "late"], &["too lat", "er"]), ("too ".into(), true));
        assert_eq!(run(&["END"], &["tail EN"]), ("tail EN".into(), false));
    }
}
