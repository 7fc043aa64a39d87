//! Prompts, and which of them sets may be drawn for.

use std::collections::HashSet;

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Prompts;
use crate::store::*;

impl Prompts<'_> {
    /// Stores a prompt. When one with the same content exists, that one is returned.
    pub async fn put(self, prompt: Prompt) -> Result<Prompt> {
        write!(self.0, |tx| prompts::put(tx, &prompt))
    }

    /// One prompt. `NotFound` when there is none with this id.
    pub async fn get(self, id: &PromptId) -> Result<Prompt> {
        read!(self.0, |c| prompts::get(c, id))
    }

    /// A page of prompts, newest first, optionally from one source.
    pub async fn list(self, page: Page, source: Option<&str>) -> Result<Vec<Prompt>> {
        read!(self.0, |c| prompts::list(c, &page, source))
    }

    /// Prompts of those sets, newest first.
    pub async fn list_of(self, page: Page, labeler: &LabelerId) -> Result<Vec<Prompt>> {
        read!(self.0, |c| async move {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for id in sets::prompts_seen_by(c, &page, labeler).await? {
                let one = prompts::get(c, &id).await?;
                bytes += prompts::size(&one);
                found.push(one);
                if bytes >= crate::store::rows::PAGE_BYTES {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// Prompts that match, oldest first, with ids after `after`.
    pub async fn select(self, filter: &PromptFilter, after: Option<&str>, limit: i64) -> Result<Vec<Prompt>> {
        read!(self.0, |c| draws::select_prompts(c, filter, after, limit))
    }

    /// Number of prompts that match the filter, and of those that [`Prompts::select`] excludes, by reason.
    pub async fn count(self, filter: &PromptFilter) -> Result<PromptCounts> {
        read!(self.0, |c| draws::count_prompts(c, filter))
    }

    /// Stores a prompt like [`Prompts::put`], and records who submitted it.
    pub async fn submit(self, prompt: Prompt, by: &LabelerId) -> Result<Prompt> {
        write!(self.0, by = by.clone() => |tx| privacy::submit_prompt(tx, &prompt, &by))
    }

    /// Whether the labeler submitted the prompt, or made or received a set of it.
    pub async fn is_of(self, id: &PromptId, labeler: &LabelerId) -> Result<bool> {
        read!(self.0, |c| privacy::prompt_is_of(c, id, labeler))
    }

    /// How many prompts and completions came in as requests only.
    pub async fn request_counts(self) -> Result<RequestCounts> {
        read!(self.0, |c| privacy::request_counts(c))
    }

    /// Those of the prompts that came in only as requests.
    pub async fn of_requests(self, ids: &[PromptId]) -> Result<HashSet<PromptId>> {
        read!(self.0, |c| privacy::request_prompts(c, ids))
    }
}
