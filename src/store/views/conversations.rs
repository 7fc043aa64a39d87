//! Conversations: comparison sets that follow each other.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Conversations;
use crate::store::*;

impl Conversations<'_> {
    /// Adds a turn behind a set, which becomes the first turn of a new conversation unless it is a turn already; returns
    /// the conversation. `Conflict` when that set is continued already.
    pub async fn put_turn(self, turn: NewTurn) -> Result<Conversation> {
        write!(self.0, |tx| conversations::put_turn(tx, &turn))
    }

    /// One conversation. `NotFound` when there is none with this id.
    pub async fn get(self, id: &ConversationId) -> Result<Conversation> {
        read!(self.0, |c| conversations::get(c, id))
    }

    /// The conversation that has the set as a turn.
    pub async fn of_set(self, set_id: &SetId) -> Result<Option<Conversation>> {
        read!(self.0, |c| conversations::of_set(c, set_id))
    }

    /// A page of a labeler's conversations, newest first.
    pub async fn list(self, labeler: &LabelerId, page: Page) -> Result<Vec<Conversation>> {
        read!(self.0, |c| conversations::list(c, labeler, &page))
    }
}
