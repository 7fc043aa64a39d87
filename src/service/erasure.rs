//! What is stored about a person, and its erasure on their request: in the database, in the files of training jobs,
//! and in the lists by which a restored backup is erased again.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::access::Actor;
use super::erased;
use super::random::actor_hash;
use super::{Result, Services, job_files, uncancelled};
use crate::data::Comparison;
use crate::domain::{
    ApiKeyId, AuditEntry, InviteId, Judgment, Labeler, LabelerId, LinkId, Message, Micros, PromptId, Role, SetKind,
};
use crate::store::{AuditFilter, Erase, Erased, Page, PersonalData, RankedFilter, StoreError};

/// The result of an erasure, and the data that it cannot reach.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Erasure {
    #[serde(flatten)]
    pub rows: Erased,
    /// Number of lines removed from the files of training jobs.
    pub job_lines: u64,
    /// Backups whose manifests now name the person: a restore of them erases the person again.
    pub backups: Vec<String>,
    /// Places where the person's texts may remain, as sentences.
    pub not_reached: Vec<String>,
}

/// Erases a person's data on their request; the audit trail records the erasure without the data.
///
/// # Errors
/// `Conflict` for the built-in labelers.
pub async fn erase(services: &Arc<Services>, by: &Actor, id: &LabelerId, how: Erase) -> Result<Erasure> {
    let (services, id, signature) = (services.clone(), id.clone(), by.signature());
    uncancelled(async move {
        let now = services.now();
        // The person's lines in job files are found by the rows, so before these are removed.
        let (mut theirs, prompts) = match how {
            Erase::Remove => texts_of(&services, &id).await?,
            Erase::Anonymise => Default::default(),
        };
        let rows = services.store.privacy().erase_labeler(&id, how, &actor_hash(&id), now).await?;
        for (prompt, messages) in prompts {
            // Prompts that others used too are kept.
            if let Err(StoreError::NotFound { .. }) = services.store.prompts().get(&prompt).await {
                theirs.texts.extend(messages.into_iter().map(|message| message.content));
            }
        }
        let jobs = services.config.data_dir.join("jobs");
        let from_files = tokio::task::spawn_blocking(move || job_files::remove_personal_lines(&jobs, theirs)).await;
        let (job_lines, mut not_reached) = match from_files {
            Ok(Ok(lines)) => (lines, Vec::new()),
            Ok(Err(error)) => (0, vec![format!("files of training jobs: {error}")]),
            Err(error) => (0, vec![format!("files of training jobs: {error}")]),
        };
        if !services.store.privacy().flush_erased().await? {
            not_reached.push("the database's write-ahead log, until its next checkpoint".to_owned());
        }
        let (backups, missed) = list_in_backups(&services).await?;
        not_reached.extend(missed);
        not_reached.push(
            "the rows in backups and dumps made before: `instructd restore` erases the person again from the backups \
             named, and from others with --erased"
                .to_owned(),
        );
        if how == Erase::Remove {
            not_reached.push("models that were trained on these judgments, and exported files".to_owned());
        }
        if services.config.artifacts.url.is_some() {
            not_reached.push("data of jobs that did not succeed, under jobs/ of the artifact store".to_owned());
        }
        if services.store.backend() == "postgres" {
            not_reached.push("PostgreSQL's write-ahead log and dead rows, until it has vacuumed them".to_owned());
            not_reached.push("files of training jobs on other machines".to_owned());
        }
        let detail = json!({"judgments": how, "erased": rows, "job_lines": job_lines, "backups": backups,
                            "not_reached": not_reached});
        services.store.audit_log().append(&signature, "erase", id.as_str(), detail, now).await?;
        Ok(Erasure { rows, job_lines, backups, not_reached })
    })
    .await
}

/// Writes the list of erased people into the data directory and into the manifest of every known backup; returns the
/// updated backups, and errors.
async fn list_in_backups(services: &Services) -> Result<(Vec<String>, Vec<String>)> {
    let people = services.store.privacy().erased_people().await?;
    let known = services.store.backups().list().await?;
    let data_dir = services.config.data_dir.clone();
    let written = tokio::task::spawn_blocking(move || {
        let (mut done, mut missed) = (Vec::new(), Vec::new());
        if let Err(error) = erased::write_list(&data_dir, &people) {
            missed.push(format!("{}: {error}", data_dir.join(erased::LIST).display()));
        }
        for (path, _) in known {
            match erased::add_to_manifest(&PathBuf::from(&path), &people) {
                Ok(()) => done.push(path),
                Err(error) => missed.push(format!("the manifest of the backup {path}: {error}")),
            }
        }
        (done, missed)
    });
    written.await.map_err(|e| super::ServiceError::Internal(e.to_string()))
}

/// A person's texts and rankings in the form of job files, and the prompts that may be theirs alone.
async fn texts_of(
    services: &Services,
    id: &LabelerId,
) -> Result<(job_files::PersonalData, Vec<(PromptId, Vec<Message>)>)> {
    let data = services.store.privacy().personal_data(id, &actor_hash(id)).await?;
    let mut theirs = job_files::PersonalData::default();
    theirs.texts.extend(data.demonstrations.into_iter().map(|(_, text, _)| text));
    theirs.texts.extend(data.feedback_events.iter().filter_map(|e| e.value.as_str()).map(str::to_owned));
    for kind in SetKind::ALL {
        let filter = RankedFilter {
            labeler_id: Some(id.clone()),
            set_kind: Some(*kind),
            unsettled: true,
            ..RankedFilter::default()
        };
        let ranked = services.store.judgments().ranked(&filter).await?;
        let lines = ranked.iter().filter_map(Comparison::from_ranked);
        let lines = lines.flat_map(|line| [line.ranked_by_each(), vec![line]].concat());
        theirs.lines.extend(lines.filter_map(|line| serde_json::to_value(line).ok()));
    }
    Ok((theirs, data.prompts))
}

/// All data stored about a person, for the person.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct PersonalExport {
    pub labeler: Labeler,
    pub judgments: Vec<Judgment>,
    #[serde(flatten)]
    pub data: PersonalData,
    /// Invites that the person accepted.
    pub invites: Vec<PersonalInvite>,
    pub links: Vec<PersonalLink>,
    pub keys: Vec<PersonalKey>,
    /// The person's entries of the audit trail, newest first.
    pub actions: Vec<AuditEntry>,
}

#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct PersonalInvite {
    pub id: InviteId,
    pub role: Role,
    pub name: Option<String>,
    pub note: Option<String>,
    pub created: Micros,
}

#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct PersonalLink {
    pub id: LinkId,
    pub created: Micros,
    pub expires: Option<Micros>,
    pub used: Option<Micros>,
}

#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct PersonalKey {
    pub id: ApiKeyId,
    pub name: String,
    pub scopes: Vec<String>,
    pub created: Micros,
}

/// Collects the data stored about a person and records the access in the audit trail.
pub async fn personal_data(services: &Services, by: &Actor, id: &LabelerId) -> Result<PersonalExport> {
    let store = &services.store;
    let labeler = store.people().get(id).await?;
    let mut judgments = Vec::new();
    let mut page = Page { after: None, limit: 500 };
    loop {
        let batch = store.judgments().list(page.clone(), Some(id)).await?;
        let Some(last) = batch.last() else { break };
        page.after = Some(last.id.to_string());
        judgments.extend(batch);
    }
    let data = store.privacy().personal_data(id, &actor_hash(id)).await?;
    let mine = |used_by: &Option<LabelerId>| used_by.as_ref() == Some(id);
    let invites: Vec<_> = store
        .invites()
        .list()
        .await?
        .into_iter()
        .filter(|i| mine(&i.used_by))
        .map(|i| PersonalInvite { id: i.id, role: i.role, name: i.name, note: i.note, created: i.created })
        .collect();
    let keys: Vec<_> = store
        .api_keys()
        .list()
        .await?
        .into_iter()
        .filter(|k| mine(&k.labeler_id))
        .map(|k| PersonalKey { id: k.id, name: k.name, scopes: k.scopes, created: k.created })
        .collect();
    let links: Vec<_> = store
        .links()
        .list()
        .await?
        .into_iter()
        .filter(|l| l.labeler_id == *id)
        .map(|l| PersonalLink { id: l.id, created: l.created, expires: l.expires, used: l.used })
        .collect();
    let filter = AuditFilter { actor: Some(id.to_string()), ..AuditFilter::default() };
    let actions = store.audit_log().list(&filter, None, 10_000).await?;
    store.audit_log().append(&by.signature(), "export_person", id.as_str(), json!({}), services.now()).await?;
    Ok(PersonalExport { labeler, judgments, data, invites, links, keys, actions })
}
