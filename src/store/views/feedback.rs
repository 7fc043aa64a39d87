//! Feedback events of applications: thumbs, edits, choices.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Feedback;
use crate::store::*;

impl Feedback<'_> {
    /// Stores an event. One with a known idempotency key returns the stored event unchanged.
    ///
    /// # Errors
    /// `KeyReused` if the stored event says something else.
    pub async fn put(self, event: FeedbackEvent) -> Result<FeedbackEvent> {
        write!(self.0, |tx| prompts::put_feedback(tx, &event))
    }

    /// A page of events, newest first.
    pub async fn list(self, page: Page) -> Result<Vec<FeedbackEvent>> {
        read!(self.0, |c| prompts::list_feedback(c, &page))
    }

    /// The selected events on the next prompts after `after`, at most `prompts` of them, with their completions and
    /// prompts: by prompt, oldest first. Also the prompt to continue after; `None` at the end.
    pub async fn page(
        self,
        which: &FeedbackFilter,
        after: Option<&PromptId>,
        prompts: i64,
    ) -> Result<(Vec<FeedbackFact>, Option<PromptId>)> {
        read!(self.0, |c| prompts::feedback_page(c, which, after, prompts))
    }
}
