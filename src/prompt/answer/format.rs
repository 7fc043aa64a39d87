//! The formats in which model families write tool calls, recognised from their chat templates, and grammars of such
//! calls.

use serde_json::{Value, json};

/// White space between the parts of a JSON text whose form is enforced, as a regular expression: one space, or a line end
/// with an indentation; deeper parts are indented no further. Unlimited white space would fill the answers of models that
/// are not sure of their next word.
const JSON_SPACE: &str = r"(\x20|\x0D?\x0A(\x20{0,16}|\x09{1,8}))";

/// Limits the white space of the texts of a schema, which is an object, to `JSON_SPACE`.
pub fn limit_space(schema: &mut Value) {
    schema["x-guidance"] = json!({"whitespace_pattern": JSON_SPACE});
}

/// Most calls in one answer with an enforced grammar.
const MOST_CALLS: usize = 16;

/// A family's format of tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM 3, Granite.
    Hermes,
    /// `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or not: Llama 3; also requested from models whose
    /// templates have no tools, such as Gemma's.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`: Mistral.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`: newer Mistral.
    MistralNamed,
    /// `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`: Phi 4 mini.
    Phi,
}

/// The text around calls.
pub(super) struct Spec {
    pub open: &'static str,
    pub close: &'static str,
    /// Whether calls are items of a list.
    pub list: bool,
    /// Whether a call may be the whole answer, without a tag.
    pub bare: bool,
    /// Whether the name precedes the object, which is the arguments.
    pub named: bool,
}

impl ToolFormat {
    /// The format that a chat template shows. `None`: its models use a format that is not supported.
    pub fn of(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        match () {
            () if has("[TOOL_CALLS]") && has("[ARGS]") => Some(Self::MistralNamed),
            () if has("[TOOL_CALLS]") => Some(Self::Mistral),
            // Qwen 3 Coder's XML, FunctionGemma's own values, gpt-oss's channels, DeepSeek's marks.
            () if has("<function=") || has("<start_function_call>") || has("<|channel|>") || has("<｜tool") => None,
            () if has("<tool_call>") => Some(Self::Hermes),
            () if has("<|tool_call|>") || has("<|tool|>") => Some(Self::Phi),
            () => Some(Self::Llama),
        }
    }

    /// The format of the calls in a complete answer, by its tags. `offered`: tools were offered, so that an answer that
    /// is a JSON object may be a call.
    pub fn in_answer(text: &str, offered: bool) -> Option<Self> {
        let has = |tag: &str| text.contains(tag);
        match () {
            () if has("[TOOL_CALLS]") && has("[ARGS]") => Some(Self::MistralNamed),
            () if has("[TOOL_CALLS]") => Some(Self::Mistral),
            () if has("<|tool_call|>") => Some(Self::Phi),
            () if has("<tool_call>") => Some(Self::Hermes),
            () if has("<|python_tag|>") || (offered && text.trim_start().starts_with('{')) => Some(Self::Llama),
            () => None,
        }
    }

    /// Whether a template renders the tools; otherwise the conversation must include them.
    pub fn is_shown_by(template: &str) -> bool {
        template.contains("tools")
    }

    pub(super) fn spec(self) -> Spec {
        let plain = Spec { open: "", close: "", list: false, bare: false, named: false };
        match self {
            Self::Hermes => Spec { open: "<tool_call>", close: "</tool_call>", ..plain },
            Self::Llama => Spec { open: "<|python_tag|>", bare: true, ..plain },
            Self::Mistral => Spec { open: "[TOOL_CALLS]", list: true, ..plain },
            Self::MistralNamed => Spec { open: "[TOOL_CALLS]", named: true, ..plain },
            Self::Phi => Spec { open: "<|tool_call|>", close: "<|/tool_call|>", list: true, ..plain },
        }
    }

    /// Texts around calls, which may be special tokens of the vocabulary.
    pub fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::MistralNamed => &["[TOOL_CALLS]", "[ARGS]"],
            Self::Phi => &["<|tool_call|>", "<|/tool_call|>"],
        }
    }

    /// Whether one answer can hold several calls.
    fn takes_several(self) -> bool {
        self != Self::Llama
    }
}

/// A format with one vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolTags {
    pub format: ToolFormat,
    /// Tags that are special tokens of the vocabulary, with their ids.
    pub special: Vec<(String, u32)>,
}

/// The tools that a constrained answer may call.
pub struct Grammar<'a> {
    /// Names and schemas of their arguments.
    pub tools: &'a [(String, Value)],
    /// Whether more than one call is allowed.
    pub parallel: bool,
}

impl ToolTags {
    /// A tag as a part of a rule: a special token by its id, another one by its text.
    fn tag(&self, text: &str) -> String {
        match self.special.iter().find(|(name, _)| name == text) {
            Some((_, id)) => format!("<[{id}]>"),
            None => quoted(text),
        }
    }

    /// The grammar, in llguidance's Lark, of answers that consist of calls only.
    pub fn grammar(&self, of: &Grammar<'_>) -> String {
        let more = if of.parallel && self.format.takes_several() { MOST_CALLS - 1 } else { 0 };
        let names: Vec<String> = (0..of.tools.len()).map(|i| format!("c{i}")).collect();
        let one = format!("({})", names.join(" | "));
        let spec = self.format.spec();
        let and = |call: String| if more == 0 { String::new() } else { format!(" ({call}){{0,{more}}}") };
        let start = match self.format {
            ToolFormat::Hermes => {
                let call = format!("{} \"\\n\" {one} \"\\n\" {}", self.tag(spec.open), self.tag(spec.close));
                format!("{call}{}", and(format!("\"\\n\" {call}")))
            }
            ToolFormat::Llama => one,
            ToolFormat::Mistral => {
                format!("{} \"[\" {one}{} \"]\"", self.tag(spec.open), and(format!("\", \" {one}")))
            }
            ToolFormat::MistralNamed => format!("{one}{}", and(one.clone())),
            ToolFormat::Phi => format!(
                "{} \"[\" {one}{} \"]\" {}",
                self.tag(spec.open),
                and(format!("\", \" {one}")),
                self.tag(spec.close)
            ),
        };
        let mut lark = format!("start: {start}\n");
        let key = if self.format == ToolFormat::Llama { "parameters" } else { "arguments" };
        for (i, (name, schema)) in of.tools.iter().enumerate() {
            let mut schema = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
            limit_space(&mut schema);
            let rule = match self.format {
                ToolFormat::MistralNamed => {
                    format!("{} {} {} %json {schema}", self.tag("[TOOL_CALLS]"), quoted(name), self.tag("[ARGS]"))
                }
                _ => {
                    let head = format!("{{\"name\": {}, \"{key}\": ", quoted(name));
                    format!("{} %json {schema} \"}}\"", quoted(&head))
                }
            };
            lark.push_str(&format!("c{i}: {rule}\n"));
        }
        lark
    }
}

/// A string literal of Lark, which is that of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The instruction for models whose template does not render the tools: Google's wording for Gemma.
pub fn instructions(tools: &Value) -> String {
    format!(
        "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format \
         of {{\"name\": function name, \"parameters\": dictionary of argument name and its value}}. You SHOULD NOT \
         include any other text in the response if you call a function.\n{tools}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_of_json_indents_and_ends() {
        let whole = regex::Regex::new(&format!("^{JSON_SPACE}$")).unwrap();
        for (space, fits) in [
            (" ", true),
            ("\n", true),
            ("\r\n\t\t", true),
            ("\n        ", true),
            ("", false),
            ("  ", false),
            ("\t", false),
            ("\n\n", false),
            ("\r\r", false),
            ("\n \n ", false),
        ] {
            assert_eq!(whole.is_match(space), fits, "{space:?}");
        }
    }

    #[test]
    fn templates_name_their_formats() {
        for (template, want) in [
            ("{% if tools %}<tool_call>{% endif %}", Some(ToolFormat::Hermes)),
            ("{{ '[TOOL_CALLS]' }}", Some(ToolFormat::Mistral)),
            ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", Some(ToolFormat::MistralNamed)),
            ("<|python_tag|> {\"name\": x, \"parameters\": y}", Some(ToolFormat::Llama)),
            ("'<|tool|>' + message['tools'] + '<|/tool|>'", Some(ToolFormat::Phi)),
            ("<start_of_turn>model", Some(ToolFormat::Llama)),
            ("<tool_call><function=name>", None),
        ] {
            assert_eq!(ToolFormat::of(template), want, "{template}");
        }
    }
}
