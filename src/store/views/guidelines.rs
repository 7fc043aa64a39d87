//! Versions of the guidelines that labelers read.

use crate::store::sql::{read, write};
use crate::store::views::Guidelines;
use crate::store::*;

impl Guidelines<'_> {
    /// Stores the guidelines of a language; an empty text returns to the configured file.
    pub async fn put(self, version: GuidelineVersion) -> Result<()> {
        write!(self.0, |tx| settings::put_guidelines(tx, &version))
    }

    /// The current version for a language, if one is stored.
    pub async fn latest(self, lang: &str) -> Result<Option<GuidelineVersion>> {
        read!(self.0, |c| settings::latest_guidelines(c, lang))
    }

    /// All versions, newest first.
    pub async fn list(self) -> Result<Vec<GuidelineVersion>> {
        read!(self.0, |c| settings::guidelines(c))
    }
}
