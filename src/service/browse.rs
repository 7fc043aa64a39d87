//! Lists for the pages: sets and judgments with a preview of their prompt, and names for ids.

use std::collections::{BTreeMap, HashMap};

use super::searches::{Listed, search};
use super::{Result, Services};
use crate::domain::{AuditEntry, Message, SetId};
use crate::store::{AuditFilter, JudgmentFilter, JudgmentRow, Page, SetFilter, SetRow};

/// Characters of a prompt that a list shows.
const PREVIEW: usize = 160;

/// The last question of a conversation on one line, cut to `PREVIEW` characters.
pub fn preview(messages: &[Message]) -> String {
    let asked = messages.iter().rev().find(|m| m.role == "user").or_else(|| messages.last());
    let mut line = String::new();
    let mut length = 0;
    for word in asked.map_or("", |m| m.content.as_str()).split_whitespace() {
        let space = usize::from(length > 0);
        let room = PREVIEW.saturating_sub(length + space);
        if word.chars().nth(room).is_some() {
            // A word longer than the line, as in text without spaces, is cut.
            if length < PREVIEW / 2 {
                line.push_str(if space == 1 { " " } else { "" });
                line.extend(word.chars().take(room));
            }
            line.push('…');
            return line;
        }
        if space == 1 {
            line.push(' ');
        }
        line.push_str(word);
        length += space + word.chars().count();
    }
    line
}

fn set_id(row: &SetRow) -> &str {
    row.set.id.as_str()
}

fn judgment_id(row: &JudgmentRow) -> &str {
    row.id.as_str()
}

/// A page of sets that match the filter, newest first, with one line of each prompt.
///
/// # Errors
/// What the store says.
pub async fn sets(services: &Services, filter: &SetFilter, page: Page) -> Result<Listed<(SetRow, String)>> {
    let (store, now) = (services.store.sets(), services.now());
    let listed = if filter.is_search() {
        search(services.search, page, set_id, |part| store.search(filter, part, now)).await?
    } else {
        let (rows, total) = store.browse(filter, page, now).await?;
        Listed::counted(rows, Some(total), set_id)
    };
    Ok(listed.map(|row| (preview(&row.messages), row)).map(|(text, row)| (row, text)))
}

/// A page of judgments that match the filter, newest first, with one line of each prompt.
///
/// # Errors
/// What the store says.
pub async fn judgments(
    services: &Services,
    filter: &JudgmentFilter,
    page: Page,
) -> Result<Listed<(JudgmentRow, String)>> {
    let store = services.store.judgments();
    let listed = if filter.is_search() {
        search(services.search, page, judgment_id, |part| store.search(filter, part)).await?
    } else {
        let (rows, total) = store.browse(filter, page).await?;
        Listed::counted(rows, Some(total), judgment_id)
    };
    Ok(listed.map(|row| (preview(&row.messages), row)).map(|(text, row)| (row, text)))
}

/// Previews of the prompts of these sets.
pub async fn previews(services: &Services, ids: &[SetId]) -> Result<HashMap<SetId, String>> {
    let found = services.store.sets().prompts(ids).await?;
    Ok(found.into_iter().map(|(id, messages)| (id, preview(&messages))).collect())
}

/// The kind and name of the entity with an id.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct NameOf {
    /// `labeler`, `model`, `key`, `invite`, `dataset`, `job`, `draw` or `set`.
    pub kind: String,
    /// The name, the kind of a job, the policy of a draw, one line of a set's prompt.
    pub name: String,
}

/// A page of the audit trail, newest first, and the names of the ids in it, as far as they are known.
///
/// # Errors
/// What the store says.
pub async fn audit(
    services: &Services,
    filter: &AuditFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<(Vec<AuditEntry>, BTreeMap<String, NameOf>)> {
    let entries = services.store.audit_log().list(filter, before, limit).await?;
    let named = entries.iter().flat_map(|e| [e.actor.clone(), e.target.clone()]).collect();
    let names = names(services, named).await?;
    Ok((entries, names))
}

/// Kind and name of each known id.
pub async fn names(services: &Services, mut ids: Vec<String>) -> Result<BTreeMap<String, NameOf>> {
    ids.sort_unstable();
    ids.dedup();
    let mut names = BTreeMap::new();
    for (id, named) in services.store.audit_log().names_of(&ids).await? {
        let name = if named.messages.is_empty() { named.name } else { preview(&named.messages) };
        names.insert(id, NameOf { kind: named.kind, name });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn a_preview_is_one_short_line_of_the_last_question() {
        let talk = [
            message("system", "Be kind."),
            message("user", "Hi"),
            message("assistant", "Hello"),
            message("user", " a\n\tb "),
        ];
        assert_eq!(preview(&talk), "a b");
        assert_eq!(preview(&[message("system", "alone")]), "alone");
        assert_eq!(preview(&[]), "");
        let long = preview(&[message("user", &"word ".repeat(100))]);
        assert!(long.chars().count() <= PREVIEW + 1 && long.ends_with("word…"), "{long}");
        let chinese = preview(&[message("user", &"字".repeat(500))]);
        assert_eq!(chinese.chars().count(), PREVIEW + 1);
        let exact = "x".repeat(PREVIEW);
        assert_eq!(preview(&[message("user", &exact)]), exact);
    }
}
