//! Parses server-sent events from pieces of bytes that are cut anywhere. Only `data` fields are read.

/// Most bytes of one event: more than a chunk of a completion can have.
const MAX_EVENT: usize = 4 << 20;

#[derive(Default)]
pub struct Events {
    line: Vec<u8>,
    data: Option<String>,
    /// A carriage return ended the last line; a line feed after it belongs to it.
    after_return: bool,
}

/// The stream is not UTF-8, or an event is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is not server-sent events")]
pub struct NotEvents;

impl Events {
    /// Returns the data of the events that end in `bytes`.
    ///
    /// # Errors
    /// When a line is not UTF-8 or an event is over-long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, NotEvents> {
        let mut complete = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_return) => continue,
                b'\n' | b'\r' => complete.extend(self.end_line()?),
                other => self.line.push(*other),
            }
            self.after_return = *byte == b'\r';
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT {
                return Err(NotEvents);
            }
        }
        Ok(complete)
    }

    fn end_line(&mut self) -> Result<Option<String>, NotEvents> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| NotEvents)?;
        if line.is_empty() {
            return Ok(self.data.take());
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_comments_and_line_ends() {
        let mut events = Events::default();
        let text = ": hello\r\ndata: a\r\ndata:b\r\n\r\nevent: x\nid: 3\ndata:  c\n\n\ndata\n\nretry: 1\n\n";
        assert_eq!(events.push(text.as_bytes()), Ok(vec!["a\nb".into(), " c".into(), String::new()]));
        assert_eq!(events.push(b"data: \xff\n"), Err(NotEvents));
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..8).any(|_| events.push(&piece).is_err()));
    }

    proptest! {
        /// Where the network cuts changes nothing, also inside a character.
        #[test]
        fn cuts_change_nothing(
            data in prop::collection::vec("[^\\r\\n]{0,12}", 1..6),
            cuts in prop::collection::vec(1usize..7, 0..60),
        ) {
            let text: String = data.iter().map(|d| format!("data: {d}\n\n")).collect();
            let (mut events, mut got, mut rest) = (Events::default(), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                got.extend(events.push(piece).expect("text"));
                rest = after;
            }
            got.extend(events.push(rest).expect("text"));
            prop_assert_eq!(got, data);
        }
    }
}
