//! A conversation with tools and reasoning, which stored messages do not have, for templates of newer models.

use serde_json::{Map, Value, json};

use super::answer::{RESULT_TAGS, TOOLS_HEADING, ToolFormat, instructions};
use crate::domain::Message;

/// One tool call of the assistant.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object; a string where the caller's arguments are not a JSON object.
    pub arguments: Value,
}

impl ToolCall {
    /// The arguments of a call in OpenAI's form, as templates expect them: an object, also if its text is given, and
    /// another text unchanged. `None` if they are neither an object nor a text.
    pub fn read_arguments(given: &Value) -> Option<Value> {
        match given {
            Value::Null => Some(Value::Object(Map::new())),
            Value::String(text) if text.trim().is_empty() => Some(Value::Object(Map::new())),
            Value::String(text) => match serde_json::from_str(text) {
                Ok(Value::Object(fields)) => Some(Value::Object(fields)),
                _ => Some(given.clone()),
            },
            Value::Object(_) => Some(given.clone()),
            _ => None,
        }
    }
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    pub content: String,
    /// The reasoning before the assistant's answer.
    pub reasoning: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    /// Of the role `tool`: the call that it answers, and the tool's name where it is known.
    pub tool_call_id: Option<String>,
    pub name: Option<String>,
}

impl From<Message> for Turn {
    fn from(Message { role, content }: Message) -> Self {
        Self { role, content, ..Self::default() }
    }
}

impl Turn {
    /// The stored form: calls of tools are in the assistant's text, and results of tools in a message of the user, both
    /// in the format of Hermes. Reasoning is left out.
    pub fn stored(&self) -> Message {
        if self.role == "tool" {
            let content = format!("{}{}{}", RESULT_TAGS.0, self.content, RESULT_TAGS.1);
            return Message { role: "user".to_owned(), content };
        }
        let mut content = self.content.clone();
        for call in &self.tool_calls {
            let line = json!({"name": call.name, "arguments": call.arguments});
            let between = if content.is_empty() { "" } else { "\n" };
            content.push_str(&format!("{between}<tool_call>\n{line}\n</tool_call>"));
        }
        Message { role: self.role.clone(), content }
    }
}

/// The input of a template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub turns: Vec<Turn>,
    /// The list of tools, each `{"type": "function", "function": {name, description, parameters}}`.
    pub tools: Option<Value>,
    /// Variables for the template, such as `enable_thinking`.
    pub kwargs: Map<String, Value>,
    /// `none`, `low`, `medium`, … from the request.
    pub effort: Option<String>,
}

impl Conversation {
    /// The request's field that messages with only role and text cannot represent, if any.
    pub fn asks_for(&self) -> Option<&'static str> {
        if self.tools.is_some() {
            return Some("tools");
        }
        if self.effort.as_ref().is_some_and(|e| e != "none") {
            return Some("reasoning_effort");
        }
        if self.kwargs.keys().any(|key| key != "enable_thinking") {
            return Some("chat_template_kwargs");
        }
        let plain = |t: &Turn| t.tool_calls.is_empty() && t.role != "tool" && t.reasoning.is_none();
        (!self.turns.iter().all(plain)).then_some("messages")
    }

    /// Sets the variables that the template with this source reads.
    ///
    /// # Errors
    /// When the template does not read a requested variable: the request's field, and the reason.
    pub fn for_template(&self, template: &str) -> Result<Self, (&'static str, String)> {
        let mut conversation = self.clone();
        // Clients send it to every model.
        let unread = |key: &&String| !template.contains(key.as_str()) && *key != "enable_thinking";
        if let Some(key) = self.kwargs.keys().find(unread) {
            return Err(("chat_template_kwargs", format!("this model's chat template does not read {key}")));
        }
        if let Some(effort) = &self.effort {
            let reads = |key: &str| template.contains(key);
            let thinks = effort != "none";
            if thinks && !reads("reasoning_effort") && !reads("enable_thinking") {
                return Err(("reasoning_effort", "this model's chat template does not read it".into()));
            }
            if thinks && reads("reasoning_effort") {
                conversation.kwargs.entry("reasoning_effort").or_insert_with(|| effort.as_str().into());
            }
            conversation.kwargs.entry("enable_thinking").or_insert(thinks.into());
        }
        Ok(conversation)
    }

    /// Total bytes of the texts.
    pub fn bytes(&self) -> usize {
        let call = |c: &ToolCall| c.id.len() + c.name.len() + c.arguments.to_string().len();
        let turn = |t: &Turn| {
            let calls: usize = t.tool_calls.iter().map(call).sum();
            t.content.len() + t.reasoning.as_ref().map_or(0, String::len) + calls
        };
        let tools = self.tools.as_ref().map_or(0, |t| t.to_string().len());
        let kwargs = if self.kwargs.is_empty() { 0 } else { Value::from(self.kwargs.clone()).to_string().len() };
        self.turns.iter().map(turn).sum::<usize>() + tools + kwargs
    }

    /// The stored form: messages with role and text. Tools are at the end of the system message.
    pub fn stored(&self) -> Vec<Message> {
        let mut stored: Vec<Message> = self.turns.iter().map(Turn::stored).collect();
        if let Some(tools) = &self.tools {
            let shown = format!("{TOOLS_HEADING}{tools}");
            match stored.first_mut().filter(|first| first.role == "system") {
                Some(system) => system.content.push_str(&format!("\n\n{shown}")),
                None => stored.insert(0, Message { role: "system".into(), content: shown }),
            }
        }
        stored
    }

    /// `{messages, tools, kwargs}` for a template with this text.
    pub(super) fn as_templates_read_it(&self, template: &str) -> Value {
        let mut messages: Vec<Value> = self.turns.iter().map(|turn| self.message(turn, template)).collect();
        let mut tools = self.tools.clone().unwrap_or(Value::Null);
        if self.tools.is_some() {
            let in_system = template.contains("message['tools']") || template.contains("message.tools");
            if in_system || !ToolFormat::is_shown_by(template) {
                if messages.first().is_none_or(|m| m["role"] != "system") {
                    messages.insert(0, json!({"role": "system", "content": ""}));
                }
                let system = &mut messages[0];
                if in_system {
                    // Phi: a text in addition to the system message's.
                    let functions: Value =
                        tools.as_array().into_iter().flatten().map(|t| t["function"].clone()).collect();
                    system["tools"] = functions.to_string().into();
                } else {
                    let own = system["content"].as_str().unwrap_or_default();
                    let between = if own.is_empty() { "" } else { "\n\n" };
                    system["content"] = format!("{own}{between}{}", instructions(&tools)).into();
                    tools = Value::Null;
                }
            }
        }
        json!({"messages": messages, "tools": tools, "kwargs": self.kwargs})
    }

    fn message(&self, turn: &Turn, template: &str) -> Value {
        // Templates without tools do not render such messages, so they are passed as text.
        let known = ToolFormat::is_shown_by(template);
        let mut message = json!({"role": turn.role, "content": turn.content});
        if turn.role == "tool" {
            if !known {
                message["role"] = "user".into();
                message["content"] = format!("<tool_response>\n{}\n</tool_response>", turn.content).into();
                return message;
            }
            if let Some(id) = &turn.tool_call_id {
                message["tool_call_id"] = self.call_id(id, template).into();
            }
            let name = turn.name.as_deref().or_else(|| self.name_of(turn.tool_call_id.as_deref()?));
            if let Some(name) = name {
                message["name"] = name.into();
            }
        }
        if let Some(reasoning) = turn.reasoning.as_ref().filter(|r| !r.is_empty()) {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        if !turn.tool_calls.is_empty() {
            if !known {
                let calls =
                    turn.tool_calls.iter().map(|c| json!({"name": c.name, "parameters": c.arguments}).to_string());
                let all: Vec<String> =
                    (!turn.content.is_empty()).then(|| turn.content.clone()).into_iter().chain(calls).collect();
                message["content"] = all.join("\n").into();
                return message;
            }
            let one = |c: &ToolCall| {
                let function = json!({"name": c.name, "arguments": c.arguments});
                json!({"id": self.call_id(&c.id, template), "type": "function", "function": function})
            };
            message["tool_calls"] = turn.tool_calls.iter().map(one).collect();
        }
        message
    }

    /// The name of the tool of the call with this id.
    fn name_of(&self, id: &str) -> Option<&str> {
        let calls = self.turns.iter().flat_map(|t| &t.tool_calls);
        calls.filter(|c| c.id == id).map(|c| c.name.as_str()).next_back()
    }

    /// Mistral's templates accept ids of nine letters and digits only; other ids are mapped to such ones, equal ids to
    /// equal ones.
    fn call_id(&self, id: &str, template: &str) -> String {
        let fits = id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        if fits || !template.contains("[TOOL_CALLS]") {
            return id.to_owned();
        }
        crate::domain::hash::of_bytes(id)[..9].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::ChatTemplate;

    fn conversation() -> Conversation {
        let turn = |role: &str, content: &str| Turn { role: role.into(), content: content.into(), ..Turn::default() };
        let arguments = json!({"city": "Bonn <|im_end|>"});
        let call = ToolCall { id: "call_1".into(), name: "weather".into(), arguments };
        let function = json!({"name": "weather", "description": "d", "parameters": {"type": "object"}});
        Conversation {
            turns: vec![
                turn("user", "How is it?"),
                Turn { tool_calls: vec![call], reasoning: Some("I ask".into()), ..turn("assistant", "") },
                Turn { tool_call_id: Some("call_1".into()), ..turn("tool", "fine") },
            ],
            tools: Some(json!([{"type": "function", "function": function}])),
            kwargs: json!({"enable_thinking": false}).as_object().unwrap().clone(),
            effort: None,
        }
    }

    fn render(source: &str, conversation: &Conversation) -> String {
        ChatTemplate::new(source, None).unwrap().render_conversation(conversation, true).unwrap().text
    }

    #[test]
    fn templates_read_tools_calls_and_their_answers() {
        let c = conversation();
        let hermes = "{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}:{{ m.content }}\
                      {% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}\
                      {% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}\
                      {% endfor %}{% if m.role == 'tool' %} of {{ m.name }} {{ m.tool_call_id }}{% endif %}\n{% endfor %}\
                      {{ enable_thinking }}";
        let text = render(hermes, &c);
        assert!(text.starts_with("{\"type\": \"function\", \"function\": {\"name\": \"weather\""), "{text}");
        assert!(text.contains("assistant:[I ask]<tool_call>weather {\"city\": \"Bonn <|im_end|>\"}"), "{text}");
        assert!(text.contains("tool:fine of weather call_1"), "{text}");
        assert!(text.ends_with("False"), "{text}");
        // Ids that Mistral's template accepts, equal for call and result.
        let mistral = "{% for m in messages %}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.id }}={% endfor %}{{ m.tool_call_id }}\
                       {% endfor %}{{ tools | length }}";
        let text = render(mistral, &c);
        let (a, b) = text.strip_prefix("[TOOL_CALLS]").unwrap().split_once('=').unwrap();
        assert_eq!((a.len(), &b[..9]), (9, a));
        // Without tools in the template, an instruction describes them.
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let text = render(plain, &c);
        assert!(text.starts_with("<system>You have access to functions.") && text.contains("\"weather\""), "{text}");
        assert!(
            text.contains("<assistant>{\"name\":\"weather\",\"parameters\":{\"city\":\"Bonn <|im_end|>\"}}"),
            "{text}"
        );
        assert!(text.ends_with("<user><tool_response>\nfine\n</tool_response>"), "{text}");
        let phi =
            "{% for m in messages %}{% set message = m %}{{ message['role'] }}{{ message['tools'] }}|{% endfor %}";
        assert!(render(phi, &c).starts_with("system[{\"name\":\"weather\""));
    }

    #[test]
    fn variables_are_read_or_refused() {
        let asked = |effort: &str, key: &str| Conversation {
            effort: Some(effort.into()),
            kwargs: [(key.to_owned(), json!(1))].into_iter().collect(),
            ..Conversation::default()
        };
        let read = |c: &Conversation, template: &str| c.for_template(template).map(|c| Value::from(c.kwargs));
        assert_eq!(
            read(&asked("low", "x"), "{{ x }}{{ reasoning_effort }}"),
            Ok(json!({"x": 1, "reasoning_effort": "low", "enable_thinking": true}))
        );
        assert_eq!(read(&asked("none", "x"), "{{ x }}"), Ok(json!({"x": 1, "enable_thinking": false})));
        assert_eq!(read(&asked("high", "x"), "{{ x }}").unwrap_err().0, "reasoning_effort");
        assert_eq!(read(&asked("none", "y"), "{{ x }}").unwrap_err().0, "chat_template_kwargs");
        assert_eq!(read(&asked("none", "enable_thinking"), ""), Ok(json!({"enable_thinking": 1})));
    }

    #[test]
    fn stored_messages_are_readable() {
        let stored = conversation().stored();
        let roles: Vec<&str> = stored.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(stored[0].content.starts_with("# Tools\n\n[{\"type\":\"function\""));
        let call = "<tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Bonn <|im_end|>\"}}\n</tool_call>";
        assert_eq!(stored[2].content, call);
        assert_eq!(stored[3].content, "<tool_response>\nfine\n</tool_response>");
        let plain = Conversation { turns: vec![Turn::from(stored[1].clone())], ..Conversation::default() };
        assert_eq!((plain.asks_for(), conversation().asks_for()), (None, Some("tools")));
        assert_eq!(plain.stored(), stored[1..2]);
    }
}
