//! Settings that are changed while the server runs.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Settings;
use crate::store::*;

impl Settings<'_> {
    /// All stored settings.
    pub async fn list(self) -> Result<Vec<Setting>> {
        read!(self.0, |c| settings::list(c))
    }

    /// `None` removes it.
    pub async fn put(self, name: &str, value: Option<serde_json::Value>, by: &str, now: Micros) -> Result<()> {
        write!(self.0, name = name.to_owned(), by = by.to_owned() => |tx| settings::put(tx, &name, value.as_ref(), &by, now))
    }
}
