//! Incremental decoding: ids one at a time → text that never ends inside a character.

use super::Tokenizer;

/// Feed ids with `push`, send what it returns, and end with `finish`: the concatenated parts are the text of all ids.
pub struct IncrementalDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: DecodeState,
}

enum DecodeState {
    /// Byte-level vocabularies: bytes of an unfinished character.
    Bytes(Vec<u8>),
    /// Others decode a token by its neighbours: `ids[..sent]` are the left context and ids whose text has been sent.
    Window { ids: Vec<u32>, sent: usize },
}

/// Ids of the left context that are kept.
const CONTEXT: usize = 4;

impl IncrementalDecoder {
    pub(super) fn new(tokenizer: Tokenizer, left: &[u32], skip_special: bool) -> Self {
        let state = match tokenizer.0.byte_level {
            true => DecodeState::Bytes(Vec::new()),
            false => {
                let kept = if tokenizer.begins_text(left) { &[] } else { &left[left.len().saturating_sub(CONTEXT)..] };
                DecodeState::Window { ids: kept.to_vec(), sent: kept.len() }
            }
        };
        Self { tokenizer, skip_special, state }
    }

    /// The text that this id completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        match &mut self.state {
            DecodeState::Bytes(pending) => {
                pending.extend(self.tokenizer.token_bytes(id));
                take_whole(pending)
            }
            DecodeState::Window { ids, .. } => {
                ids.push(id);
                self.window(false)
            }
        }
    }

    /// The text that is still held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            DecodeState::Bytes(pending) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            DecodeState::Window { .. } => self.window(true),
        }
    }

    fn window(&mut self, last: bool) -> String {
        let DecodeState::Window { ids, sent } = &mut self.state else { return String::new() };
        let decode = |ids: &[u32]| self.tokenizer.0.plain_decode(ids, false).unwrap_or_default();
        let text = decode(ids);
        // Equal except for a character that is unfinished in the context.
        let context = decode(&ids[..*sent]);
        let same = |(a, b): &(char, char)| a == b;
        let before: usize = context.chars().zip(text.chars()).take_while(same).map(|(c, _)| c.len_utf8()).sum();
        // U+FFFD at the end: the bytes of a character are not all there yet.
        if !last && text.ends_with('\u{FFFD}') {
            return String::new();
        }
        let Some(new) = text.get(before..).filter(|new| !new.is_empty()) else { return String::new() };
        let new = new.to_owned();
        // The ids just sent are the context of the next token; earlier ones are not needed.
        ids.drain(..*sent);
        *sent = ids.len();
        new
    }
}

/// Removes and returns the longest final prefix: whole characters, and U+FFFD for bytes that can no longer
/// become one, exactly as `String::from_utf8_lossy` over the whole would place them.
fn take_whole(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = pending.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                match error.error_len() {
                    Some(bad) => {
                        text.push('\u{FFFD}');
                        rest = &after[bad..];
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        }
    }
    *pending = rest.to_vec();
    text
}
