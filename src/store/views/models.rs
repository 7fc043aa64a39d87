//! Versions of models, their activation, use and evidence.

use tokio::sync::watch;

use crate::domain::*;
use crate::store::rows::args;
use crate::store::sql::{read, write};
use crate::store::views::Models;
use crate::store::*;

impl Models<'_> {
    /// Registers a version. `Conflict` when its name is taken.
    pub async fn put(self, model: ModelVersion) -> Result<()> {
        write!(self.0, |tx| models::put(tx, &model))
    }

    /// One version. `NotFound` when there is none with this id.
    pub async fn get(self, id: &ModelVersionId) -> Result<ModelVersion> {
        read!(self.0, |c| models::get(c, id))
    }

    /// The version with this name.
    pub async fn find(self, name: &str) -> Result<Option<ModelVersion>> {
        read!(self.0, |c| models::find(c, name))
    }

    /// All versions, newest first.
    pub async fn list(self) -> Result<Vec<ModelVersion>> {
        read!(self.0, |c| models::list(c))
    }

    /// The active version of a kind.
    pub async fn active(self, kind: ModelKind) -> Result<Option<ModelVersion>> {
        read!(self.0, |c| models::active(c, kind))
    }

    /// Makes it the only active version of its kind, in one transaction; the previous one becomes a candidate.
    pub async fn activate(self, id: &ModelVersionId, now: Micros) -> Result<ModelVersion> {
        write!(self.0, id = id.clone() => |tx| models::activate(tx, &id, now))
    }

    /// Activates a version as [`Models::activate`] does, and appends who did it to the audit trail in the same
    /// transaction; `action` is `promote` or `roll_back`.
    pub async fn promote(
        self,
        id: &ModelVersionId,
        by: &Signature,
        action: &'static str,
        detail: serde_json::Value,
        now: Micros,
    ) -> Result<ModelVersion> {
        write!(self.0, id = id.clone(), by = by.clone() => |tx| async move {
            let active = models::activate(tx, &id, now).await?;
            people::audit(tx, &by, action, id.as_str(), &detail, now).await?;
            Ok(active)
        })
    }

    /// Takes a version out of use. `Conflict` for an active one.
    pub async fn retire(self, id: &ModelVersionId) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| models::retire(tx, &id))
    }

    /// Use of each version since `since`; versions without completions are left out.
    pub async fn usage(self, since: Micros) -> Result<Vec<VersionUse>> {
        read!(self.0, |c| settings::version_use(c, since))
    }

    /// Stores the list of a version's files; a second call replaces the first.
    pub async fn put_files(self, id: &ModelVersionId, files: Vec<ModelFile>) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| models::put_files(tx, &id, &files))
    }

    /// The files of a version, ordered by path; empty when they were not stored.
    pub async fn files(self, id: &ModelVersionId) -> Result<Vec<ModelFile>> {
        read!(self.0, |c| models::files(c, id))
    }

    /// Changes within a second after this or another server activated a version. It may also change without an
    /// activation, for instance after a lost connection, so receivers read the active version.
    pub fn activations(self) -> watch::Receiver<()> {
        self.0.db.activations()
    }

    /// Promotions and roll-backs of all kinds, oldest first.
    pub async fn activation_history(self) -> Result<Vec<Activation>> {
        read!(self.0, |c| evidence::activation_history(c))
    }

    /// Pairs of the two versions' completions in the latest rankings of normal sets.
    pub async fn meetings(self, a: &ModelVersionId, b: &ModelVersionId) -> Result<Vec<Meeting>> {
        read!(self.0, |c| evidence::meetings(c, a, b))
    }

    /// Prompts that both versions answered, newest first.
    pub async fn shared_prompts(self, a: &ModelVersionId, b: &ModelVersionId, limit: i64) -> Result<Vec<SharedPrompt>> {
        read!(self.0, |c| evidence::shared_prompts(c, a, b, limit))
    }

    /// Normal sets with a completion of the version, and rankings of them.
    pub async fn set_counts(self, id: &ModelVersionId) -> Result<(i64, i64)> {
        read!(self.0, |c| evidence::sets_of_version(c, id))
    }

    /// Rankings of normal sets that were given after `since`; a revision is not counted again.
    pub async fn rankings_since(self, since: Micros) -> Result<i64> {
        read!(self.0, |c| c.count(
            // Both keep SQLite at the judgments of that time: it would begin with all sets, or with all judgments that
            // supersede none.
            "SELECT COUNT(*) AS n FROM judgments j CROSS JOIN comparison_sets s
             WHERE s.id = j.set_id AND s.kind = 'normal' AND j.outcome = 'ranked' AND COALESCE(j.supersedes_id, '') = ''
               AND j.created > $1",
            args![since],
        ))
    }
}
