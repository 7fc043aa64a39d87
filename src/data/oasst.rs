//! Open-Assistant message trees, one a line: `{"message_tree_id", "prompt": {"text", "role", "replies": […]}}`.
//! The assistant's replies to one message are a ranking if they have ranks (rank 0 is best).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

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

/// The messages of a ranking that a tree can represent; `None` for conversations with system messages and for those
/// that do not end with the user.
fn represented(comparison: &Comparison) -> Option<Vec<Message>> {
    let messages = comparison.prompt.messages();
    let turn = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let alternates = messages.iter().enumerate().all(|(i, m)| m.role == turn(i));
    (alternates && !messages.len().is_multiple_of(2)).then_some(messages)
}

/// The tree of one ranking: its conversation as a chain with the ranked answers at the end. `None` for conversations
/// that the format cannot represent: with system messages, or not ending with the user.
pub(super) fn tree(comparison: &Comparison) -> Option<Value> {
    Some(whole(alone(comparison, &represented(comparison)?)))
}

/// Trees of rankings, joined where one goes on with an answer of another: with a ranking that the same labeler gave of
/// the conversation up to that answer. Each tree is complete once every ranking that goes on with it was added.
#[derive(Default)]
pub struct Forest {
    /// Numbers of rankings that are still to be added, by the conversation with which they go on.
    expected: HashMap<String, usize>,
    open: HashMap<usize, Tree>,
    /// Answers with which others go on: the tree, and the places among the replies from its root.
    answers: HashMap<String, (usize, Vec<usize>)>,
    made: usize,
}

struct Tree {
    root: Value,
    /// Rankings that are still to be added.
    awaited: usize,
}

impl Forest {
    /// Announces a ranking. Rankings that are added without it are not joined to others.
    pub fn expect(&mut self, comparison: &Comparison) {
        if let Some([before @ .., _]) = represented(comparison).as_deref()
            && !before.is_empty()
        {
            *self.expected.entry(conversation(comparison, before)).or_default() += 1;
        }
    }

    /// Adds a ranking; returns the line of its tree when that is complete. A ranking that no tree can represent is left
    /// out.
    pub fn add(&mut self, comparison: &Comparison) -> Option<String> {
        let messages = represented(comparison)?;
        let (last, before) = messages.split_last()?;
        let gone_on = conversation(comparison, before);
        let is_last = match self.expected.get_mut(&gone_on) {
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            None => true,
        };
        let parent = if is_last { self.answers.remove(&gone_on) } else { self.answers.get(&gone_on).cloned() };
        let (id, place) = match parent.and_then(|(id, place)| Some((id, self.join(id, place, comparison, &messages)?)))
        {
            Some(joined) => joined,
            None => {
                self.made += 1;
                let root = alone(comparison, &messages);
                self.open.insert(self.made, Tree { root, awaited: 0 });
                (self.made, vec![0; before.len()])
            }
        };
        let answers = comparison.completions.iter().enumerate();
        for (i, answer) in answers {
            let said = Message { role: "assistant".to_owned(), content: answer.text.clone() };
            let with_answer: Vec<Message> = before.iter().chain([last, &said]).cloned().collect();
            let key = conversation(comparison, &with_answer);
            let Some(wanted) = self.expected.get(&key).filter(|n| **n > 0) else { continue };
            if let (Entry::Vacant(free), Some(tree)) = (self.answers.entry(key), self.open.get_mut(&id)) {
                free.insert((id, place.iter().copied().chain([i]).collect()));
                tree.awaited += wanted;
            }
        }
        match self.open.get(&id)?.awaited {
            0 => self.open.remove(&id).map(|tree| line(tree.root)),
            _ => None,
        }
    }

    /// The lines of the trees that are not complete, in the order in which they were begun.
    pub fn finish(self) -> Vec<String> {
        let mut open: Vec<(usize, Tree)> = self.open.into_iter().collect();
        open.sort_by_key(|(id, _)| *id);
        open.into_iter().map(|(_, tree)| line(tree.root)).collect()
    }

    /// Adds the last message of a ranking with its answers below an answer of a tree; returns the message's place.
    fn join(
        &mut self,
        id: usize,
        mut place: Vec<usize>,
        comparison: &Comparison,
        messages: &[Message],
    ) -> Option<Vec<usize>> {
        let tree = self.open.get_mut(&id)?;
        let tree_id = tree.root["message_tree_id"].clone();
        let answer = place.iter().try_fold(&mut tree.root, |node, i| node.get_mut("replies")?.get_mut(*i))?;
        let parent = answer["message_id"].clone();
        let replies = answer.get_mut("replies")?.as_array_mut()?;
        place.push(replies.len());
        replies.push(question(comparison, messages, parent, &tree_id));
        tree.awaited = tree.awaited.saturating_sub(1);
        Some(place)
    }
}

/// Identifies a conversation of a ranking's labeler.
fn conversation(comparison: &Comparison, messages: &[Message]) -> String {
    let said: Vec<[&str; 2]> = messages.iter().map(|m| [m.role.as_str(), m.content.as_str()]).collect();
    hash::of_bytes(json!([comparison.labeler, said]).to_string())
}

/// A line of a file: a tree with the message at its root.
fn line(root: Value) -> String {
    whole(root).to_string()
}

fn whole(root: Value) -> Value {
    json!({"message_tree_id": root["message_tree_id"], "tree_state": "ready_for_export", "prompt": root})
}

/// A message of a tree. `ids` are its own id, its parent's (null at the root) and the tree's.
fn node(ids: [Value; 3], role: &str, text: &str, rank: Option<i64>, replies: Vec<Value>) -> Value {
    let [id, parent, tree] = ids;
    json!({"message_id": id, "parent_id": parent, "text": text, "role": role, "rank": rank,
           "deleted": false, "synthetic": false, "message_tree_id": tree, "replies": replies})
}

/// Ids are derived from the content, so that equal rankings give equal trees.
fn message_id(path: &str) -> String {
    let digest = hash::of_bytes(path.as_bytes());
    [&digest[..8], &digest[8..12], &digest[12..16], &digest[16..20], &digest[20..32]].join("-")
}

/// The content of a conversation, from which the id of its last message follows.
fn path_of(messages: &[Message]) -> String {
    messages.iter().map(|m| format!("{}\0{}\0", m.role, m.content)).collect()
}

/// The last message of a ranking's conversation, with the ranked answers as its replies.
fn question(comparison: &Comparison, messages: &[Message], parent: Value, tree_id: &Value) -> Value {
    let path = path_of(messages);
    let id = json!(message_id(&path));
    let answer = |(i, c): (usize, &RankedText)| {
        let own = json!(message_id(&format!("{path}{i}\0{}", c.text)));
        node([own, id.clone(), tree_id.clone()], "assistant", &c.text, Some(c.tier), vec![])
    };
    let answers = comparison.completions.iter().enumerate().map(answer).collect();
    let text = messages.last().map_or("", |m| m.content.as_str());
    node([id.clone(), parent, tree_id.clone()], "prompter", text, None, answers)
}

/// The root of a tree with one ranking, whose conversation is a chain.
fn alone(comparison: &Comparison, messages: &[Message]) -> Value {
    let id = |n: usize| match n {
        0 => Value::Null,
        n => json!(message_id(&path_of(&messages[..n]))),
    };
    let tree_id = id(1);
    let mut below = question(comparison, messages, id(messages.len() - 1), &tree_id);
    for n in (1..messages.len()).rev() {
        let Message { role, content } = &messages[n - 1];
        let role = if role == "user" { "prompter" } else { "assistant" };
        below = node([id(n), id(n - 1), tree_id.clone()], role, content, None, vec![below]);
    }
    below
}
