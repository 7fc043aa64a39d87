//! The audit trail: who changed what, and when.

use std::collections::HashMap;

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::AuditLog;
use crate::store::*;

impl AuditLog<'_> {
    /// Appends one entry: who did what to which target.
    pub async fn append(
        self,
        by: &Signature,
        action: &str,
        target: &str,
        detail: serde_json::Value,
        now: Micros,
    ) -> Result<()> {
        write!(self.0, by = by.clone(), action = action.to_owned(), target = target.to_owned() => |tx| people::audit(tx, &by, &action, &target, &detail, now))
    }

    /// Newest first; `before` is an id (exclusive).
    pub async fn list(self, filter: &AuditFilter, before: Option<i64>, limit: i64) -> Result<Vec<AuditEntry>> {
        read!(self.0, |c| people::list_audit(c, filter, before, limit))
    }

    /// Kind and name of these ids; unknown ones are left out.
    pub async fn names_of(self, ids: &[String]) -> Result<HashMap<String, Named>> {
        read!(self.0, |c| browse::names_of(c, ids))
    }
}
