//! The messages, tools and choices of tools of a chat request.

use serde_json::{Map, Value};

use super::chat_request::{ChatMessage, joined};
use super::params;
use crate::domain::Message;
use crate::http::error::{ApiError, ApiResult};
use crate::prompt::{Conversation, ToolCall, Turn};
use crate::service::prompts::check_messages;

/// Most tools in a request, and most calls in a message.
const MOST_TOOLS: usize = 128;
/// Most variables for a chat template.
const MOST_KWARGS: usize = 64;

/// Parses a list of messages with calls of tools and their results.
///
/// # Errors
/// 400 at the invalid field of a message.
pub fn turns(given: Vec<ChatMessage>, field: &str) -> ApiResult<Vec<Turn>> {
    if given.is_empty() {
        return Err(ApiError::bad(field, "must have at least one message"));
    }
    if given.len() > 1024 {
        return Err(ApiError::bad(field, "must have at most 1024 messages"));
    }
    given.into_iter().enumerate().map(|(i, message)| turn(message, &format!("{field}[{i}]"))).collect()
}

/// Parses a list of messages in the form in which they are stored: calls of tools and their results become text (see
/// [`Conversation::stored`]); the reasoning of former answers is left out.
///
/// # Errors
/// 400 at the invalid field of a message, or when the messages have more than `max_bytes`.
pub fn stored_messages(given: Vec<ChatMessage>, field: &str, max_bytes: usize) -> ApiResult<Vec<Message>> {
    let turns = turns(given, field)?;
    let messages = Conversation { turns, ..Conversation::default() }.stored();
    check_messages(&messages, field, max_bytes)?;
    Ok(messages)
}

fn turn(mut message: ChatMessage, field: &str) -> ApiResult<Turn> {
    let role = message.role.as_str();
    if !matches!(role, "system" | "developer" | "user" | "assistant" | "tool") {
        return Err(ApiError::bad(format!("{field}.role"), "must be system, developer, user, assistant or tool"));
    }
    let (assistant, tool) = (role == "assistant", role == "tool");
    let bad = |name: &str, message: &str| Err(ApiError::bad(format!("{field}.{name}"), message));
    let calls = match message.tool_calls.take().filter(|v| !v.is_null()) {
        None => Vec::new(),
        Some(Value::Array(list)) if list.is_empty() => Vec::new(),
        Some(_) if !assistant => return bad("tool_calls", "is for messages of the assistant only"),
        Some(Value::Array(list)) => tool_calls(&list, field)?,
        Some(_) => return bad("tool_calls", "must be a list"),
    };
    let id = match message.tool_call_id.take().filter(|v| !v.is_null()) {
        None if tool => return bad("tool_call_id", "is missing: give the id of the call that this message answers"),
        None => None,
        Some(_) if !tool => return bad("tool_call_id", "is for messages of the role tool"),
        Some(Value::String(id)) if (1..=256).contains(&id.len()) => Some(id),
        Some(_) => return bad("tool_call_id", "must be a text of 1 to 256 bytes"),
    };
    let mut reasoning = None;
    for (name, given) in
        [("reasoning_content", message.reasoning_content.take()), ("reasoning", message.reasoning.take())]
    {
        match given {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(_) if !assistant => return bad(name, "is for messages of the assistant only"),
            Some(Value::String(text)) => reasoning = Some(text),
            Some(_) => return bad(name, "must be a text"),
        }
    }
    if tool {
        params::refuse_in(field, &[("function_call", &message.function_call, &[]), ("audio", &message.audio, &[])])?;
        let content = match message.content {
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => joined(&parts, field, false)?,
            _ => return bad("content", "must be text or a list of text parts"),
        };
        return Ok(Turn { role: "tool".into(), content, tool_call_id: id, name: message.name, ..Turn::default() });
    }
    let message = message.into_message(field)?;
    Ok(Turn { tool_calls: calls, reasoning, ..Turn::from(message) })
}

fn tool_calls(list: &[Value], field: &str) -> ApiResult<Vec<ToolCall>> {
    if list.len() > MOST_TOOLS {
        return Err(ApiError::bad(format!("{field}.tool_calls"), format!("at most {MOST_TOOLS} calls")));
    }
    let one = |(i, call): (usize, &Value)| {
        let bad = |name: &str, message: &str| ApiError::bad(format!("{field}.tool_calls[{i}]{name}"), message);
        let id = call["id"].as_str().filter(|id| (1..=256).contains(&id.len()));
        let id = id.ok_or_else(|| bad(".id", "must be a text of 1 to 256 bytes"))?;
        if !matches!(call["type"].as_str(), None | Some("function")) {
            return Err(bad(".type", "must be function"));
        }
        let name = call["function"]["name"].as_str().filter(|n| !n.is_empty() && n.len() <= 256);
        let name = name.ok_or_else(|| bad(".function.name", "must be a text of 1 to 256 bytes"))?;
        let arguments = ToolCall::read_arguments(&call["function"]["arguments"])
            .ok_or_else(|| bad(".function.arguments", "must be the text of a JSON object"))?;
        Ok(ToolCall { id: id.to_owned(), name: name.to_owned(), arguments })
    };
    list.iter().enumerate().map(one).collect()
}

/// Which tools an answer may call.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// No tools are offered or allowed.
    None,
    /// The model decides.
    Auto,
    /// At least one call, of one of these tools: name and schema of the arguments.
    Forced(Vec<(String, Value)>),
}

/// The tools that a request offers.
#[derive(Debug, PartialEq)]
pub struct Tools {
    /// In the form for templates; `None` when none may be called.
    pub offered: Option<Value>,
    pub choice: Choice,
    pub parallel: bool,
}

/// Checks `tools` with `tool_choice` and `parallel_tool_calls`.
///
/// # Errors
/// 400 at the invalid field.
pub fn tools(given: Option<&Value>, choice: Option<&Value>, parallel: Option<bool>) -> ApiResult<Tools> {
    let list = match given {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(list)) if list.len() <= MOST_TOOLS => list.as_slice(),
        Some(_) => return Err(ApiError::bad("tools", format!("must be a list of at most {MOST_TOOLS} tools"))),
    };
    let mut known: Vec<(String, Value)> = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        let found = function(tool, &format!("tools[{i}]"))?;
        if known.iter().any(|(name, _)| *name == found.0) {
            return Err(ApiError::bad(format!("tools[{i}].function.name"), "is the name of two tools"));
        }
        known.push(found);
    }
    let forced = |only: Vec<(String, Value)>| match only.is_empty() {
        true => Err(ApiError::bad("tool_choice", "requires tools")),
        false => Ok(Choice::Forced(only)),
    };
    let choice = match choice {
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            "required" | "any" => forced(known)?,
            _ => return Err(ApiError::bad("tool_choice", "must be none, auto, required or a named function")),
        },
        Some(named) => {
            let name = named["function"]["name"].as_str().filter(|_| named["type"] == "function");
            let name = name.ok_or_else(|| {
                ApiError::bad("tool_choice", "must be none, auto, required or {type: function, function: {name}}")
            })?;
            let only: Vec<_> = known.into_iter().filter(|(known, _)| known == name).collect();
            if only.is_empty() {
                return Err(ApiError::bad(
                    "tool_choice.function.name",
                    format!("the tool {name} is not among the request's tools"),
                ));
            }
            Choice::Forced(only)
        }
    };
    let offered = (!list.is_empty() && choice != Choice::None).then(|| Value::from(list.to_vec()));
    let choice = if offered.is_none() { Choice::None } else { choice };
    Ok(Tools { offered, choice, parallel: parallel.unwrap_or(true) })
}

/// Name and schema of the arguments of a tool.
fn function(tool: &Value, field: &str) -> ApiResult<(String, Value)> {
    let bad = |name: &str, message: &str| Err(ApiError::bad(format!("{field}{name}"), message));
    let Some(function) = tool["function"].as_object().filter(|_| tool["type"] == "function") else {
        return bad("", "must be {type: function, function: {name, description, parameters}}");
    };
    let known = ["name", "description", "parameters", "strict"];
    if let Some(other) = function.keys().find(|key| !known.contains(&key.as_str())) {
        return bad(&format!(".function.{other}"), &format!("unknown field {other}"));
    }
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name = function.get("name").and_then(Value::as_str).filter(|n| (1..=64).contains(&n.len()));
    let Some(name) = name.filter(|n| n.chars().all(named)) else {
        return bad(".function.name", "must be 1 to 64 letters, digits, dots, dashes and underscores");
    };
    match function.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(_) => return bad(".function.description", "must be a text"),
    }
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => serde_json::json!({"type": "object", "properties": {}}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return bad(".function.parameters", "must be a JSON schema"),
    };
    Ok((name.to_owned(), parameters))
}

/// Checks `chat_template_kwargs`.
///
/// # Errors
/// 400 for a reserved variable, or too many.
pub fn kwargs(given: Option<&Value>) -> ApiResult<Map<String, Value>> {
    const FIELD: &str = "chat_template_kwargs";
    let map = match given {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(map)) if map.len() <= MOST_KWARGS => map,
        Some(_) => return Err(ApiError::bad(FIELD, format!("must be an object of at most {MOST_KWARGS} variables"))),
    };
    let own = ["messages", "tools", "documents", "add_generation_prompt"];
    match map.keys().find(|key| own.contains(&key.as_str()) || key.ends_with("_token")) {
        Some(key) => Err(ApiError::bad(format!("{FIELD}.{key}"), "is reserved and cannot be set by a request")),
        None => Ok(map.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn weather() -> Value {
        json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})
    }

    #[test]
    fn choices_of_tools() {
        let list = json!([weather()]);
        let of = |choice: Value| tools(Some(&list), Some(&choice), None).map(|t| (t.offered.is_some(), t.choice));
        let forced = Choice::Forced(vec![("weather".into(), json!({"type": "object"}))]);
        assert_eq!(of(json!("auto")).unwrap(), (true, Choice::Auto));
        assert_eq!(of(json!("none")).unwrap(), (false, Choice::None));
        assert_eq!(of(json!("required")).unwrap(), (true, forced.clone()));
        assert_eq!(of(json!({"type": "function", "function": {"name": "weather"}})).unwrap(), (true, forced));
        for (given, choice, param) in [
            (json!([]), json!("required"), "tool_choice"),
            (list.clone(), json!("perhaps"), "tool_choice"),
            (list.clone(), json!({"type": "function"}), "tool_choice"),
            (list.clone(), json!({"type": "function", "function": {"name": "x"}}), "tool_choice.function.name"),
            (json!({}), json!("auto"), "tools"),
            (json!([{"type": "function"}]), json!("auto"), "tools[0]"),
            (json!([weather(), weather()]), json!("auto"), "tools[1].function.name"),
            (json!([{"type": "function", "function": {"name": "a b"}}]), json!("auto"), "tools[0].function.name"),
            (json!([{"type": "function", "function": {"name": "a", "x": 1}}]), json!("auto"), "tools[0].function.x"),
            (
                json!([{"type": "function", "function": {"name": "a", "parameters": 1}}]),
                json!("auto"),
                "tools[0].function.parameters",
            ),
        ] {
            let error = tools(Some(&given), Some(&choice), None).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{given} {choice}");
        }
    }

    #[test]
    fn messages_with_tools() {
        let read = |list: Value| turns(serde_json::from_value(list).unwrap(), "messages");
        let call =
            json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}});
        let turns = read(json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "content": [{"type": "text", "text": "5"}], "tool_call_id": "c1"},
        ]))
        .unwrap();
        assert_eq!(turns[1].tool_calls[0].arguments.to_string(), "{\"b\":1,\"a\":2}");
        assert_eq!((turns[1].reasoning.as_deref(), turns[2].content.as_str()), (Some("hm"), "5"));
        for (list, param) in [
            (json!([]), "messages"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "tool", "tool_call_id": "c"}]), "messages[0].content"),
            (json!([{"role": "user", "content": "x", "tool_call_id": "c"}]), "messages[0].tool_call_id"),
            (json!([{"role": "user", "content": "x", "tool_calls": [call]}]), "messages[0].tool_calls"),
            (json!([{"role": "user", "content": "x", "reasoning": "hm"}]), "messages[0].reasoning"),
            (json!([{"role": "assistant", "tool_calls": [{"id": "x"}]}]), "messages[0].tool_calls[0].function.name"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].id"),
            (json!([{"role": "assistant", "tool_calls": 3}]), "messages[0].tool_calls"),
        ] {
            assert_eq!(read(list.clone()).unwrap_err().param.as_deref(), Some(param), "{list}");
        }
    }
}
