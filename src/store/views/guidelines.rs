//! Versions of the guidelines that labelers read.

use crate::store::sql::{read, write};
use crate::store::views::Guidelines;
use crate::store::*;

impl Guidelines<'_> {
    /// Stores a project's guidelines in a language; an empty text returns to the configured file.
    pub async fn put(self, version: GuidelineVersion) -> Result<()> {
        write!(self.0, |tx| settings::put_guidelines(tx, &version))
    }

    /// A project's last version in a language, if one is stored.
    pub async fn latest(self, project: &ProjectId, lang: &str) -> Result<Option<GuidelineVersion>> {
        read!(self.0, |c| settings::latest_guidelines(c, project, lang))
    }

    /// All versions, newest first.
    pub async fn list(self) -> Result<Vec<GuidelineVersion>> {
        read!(self.0, |c| settings::guidelines(c))
    }
}
