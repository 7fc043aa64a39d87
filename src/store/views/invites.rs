//! Invites, each of which makes one person.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Invites;
use crate::store::*;

impl Invites<'_> {
    /// Stores an invite.
    pub async fn put(self, invite: Invite) -> Result<()> {
        write!(self.0, |tx| people::put_invite(tx, &invite))
    }

    /// Marks the invite used by a new labeler, in one transaction. Conflict when used or expired.
    pub async fn redeem(self, token_hash: &str, labeler: Labeler, now: Micros) -> Result<Labeler> {
        write!(self.0, token_hash = token_hash.to_owned() => |tx| people::redeem_invite(tx, &token_hash, labeler, now))
    }

    /// All invites, newest first.
    pub async fn list(self) -> Result<Vec<Invite>> {
        read!(self.0, |c| people::list_invites(c))
    }

    /// Ends an unused invite. Conflict when it is used.
    pub async fn revoke(self, id: &InviteId, now: Micros) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| people::revoke_invite(tx, &id, now))
    }
}
