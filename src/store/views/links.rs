//! Personal sign-in links.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Links;
use crate::store::*;

impl Links<'_> {
    /// Stores a link as the person's active one; the previous one becomes `replaced`, and the sessions that it opened
    /// end.
    pub async fn put(self, link: SignInLink) -> Result<()> {
        write!(self.0, |tx| access::put_link(tx, &link))
    }

    /// The link with this token hash, in any state.
    pub async fn find(self, token_hash: &str) -> Result<Option<SignInLink>> {
        read!(self.0, |c| access::one(c, "SELECT * FROM sign_in_links WHERE token_hash = $1", token_hash))
    }

    /// All links that are neither replaced nor revoked.
    pub async fn list(self) -> Result<Vec<SignInLink>> {
        read!(self.0, |c| access::list(c))
    }

    /// `None` when it is unknown, replaced or revoked.
    pub async fn live(self, id: &LinkId) -> Result<Option<SignInLink>> {
        read!(self.0, |c| access::one(c, "SELECT * FROM sign_in_links WHERE id = $1 AND state = 'active'", id.as_str()))
    }

    /// Records that the link was used.
    pub async fn touch(self, id: &LinkId, now: Micros) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| access::touch(tx, &id, now))
    }

    /// Ends the person's active link and the sessions that it opened. `NotFound` when there is none.
    pub async fn revoke(self, labeler: &LabelerId) -> Result<()> {
        write!(self.0, labeler = labeler.clone() => |tx| access::revoke(tx, &labeler))
    }
}
