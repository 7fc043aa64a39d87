//! Splits a model's answer incrementally into reasoning (between its tags), visible text, and tool calls in the format
//! that the model was trained on. Complete and streamed answers use the same parser.

mod calls;
mod format;
mod scan;
mod stored;
mod think;

pub use calls::CallReader;
pub use format::{Grammar, ToolFormat, ToolTags, instructions, limit_space};
pub use stored::{OfferedTool, StoredPart, offers_tools, split_answer, split_message};
pub(super) use stored::{RESULT_TAGS, TOOLS_HEADING};
pub use think::{Reasoning, ThinkReader, Thinking, without_thoughts};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Reasoning(String),
    Content(String),
    /// The beginning of the call with this number; its arguments follow.
    Call {
        index: usize,
        name: String,
    },
    /// A part of a call's arguments; the concatenated parts are the JSON text of an object.
    Arguments {
        index: usize,
        text: String,
    },
}

/// The format of a model's answers, and the parts to be parsed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dialect {
    pub tools: Option<ToolTags>,
    pub thinking: Option<Thinking>,
}

impl Dialect {
    /// Special tokens that must be kept in the text for the parser.
    pub fn shown(&self) -> Vec<String> {
        let tools = self.tools.iter().flat_map(|t| t.special.iter().map(|(name, _)| name.clone()));
        let thinking = self.thinking.iter().flat_map(|t| [t.open.clone(), t.close.clone()]);
        tools.chain(thinking).collect()
    }
}

/// The parser of one answer.
pub struct AnswerReader {
    think: Option<ThinkReader>,
    calls: Option<CallReader>,
}

impl AnswerReader {
    /// `None` leaves the reasoning, or the calls, in the text.
    pub fn new(thinking: Option<&Thinking>, tools: Option<&ToolTags>) -> Self {
        Self { think: thinking.map(ThinkReader::new), calls: tools.map(CallReader::new) }
    }

    /// Adds a piece of text and returns the parts that it completes.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let read = match &mut self.think {
            Some(think) => think.push(text),
            None => vec![Part::Content(text.to_owned())],
        };
        self.split(read)
    }

    /// Ends the answer and returns the parts that were held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let rest = self.think.as_mut().map(ThinkReader::finish).unwrap_or_default();
        let mut parts = self.split(rest);
        if let Some(calls) = &mut self.calls {
            parts.extend(calls.finish());
        }
        parts
    }

    fn split(&mut self, read: Vec<Part>) -> Vec<Part> {
        let Some(calls) = &mut self.calls else { return read.into_iter().filter(not_empty).collect() };
        let one = |part: Part| match part {
            Part::Content(text) => calls.push(&text),
            other => vec![other],
        };
        read.into_iter().flat_map(one).filter(not_empty).collect()
    }
}

fn not_empty(part: &Part) -> bool {
    match part {
        Part::Reasoning(text) | Part::Content(text) | Part::Arguments { text, .. } => !text.is_empty(),
        Part::Call { .. } => true,
    }
}

/// Number of bytes at the end of `text` that are a proper prefix of `tag`.
fn overlap(text: &str, tag: &str) -> usize {
    let longest = text.len().min(tag.len().saturating_sub(1));
    (1..=longest).rev().find(|n| tag.is_char_boundary(*n) && text.ends_with(&tag[..*n])).unwrap_or(0)
}

/// A complete parsed answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    pub reasoning: String,
    pub content: String,
    /// Names and arguments.
    pub calls: Vec<(String, String)>,
}

impl Whole {
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Content(text) => self.content.push_str(&text),
            Part::Call { name, .. } => self.calls.push((name, String::new())),
            Part::Arguments { index, text } => {
                if let Some((_, arguments)) = self.calls.get_mut(index) {
                    arguments.push_str(&text);
                }
            }
        }
    }

    /// Parses a complete text.
    pub fn read(text: &str, mut reader: AnswerReader) -> Self {
        let mut whole = Self::default();
        reader.push(text).into_iter().for_each(|part| whole.add(part));
        reader.finish().into_iter().for_each(|part| whole.add(part));
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thinking(opened: bool) -> Thinking {
        Thinking { open: "<think>".into(), close: "</think>".into(), opened }
    }

    fn tags(format: ToolFormat) -> ToolTags {
        ToolTags { format, special: Vec::new() }
    }

    /// Splitting the text into pieces of these sizes gives the same parts.
    fn read(text: &str, thinking: Option<&Thinking>, tools: Option<&ToolTags>) -> Whole {
        let whole = Whole::read(text, AnswerReader::new(thinking, tools));
        for size in [1, 2, 3, 5, 7, 11] {
            let mut reader = AnswerReader::new(thinking, tools);
            let mut found = Whole::default();
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(size) {
                let piece: String = piece.iter().collect();
                reader.push(&piece).into_iter().for_each(|part| found.add(part));
            }
            reader.finish().into_iter().for_each(|part| found.add(part));
            assert_eq!(found, whole, "pieces of {size}: {text:?}");
        }
        whole
    }

    fn whole(reasoning: &str, content: &str, calls: &[(&str, &str)]) -> Whole {
        let calls = calls.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
        Whole { reasoning: reasoning.into(), content: content.into(), calls }
    }

    #[test]
    fn thoughts_are_kept_apart() {
        let (closed, opened) = (thinking(false), thinking(true));
        for (text, think, want) in [
            ("<think>\nhm, so\n</think>\n\nYes.", &closed, whole("hm, so", "Yes.", &[])),
            ("\n<think>a</think>b", &closed, whole("a", "b", &[])),
            ("No <think>x</think> here", &closed, whole("", "No <think>x</think> here", &[])),
            ("<thin", &closed, whole("", "<thin", &[])),
            ("<think>cut a</thi", &closed, whole("cut a</thi", "", &[])),
            ("hm\n</think>\n\nYes. </think>", &opened, whole("hm", "Yes. </think>", &[])),
            ("never ends", &opened, whole("never ends", "", &[])),
            ("<think>\n\n</think>\n\nx", &closed, whole("", "x", &[])),
            // The template writes the opening tag, and the model repeats it.
            ("<think>again</think>x", &opened, whole("again", "x", &[])),
            ("", &opened, whole("", "", &[])),
        ] {
            assert_eq!(read(text, Some(think), None), want, "{text:?}");
        }
        assert_eq!(read("<think>a</think>b", None, None), whole("", "<think>a</think>b", &[]));
    }

    #[test]
    fn calls_of_every_format() {
        let call = |key: &str, name: &str, args: &str| format!("{{\"name\": \"{name}\", \"{key}\": {args}}}");
        let args = r#"{"city": "Bo}n\"n", "n": [1, {"x": 2}]}"#;
        let a = call("arguments", "get", args);
        let p = call("parameters", "get", args);
        for (format, text, want) in [
            (ToolFormat::Hermes, format!("<tool_call>\n{a}\n</tool_call>"), whole("", "", &[("get", args)])),
            (
                ToolFormat::Hermes,
                format!("Let me see.<tool_call>\n{a}\n</tool_call>\n<tool_call>\n{a}\n</tool_call>"),
                whole("", "Let me see.", &[("get", args), ("get", args)]),
            ),
            (ToolFormat::Hermes, "only text < here".into(), whole("", "only text < here", &[])),
            (ToolFormat::Hermes, format!("<tool_call>{}", &a[..40]), whole("", "", &[("get", &args[..11])])),
            (
                ToolFormat::Hermes,
                "<tool_call>no json</tool_call>".into(),
                whole("", "<tool_call>no json</tool_call>", &[]),
            ),
            (
                ToolFormat::Hermes,
                r#"<tool_call>{"arguments": {"a": 1}, "name": "late"}</tool_call>"#.into(),
                whole("", "", &[("late", r#"{"a":1}"#)]),
            ),
            (ToolFormat::Llama, p.clone(), whole("", "", &[("get", args)])),
            (ToolFormat::Llama, format!("<|python_tag|>{p}"), whole("", "", &[("get", args)])),
            (ToolFormat::Llama, "{\"a\": 1} is JSON".into(), whole("", "{\"a\": 1} is JSON", &[])),
            (ToolFormat::Llama, "Hello {name}".into(), whole("", "Hello {name}", &[])),
            (ToolFormat::Mistral, format!("[TOOL_CALLS] [{a}, {a}]"), whole("", "", &[("get", args), ("get", args)])),
            (
                ToolFormat::MistralNamed,
                format!("Well.[TOOL_CALLS]get[ARGS]{args}[TOOL_CALLS]put[ARGS]{{}}"),
                whole("", "Well.", &[("get", args), ("put", "{}")]),
            ),
            (ToolFormat::Phi, format!("<|tool_call|>[{a}]<|/tool_call|>"), whole("", "", &[("get", args)])),
        ] {
            assert_eq!(read(&text, None, Some(&tags(format))), want, "{format:?} {text}");
        }
        let both = read(
            &format!("<think>I call</think>\n\n<tool_call>\n{a}\n</tool_call>"),
            Some(&thinking(false)),
            Some(&tags(ToolFormat::Hermes)),
        );
        assert_eq!(both, whole("I call", "", &[("get", args)]));
    }
}
