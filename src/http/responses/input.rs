//! Items of a Responses request as messages of chat.

use serde_json::{Value, json};

use crate::http::error::{ApiError, ApiResult};

/// Most items.
const MOST_ITEMS: usize = 1024;

/// Translates an input to messages of chat.
///
/// # Errors
/// 400 at the invalid item.
pub fn messages(input: Option<&Value>) -> ApiResult<Vec<Value>> {
    let items = match input {
        None => return Err(ApiError::bad("input", "is missing")),
        Some(Value::String(text)) => return Ok(vec![json!({"role": "user", "content": text})]),
        Some(Value::Array(items)) if (1..=MOST_ITEMS).contains(&items.len()) => items,
        Some(_) => return Err(ApiError::bad("input", format!("must be a text or a list of 1 to {MOST_ITEMS} items"))),
    };
    let mut messages: Vec<Value> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        add(item, &format!("input[{i}]"), &mut messages)?;
    }
    Ok(messages)
}

fn add(item: &Value, field: &str, messages: &mut Vec<Value>) -> ApiResult<()> {
    let needs =
        |name: &str| item[name].as_str().ok_or_else(|| ApiError::bad(format!("{field}.{name}"), "must be a text"));
    match item["type"].as_str() {
        None | Some("message") => {
            let role = needs("role")?;
            if !matches!(role, "system" | "developer" | "user" | "assistant") {
                let message = "must be system, developer, user or assistant";
                return Err(ApiError::bad(format!("{field}.role"), message));
            }
            let content = text(&item["content"], &format!("{field}.content"))?;
            match of_same_turn(messages, role) {
                Some(open) if open["content"].as_str() == Some("") => open["content"] = content.into(),
                _ => messages.push(json!({"role": role, "content": content})),
            }
        }
        Some("function_call") => {
            let function = json!({"name": needs("name")?, "arguments": needs("arguments")?});
            let call = json!({"id": needs("call_id")?, "type": "function", "function": function});
            let turn = assistant(messages);
            match turn["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(call),
                None => turn["tool_calls"] = json!([call]),
            }
        }
        Some("function_call_output") => {
            let output = text(&item["output"], &format!("{field}.output"))?;
            messages.push(json!({"role": "tool", "tool_call_id": needs("call_id")?, "content": output}));
        }
        Some("reasoning") => {
            let parts = item["content"].as_array().filter(|list| !list.is_empty());
            let parts = parts.or_else(|| item["summary"].as_array());
            let thoughts: String = parts.into_iter().flatten().filter_map(|part| part["text"].as_str()).collect();
            if !thoughts.is_empty() {
                messages.push(json!({"role": "assistant", "content": "", "reasoning_content": thoughts}));
            }
        }
        Some(other) => {
            let error = ApiError::bad(format!("{field}.type"), format!("items of type {other} are not supported"));
            return Err(error.code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// The assistant's turn that a reasoning item began and this message continues.
fn of_same_turn<'a>(messages: &'a mut [Value], role: &str) -> Option<&'a mut Value> {
    let last = messages.last_mut().filter(|_| role == "assistant")?;
    (last["role"] == "assistant" && last.get("reasoning_content").is_some() && last.get("tool_calls").is_none())
        .then_some(last)
}

/// The assistant's turn that a call belongs to.
fn assistant(messages: &mut Vec<Value>) -> &mut Value {
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

fn text(content: &Value, field: &str) -> ApiResult<String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let one = |(i, part): (usize, &Value)| {
                let text = match part["type"].as_str() {
                    Some("input_text" | "output_text" | "text") => part["text"].as_str(),
                    Some("refusal") => part["refusal"].as_str(),
                    _ => None,
                };
                let message = "only parts of type input_text and output_text are supported";
                text.map(str::to_owned).ok_or_else(|| ApiError::bad(format!("{field}[{i}]"), message))
            };
            parts.iter().enumerate().map(one).collect()
        }
        _ => Err(ApiError::bad(field, "must be a text or a list of parts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_turns() {
        let read = messages(Some(&json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
        ])))
        .unwrap();
        let call =
            |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        assert_eq!(
            Value::from(read),
            json!([
                {"role": "user", "content": "ab"},
                {"role": "assistant", "content": "c", "reasoning_content": "hm", "tool_calls": [call("1", "f"), call("2", "g")]},
                {"role": "tool", "tool_call_id": "1", "content": "x"},
            ])
        );
        for (input, param) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!([{"role": "robot", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0]"),
            (json!([{"type": "function_call", "name": "f"}]), "input[0].arguments"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
        ] {
            assert_eq!(messages(Some(&input)).unwrap_err().param.as_deref(), Some(param), "{input}");
        }
    }
}
