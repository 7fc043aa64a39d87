//! Ideal answers written by people.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Demonstrations;
use crate::store::*;

impl Demonstrations<'_> {
    /// Stores a human answer to a prompt; prompt and completion are stored with it.
    pub async fn put(
        self,
        prompt: Prompt,
        completion: Completion,
        labeler: Option<LabelerId>,
        now: Micros,
    ) -> Result<Demonstration> {
        write!(self.0, |tx| prompts::put_demonstration(tx, &prompt, completion, labeler.as_ref(), now))
    }

    /// Demonstrations with their prompts, at most `limit` after `after`, oldest first.
    pub async fn page(
        self,
        after: Option<&Demonstration>,
        limit: i64,
    ) -> Result<Vec<(Demonstration, Prompt, Completion)>> {
        read!(self.0, |c| prompts::demonstration_page(c, after, limit))
    }
}
