//! Keys of programs and operators, and the tokens charged to them.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::ApiKeys;
use crate::store::*;

impl ApiKeys<'_> {
    /// Tokens charged to the key on a day (days since 1970-01-01 UTC).
    pub async fn tokens(self, id: &ApiKeyId, day: i64) -> Result<i64> {
        read!(self.0, |c| people::key_tokens(c, id, day))
    }

    /// Adds to the tokens charged to the key on a day (days since 1970-01-01 UTC).
    pub async fn add_tokens(self, id: &ApiKeyId, day: i64, tokens: i64) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| people::add_key_tokens(tx, &id, day, tokens))
    }

    /// Stores a key or replaces the one with its id.
    pub async fn put(self, key: ApiKey) -> Result<()> {
        write!(self.0, |tx| people::put_api_key(tx, &key))
    }

    /// The key with this hash, revoked or not.
    pub async fn find(self, key_hash: &str) -> Result<Option<ApiKey>> {
        read!(self.0, |c| people::find_api_key(c, key_hash))
    }

    /// All keys, newest first.
    pub async fn list(self) -> Result<Vec<ApiKey>> {
        read!(self.0, |c| people::list_api_keys(c))
    }

    /// Also ends the sessions that the key opened.
    pub async fn revoke(self, id: &ApiKeyId) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| people::revoke_api_key(tx, &id))
    }

    /// `None` when the key is unknown or revoked.
    pub async fn live(self, id: &ApiKeyId) -> Result<Option<ApiKey>> {
        read!(self.0, |c| people::live_api_key(c, id))
    }

    /// The owner of a key that is not revoked; the person where the key has one.
    pub async fn owner(self, key_hash: &str) -> Result<Option<(ApiKey, Option<Labeler>)>> {
        read!(self.0, |c| access::key_owner(c, key_hash))
    }
}
