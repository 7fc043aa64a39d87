//! Sessions of browsers.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Sessions;
use crate::store::*;

impl Sessions<'_> {
    /// Stores a session.
    pub async fn put(self, session: Session) -> Result<()> {
        write!(self.0, |tx| people::put_session(tx, &session))
    }

    /// A session that has not ended at `now`.
    pub async fn get(self, token_hash: &str, now: Micros) -> Result<Option<Session>> {
        read!(self.0, |c| people::get_session(c, token_hash, now))
    }

    /// Records that the session was used.
    pub async fn touch(self, token_hash: &str, now: Micros) -> Result<()> {
        write!(self.0, token_hash = token_hash.to_owned() => |tx| people::touch_session(tx, &token_hash, now))
    }

    /// Ends a session.
    pub async fn delete(self, token_hash: &str) -> Result<()> {
        write!(self.0, token_hash = token_hash.to_owned() => |tx| people::delete_session(tx, &token_hash))
    }

    /// An open session of an active person, with its credential.
    pub async fn open(self, token_hash: &str, now: Micros) -> Result<Option<access::OpenSession>> {
        read!(self.0, |c| access::open_session(c, token_hash, now))
    }
}
