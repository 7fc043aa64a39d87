//! Open-Assistant message trees, one a line: `{"message_tree_id", "prompt": {"text", "role", "replies": […]}}`.
//! The assistant's replies to one message are a ranking if they have ranks (rank 0 is best).

use serde_json::{Value, json};

use super::records::{Comparison, RankedText};
use crate::domain::{Message, PromptInput, hash};

/// The rankings of one tree, in the order of the tree.
///
/// # Errors
/// A message about a malformed tree. A tree without a ranking is not an error.
pub(super) fn rankings(tree: &Value) -> Result<Vec<Comparison>, String> {
    let root = tree.get("prompt").filter(|p| p.is_object()).ok_or("`prompt` must be the first message")?;
    let mut found = Vec::new();
    walk(root, &mut Vec::new(), &mut found)?;
    Ok(found)
}

/// Recursion is bounded, because the JSON parser accepts about sixty levels of messages.
fn walk(node: &Value, path: &mut Vec<Message>, found: &mut Vec<Comparison>) -> Result<(), String> {
    if deleted(node) {
        return Ok(());
    }
    let role = match node.get("role").and_then(Value::as_str) {
        Some("prompter") => "user",
        Some("assistant") => "assistant",
        other => return Err(format!("`role` = {other:?} (known: prompter, assistant)")),
    };
    path.push(Message { role: role.to_owned(), content: text(node)?.to_owned() });
    let replies = match node.get("replies") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(replies)) => replies.as_slice(),
        Some(_) => return Err("`replies` must be a list".into()),
    };
    if role == "user" {
        let mut ranked = Vec::new();
        for reply in replies.iter().filter(|r| !deleted(r)) {
            let is_answer = reply.get("role").and_then(Value::as_str) == Some("assistant");
            match reply.get("rank").filter(|r| !r.is_null()) {
                Some(rank) if is_answer => {
                    // Columns of numbers with gaps have whole numbers as 1.0.
                    let whole = rank.as_i64().or_else(|| rank.as_f64().filter(|r| r.fract() == 0.0).map(|r| r as i64));
                    let tier = whole.filter(|r| (0..=1_000_000).contains(r));
                    let tier = tier.ok_or_else(|| format!("`rank` must be a whole number from 0, found {rank}"))?;
                    ranked.push(RankedText::new(text(reply)?, tier));
                }
                _ => {}
            }
        }
        if ranked.len() >= 2 {
            found.push(Comparison::new(PromptInput::Chat(path.clone()), ranked));
        }
    }
    for reply in replies {
        walk(reply, path, found)?;
    }
    path.pop();
    Ok(())
}

fn deleted(node: &Value) -> bool {
    node.get("deleted").and_then(Value::as_bool).unwrap_or(false)
}

fn text(node: &Value) -> Result<&str, String> {
    node.get("text").and_then(Value::as_str).ok_or_else(|| "`text` must be a string".to_owned())
}

/// The tree of one ranking: its conversation as a chain with the ranked answers at the end. `None` for conversations
/// that the format cannot represent: with system messages, or not ending with the user.
pub(super) fn tree(comparison: &Comparison) -> Option<Value> {
    let messages = comparison.prompt.messages();
    let turn = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let alternates = messages.iter().enumerate().all(|(i, m)| m.role == turn(i));
    if !alternates || messages.len().is_multiple_of(2) {
        return None;
    }
    // Ids are derived from the content, so that equal rankings give equal trees.
    let id = |path: &str| {
        let digest = hash::of_bytes(path.as_bytes());
        [&digest[..8], &digest[8..12], &digest[12..16], &digest[16..20], &digest[20..32]].join("-")
    };
    let mut path = String::new();
    let mut ids = Vec::new();
    for message in &messages {
        path.push_str(&format!("{}\0{}\0", message.role, message.content));
        ids.push(id(&path));
    }
    let tree_id = ids.first()?.clone();
    let node = |ids: (&String, Option<&String>), role: &str, text: &str, rank: Option<i64>, replies: Vec<Value>| {
        json!({"message_id": ids.0, "parent_id": ids.1, "text": text, "role": role, "rank": rank,
               "deleted": false, "synthetic": false, "message_tree_id": tree_id, "replies": replies})
    };
    let last = ids.last()?;
    let answers = comparison.completions.iter().enumerate().map(|(i, c)| {
        node((&id(&format!("{path}{i}\0{}", c.text)), Some(last)), "assistant", &c.text, Some(c.tier), vec![])
    });
    let mut replies: Vec<Value> = answers.collect();
    for (i, message) in messages.iter().enumerate().rev() {
        let role = if message.role == "user" { "prompter" } else { "assistant" };
        let parent = i.checked_sub(1).and_then(|p| ids.get(p));
        replies = vec![node((&ids[i], parent), role, &message.content, None, replies)];
    }
    Some(json!({"message_tree_id": tree_id, "tree_state": "ready_for_export", "prompt": replies.pop()?}))
}
