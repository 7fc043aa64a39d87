//! Feedback events of applications: thumbs, edits, choices.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Feedback;
use crate::store::*;

impl Feedback<'_> {
    /// Stores an event. One with a known idempotency key returns the stored event unchanged.
    pub async fn put(self, event: FeedbackEvent) -> Result<FeedbackEvent> {
        write!(self.0, |tx| prompts::put_feedback(tx, &event))
    }

    /// A page of events, newest first.
    pub async fn list(self, page: Page) -> Result<Vec<FeedbackEvent>> {
        read!(self.0, |c| prompts::list_feedback(c, &page))
    }

    /// Every event up to `as_of` with its completion and prompt, oldest first; optionally without those on completions
    /// of requests.
    pub async fn facts(self, as_of: Option<Micros>, without_requests: bool) -> Result<Vec<FeedbackFact>> {
        read!(self.0, |c| prompts::feedback_facts(c, as_of, without_requests))
    }
}
