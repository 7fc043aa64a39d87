//! Parses tool calls from an answer incrementally.

use serde_json::Value;

use super::format::{Spec, ToolTags};
use super::scan::{Balance, Head, head};
use super::{Part, overlap};

/// The names of the arguments field, which are accepted in every format.
const KEYS: [&str; 2] = ["arguments", "parameters"];

enum State {
    /// In visible text, where a call may begin.
    Text,
    /// After the opening tag: in a call or between calls.
    Between,
    /// Inside the object of a call whose head is not complete; `held` begins with it.
    Object(Balance),
    /// The name of a call of the form `name[ARGS]{…}`.
    Name,
    /// Inside a call's arguments; `held` begins with the part that was not emitted yet.
    Arguments { balance: Balance, sent: usize },
    /// After the arguments, up to the end of the object.
    Tail,
}

/// Whether this is, or may become, the name of a call's arguments.
fn begins_a_field(text: &str) -> bool {
    KEYS.iter().map(|key| format!("\"{key}\"")).any(|key| text.starts_with(&key) || key.starts_with(text))
}

/// Splits an answer into text and tool calls.
pub struct CallReader {
    spec: Spec,
    state: State,
    held: String,
    calls: usize,
    /// Whether text was emitted.
    spoken: bool,
    /// Whether a call was read and no text since; white space is then skipped.
    after_call: bool,
    /// The text to emit when the candidate is not a call.
    opened_by: String,
}

impl CallReader {
    pub fn new(tags: &ToolTags) -> Self {
        let (held, opened_by) = (String::new(), String::new());
        Self {
            spec: tags.format.spec(),
            state: State::Text,
            held,
            calls: 0,
            spoken: false,
            after_call: false,
            opened_by,
        }
    }

    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    fn say(&mut self, text: String, parts: &mut Vec<Part>) {
        if text.is_empty() || (self.after_call && text.trim().is_empty()) {
            return;
        }
        (self.spoken, self.after_call) = (true, false);
        parts.push(Part::Content(text));
    }

    /// Advances the state; `false` when more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Text => self.text(parts),
            State::Between => self.between(parts),
            State::Object(balance) => {
                match head(&self.held, &KEYS) {
                    Head::Found { name, arguments } => {
                        self.held.drain(..arguments);
                        self.begin(name, parts);
                        return true;
                    }
                    Head::Open => {}
                    Head::Other if self.spec.bare => {
                        // JSON text that is not a call; fields in another order are not supported here.
                        let known = self.held.trim_start().strip_prefix('{').map(str::trim_start);
                        if known.is_none_or(|k| !begins_a_field(k)) {
                            self.put_back(parts);
                            return true;
                        }
                    }
                    Head::Other => {}
                }
                let Some(end) = balance.end(&self.held) else { return false };
                self.whole_object(end, parts);
                true
            }
            State::Name => {
                let Some(at) = self.held.find("[ARGS]") else { return false };
                let name = self.held[..at].split("[CALL_ID]").next().unwrap_or_default().trim().to_owned();
                let start = self.held[at + 6..].len() - self.held[at + 6..].trim_start().len();
                self.held.drain(..at + 6 + start);
                self.begin(name, parts);
                true
            }
            State::Arguments { balance, sent } => {
                let end = balance.end(&self.held);
                let upto = end.unwrap_or(self.held.len());
                let text = self.held[*sent..upto].to_owned();
                *sent = upto;
                parts.push(Part::Arguments { index: self.calls - 1, text });
                let Some(end) = end else { return false };
                self.held.drain(..end);
                self.state = if self.spec.named { State::Between } else { State::Tail };
                true
            }
            State::Tail => {
                // Other fields of the call, such as its id.
                let Some(at) = self.held.find('}') else { return false };
                self.held.drain(..=at);
                self.state = State::Between;
                true
            }
        }
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        let spec = &self.spec;
        if spec.bare && !self.spoken && self.calls == 0 {
            let shown = self.held.trim_start();
            let shown = shown.strip_prefix(spec.open).unwrap_or(shown).trim_start();
            if shown.starts_with('{') {
                let start = self.held.len() - shown.len();
                self.opened_by = self.held.drain(..start).collect();
                self.state = State::Object(Balance::default());
                return true;
            }
            if shown.is_empty() || (spec.open.starts_with(shown) && shown.len() < spec.open.len()) {
                return false;
            }
        }
        if let Some(at) = self.held.find(spec.open) {
            let before: String = self.held.drain(..at).collect();
            let open = spec.open.len();
            self.opened_by = self.held.drain(..open).collect();
            let before = if self.spec.bare { before } else { before.trim_end_matches('\n').to_owned() };
            self.say(before, parts);
            self.state = if self.spec.named { State::Name } else { State::Between };
            return true;
        }
        if self.after_call && self.held.trim().is_empty() {
            return false;
        }
        // The end may be the beginning of a tag, and line ends before a tag are skipped.
        let tag = overlap(&self.held, spec.open);
        let sure = self.held[..self.held.len() - tag].trim_end_matches('\n').len();
        let text: String = self.held.drain(..sure).collect();
        self.say(text, parts);
        false
    }

    fn between(&mut self, parts: &mut Vec<Part>) -> bool {
        let form = |c: char| c.is_whitespace() || (self.spec.list && matches!(c, '[' | ']' | ',')) || c == ';';
        let start = self.held.len() - self.held.trim_start_matches(form).len();
        let skipped: String = self.held.drain(..start).collect();
        if !self.opened_by.is_empty() {
            self.opened_by.push_str(&skipped);
        }
        let spec = &self.spec;
        if self.held.is_empty() {
            return false;
        }
        if !spec.close.is_empty() {
            if self.held.starts_with(spec.close) {
                let close = spec.close.len();
                self.held.drain(..close);
                self.state = State::Text;
                return true;
            }
            if spec.close.starts_with(self.held.as_str()) {
                return false;
            }
        }
        if self.held.starts_with('{') && !spec.named {
            self.state = State::Object(Balance::default());
            return true;
        }
        if spec.close.is_empty() || self.opened_by.is_empty() {
            self.state = State::Text;
            return true;
        }
        self.put_back(parts);
        true
    }

    fn begin(&mut self, name: String, parts: &mut Vec<Part>) {
        parts.push(Part::Call { index: self.calls, name });
        self.calls += 1;
        self.after_call = true;
        self.opened_by.clear();
        self.state = State::Arguments { balance: Balance::default(), sent: 0 };
    }

    /// Parses a complete object whose fields are in another order.
    fn whole_object(&mut self, end: usize, parts: &mut Vec<Part>) {
        let read: Option<Value> = serde_json::from_str(&self.held[..end]).ok();
        let name = read.as_ref().and_then(|v| v["name"].as_str());
        let arguments = read.as_ref().and_then(|v| KEYS.iter().find_map(|k| v.get(k)));
        let (Some(name), arguments) = (name, arguments.cloned()) else { return self.put_back(parts) };
        // Some models write the object as a string, and some omit an empty one.
        let arguments = match arguments {
            Some(Value::String(text)) => text,
            Some(value) => value.to_string(),
            None => "{}".into(),
        };
        parts.push(Part::Call { index: self.calls, name: name.to_owned() });
        parts.push(Part::Arguments { index: self.calls, text: arguments });
        self.calls += 1;
        self.after_call = true;
        self.opened_by.clear();
        self.held.drain(..end);
        self.state = State::Between;
    }

    /// Treats a candidate call as text, up to its end.
    fn put_back(&mut self, parts: &mut Vec<Part>) {
        let mut text = std::mem::take(&mut self.opened_by);
        let upto = match self.spec.close {
            "" => self.held.len(),
            close => self.held.find(close).map_or(self.held.len(), |at| at + close.len()),
        };
        text.extend(self.held.drain(..upto));
        self.spoken = true;
        self.state = State::Text;
        self.say(text, parts);
    }

    /// Emits the text that was held back, at the end of the answer.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        match self.state {
            State::Text => {
                let rest = std::mem::take(&mut self.held);
                self.say(rest, &mut parts);
            }
            State::Object(_) | State::Name | State::Between if !self.opened_by.trim().is_empty() => {
                self.put_back(&mut parts);
            }
            _ if self.spec.bare && self.calls == 0 => self.put_back(&mut parts),
            _ => self.held.clear(),
        }
        parts
    }
}
