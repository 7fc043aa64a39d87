//! Dataset versions: a filter, a time and a hash identify exact rankings; a version exports the same bytes every time,
//! or an error when data was erased.

use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Result, ServiceError, Services, bad_input, uncancelled};
use crate::data::{Comparison, Format, Record, export, pairs};
use crate::domain::{DatasetId, DatasetVersion};
use crate::jobs::learned::Rankings;
use crate::service::people::Actor;
use crate::store::{RankedFilter, StoreError};

/// The hash of a version: of its canonical lines, which contain no names of people.
#[derive(Default)]
pub(super) struct VersionDigest {
    hash: Sha256,
    sets: i64,
    pairs: i64,
}

impl VersionDigest {
    pub fn add(&mut self, comparison: &Comparison) {
        for line in export(Format::Comparisons, &Record::Comparison(comparison.clone())) {
            self.hash.update(line.as_bytes());
            self.hash.update(b"\n");
        }
        (self.sets, self.pairs) = (self.sets + 1, self.pairs + pairs(&comparison.completions).len() as i64);
    }

    pub fn finish(self) -> String {
        hex::encode(self.hash.finalize())
    }

    async fn of(services: &Services, filter: &RankedFilter) -> Result<Self> {
        let mut digest = Self::default();
        let mut pages = Rankings::new(services.store.as_ref(), filter).await?;
        while let Some(page) = pages.next().await? {
            page.iter().for_each(|comparison| digest.add(comparison));
        }
        Ok(digest)
    }
}

/// Refuses preferences from feedback when requests may not be used for training: feedback is on responses to requests,
/// so nothing would be found.
pub(super) fn check_feedback(services: &Services, feedback: bool, field: &str) -> Result<()> {
    if feedback && !services.learns_from_requests() {
        return Err(bad_input(
            field,
            "requires the setting privacy.learn_from_requests, because feedback is on responses to requests",
        ));
    }
    Ok(())
}

/// All versions of data sets, newest first.
///
/// # Errors
/// What the store says.
pub async fn list(services: &Services) -> Result<Vec<DatasetVersion>> {
    Ok(services.store.datasets().list().await?)
}

/// One version, by id or name.
///
/// # Errors
/// `NotFound` when there is none.
pub async fn get(services: &Services, id_or_name: &str) -> Result<DatasetVersion> {
    Ok(services.store.datasets().get(id_or_name).await?)
}

/// Stores a version of the rankings that the filter finds now (or at its `as_of`).
///
/// # Errors
/// `Conflict` when the name is taken or nothing is found.
pub async fn create(
    services: &Arc<Services>,
    by: &Actor,
    name: Option<String>,
    mut filter: RankedFilter,
) -> Result<DatasetVersion> {
    if let Some(name) = &name {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Err(bad_input("name", "must be 1 to 64 of a-z, 0-9, ., _ and -"));
        }
    }
    let now = services.now();
    let as_of = *filter.as_of.get_or_insert(now);
    if as_of > now {
        return Err(bad_input("filter.as_of", "is in the future"));
    }
    super::filters::check_ranked(services, &filter, "filter").await?;
    check_feedback(services, filter.feedback, "filter.feedback")?;
    filter.without_requests |= !services.learns_from_requests();
    let found = VersionDigest::of(services, &filter).await?;
    if found.sets == 0 {
        return Err(ServiceError::Conflict("the filter finds no rankings; widen it".into()));
    }
    let version = DatasetVersion {
        id: DatasetId::new(),
        name,
        filter: json!({"data": "comparisons", "filter": filter}),
        as_of,
        n_sets: found.sets,
        n_pairs: found.pairs,
        sha256: found.finish(),
    };
    let (services, stored, actor) = (services.clone(), version.clone(), by.signature());
    uncancelled(async move {
        services.store.datasets().put(stored.clone()).await.map_err(|e| match e {
            StoreError::Conflict(_) => ServiceError::Conflict("a dataset version has this name".into()),
            other => other.into(),
        })?;
        let detail = json!({"name": stored.name, "sha256": stored.sha256, "sets": stored.n_sets});
        Ok(services.store.audit_log().append(&actor, "create_dataset", stored.id.as_str(), detail, now).await?)
    })
    .await?;
    Ok(version)
}

/// The filter that finds the rankings of a version of rankings.
///
/// # Errors
/// When the stored filter is that of another program.
pub(super) fn filter_of(version: &DatasetVersion) -> std::result::Result<RankedFilter, serde_json::Error> {
    let mut stored = version.filter["filter"].clone();
    if let Some(fields) = stored.as_object_mut() {
        // Versions that were made before labelers' knowledge was recorded contain the latest revisions.
        fields.entry("informed").or_insert(serde_json::Value::Bool(true));
    }
    let mut filter: RankedFilter = serde_json::from_value(stored)?;
    filter.as_of = filter.as_of.or(Some(version.as_of));
    Ok(filter)
}

/// A version and the filter that finds its rankings, checked against its hash.
///
/// # Errors
/// `Conflict` when it contains other data than rankings, or when some of its data was erased.
pub async fn verified(services: &Services, id_or_name: &str) -> Result<(DatasetVersion, RankedFilter)> {
    let version = services.store.datasets().get(id_or_name).await.map_err(|e| super::not_found_as(e, "dataset"))?;
    if version.filter["data"] != "comparisons" {
        return Err(ServiceError::Conflict("only versions of rankings can be exported again".into()));
    }
    let filter = filter_of(&version)
        .map_err(|e| ServiceError::Conflict(format!("this version was made by another program: {e}")))?;
    if VersionDigest::of(services, &filter).await?.finish() != version.sha256 {
        return Err(ServiceError::Conflict(
            "some rankings of this version were erased, so it cannot be exported; create a new version".into(),
        ));
    }
    Ok((version, filter))
}
