//! People and their access: labelers, keys, sessions, links, invites, feedback, the audit trail.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ApiKeyId, CompletionId, FeedbackId, InviteId, LabelerId, LinkId, Micros};

name_enum!(Role { Labeler = "labeler", Reviewer = "reviewer", Admin = "admin" });

/// Keys of the labeling page by action, such as `t` for `tie`.
pub type KeyMap = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Labeler {
    pub id: LabelerId,
    pub name: String,
    pub role: Role,
    pub active: bool,
    /// Judgments per day (UTC); `None` = as configured, 0 = no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_quota: Option<i64>,
    /// When the person's data was erased on request; the row is kept, because judgments refer to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Micros>,
    pub created: Micros,
}

impl Labeler {
    /// A new, active labeler without an individual quota.
    pub fn new(id: LabelerId, name: String, role: Role, created: Micros) -> Self {
        Self { id, name, role, active: true, daily_quota: None, erased: None, created }
    }
}

/// A bearer key; only its SHA-256 is kept. Scopes: `admin`, `feedback`, `inference`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub name: String,
    pub key_hash: String,
    pub scopes: Vec<String>,
    pub labeler_id: Option<LabelerId>,
    /// Prompt and sampled tokens per day (UTC); `None` = no limit.
    pub daily_tokens: Option<i64>,
    pub origin: KeyOrigin,
    pub revoked: bool,
    pub created: Micros,
}

name_enum!(
    /// The origin of a key.
    KeyOrigin {
        /// An administrator made it.
        Created = "created",
        /// The server made it at its first start and printed it once; a configured admin key replaces it.
        Generated = "generated",
    }
);

/// A personal, reusable way to sign in; only the SHA-256 of its token is kept. A person has one active link.
#[derive(Clone, Debug, PartialEq)]
pub struct SignInLink {
    pub id: LinkId,
    pub labeler_id: LabelerId,
    pub token_hash: String,
    pub state: LinkState,
    /// `None` = until it is revoked or replaced.
    pub expires: Option<Micros>,
    /// When it was last used to sign in.
    pub used: Option<Micros>,
    pub created: Micros,
}

name_enum!(LinkState { Active = "active", Replaced = "replaced", Revoked = "revoked" });

/// A browser session; only the SHA-256 of its token is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub token_hash: String,
    pub labeler_id: LabelerId,
    pub role: Role,
    /// The credential that opened it, so that both end together: the id of a key, `link:` and the id of a sign-in link,
    /// `admin:…` for the configured admin key; empty for invites.
    pub credential: String,
    /// When it was last used, to within a minute.
    pub used: Micros,
    pub expires: Micros,
    pub created: Micros,
}

/// A single-use link that creates a labeler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invite {
    pub id: InviteId,
    pub token_hash: String,
    pub role: Role,
    /// The name of the invited person.
    pub name: Option<String>,
    pub note: Option<String>,
    pub expires: Micros,
    pub revoked: bool,
    pub used_by: Option<LabelerId>,
    pub created: Micros,
}

/// A thumb, score or edit that an application or a chat user gives to one completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FeedbackEvent {
    pub id: FeedbackId,
    pub completion_id: CompletionId,
    /// `thumb`, `score`, `edit`, `comment`.
    pub kind: String,
    pub value: serde_json::Value,
    pub actor_hash: Option<String>,
    pub idempotency_key: String,
    pub created: Micros,
}

/// The person and the credential behind a change, for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub actor: String,
    /// See [`AuditEntry::credential`].
    pub credential: Option<String>,
}

impl From<&str> for Signature {
    fn from(actor: &str) -> Self {
        Self { actor: actor.to_owned(), credential: None }
    }
}

/// One entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuditEntry {
    pub id: i64,
    /// The labeler's id.
    pub actor: String,
    /// The actor's credential: the id of a key, `configured` for the configured admin key, `link:` and the id
    /// of a sign-in link, `invite`; absent in entries from before this was stored, and for actions of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// `invite`, `create_key`, `import`, `promote`, `erase`, …
    pub action: String,
    /// Id (or name) of the changed object.
    pub target: String,
    pub detail: serde_json::Value,
    pub created: Micros,
}
