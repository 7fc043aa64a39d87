//! Model versions and dataset versions.

use super::locks::ACTIVATION;
use super::postgres::ACTIVATIONS;
use super::rows::{Conn, Row, args, not_found};
use super::{ModelFile, Result, StoreError};
use crate::domain::*;

fn model(row: &Row) -> Result<ModelVersion> {
    Ok(ModelVersion {
        id: row.text("id")?.into(),
        kind: row.name("kind", ModelKind::parse)?,
        name: row.text("name")?,
        stage: row.text("stage")?,
        parent_id: row.opt_text("parent_id")?.map(Into::into),
        job_id: row.opt_text("job_id")?.map(Into::into),
        artifact_uri: row.text("artifact_uri")?,
        sha256: row.text("sha256")?,
        metrics: row.json("metrics")?,
        state: row.name("state", ModelState::parse)?,
        created: row.int("created")?,
    })
}

pub(super) async fn put(conn: &mut Conn, m: &ModelVersion) -> Result<()> {
    if find(conn, &m.name).await?.is_some() {
        return Err(StoreError::Conflict(format!("a model named '{}' exists already", m.name)));
    }
    conn.run(
        "INSERT INTO model_versions (id, kind, name, stage, parent_id, job_id, artifact_uri, sha256, metrics, state,
             created)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        args![
            m.id.as_str(),
            m.kind.as_str(),
            &m.name,
            &m.stage,
            m.parent_id.as_ref().map(ModelVersionId::as_str),
            m.job_id.as_ref().map(JobId::as_str),
            &m.artifact_uri,
            &m.sha256,
            &m.metrics,
            m.state.as_str(),
            m.created
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn get(conn: &mut Conn, id: &ModelVersionId) -> Result<ModelVersion> {
    let row = conn.one("SELECT * FROM model_versions WHERE id = $1", args![id.as_str()]).await?;
    model(&row.ok_or_else(|| not_found("model version", id.as_str()))?)
}

pub(super) async fn find(conn: &mut Conn, name: &str) -> Result<Option<ModelVersion>> {
    conn.one("SELECT * FROM model_versions WHERE name = $1", args![name]).await?.as_ref().map(model).transpose()
}

/// Newest first.
pub(super) async fn list(conn: &mut Conn) -> Result<Vec<ModelVersion>> {
    conn.all("SELECT * FROM model_versions ORDER BY created DESC, id DESC", vec![]).await?.iter().map(model).collect()
}

pub(super) async fn active(conn: &mut Conn, kind: ModelKind) -> Result<Option<ModelVersion>> {
    conn.one("SELECT * FROM model_versions WHERE kind = $1 AND state = 'active'", args![kind.as_str()])
        .await?
        .as_ref()
        .map(model)
        .transpose()
}

pub(super) async fn activate(conn: &mut Conn, id: &ModelVersionId, now: Micros) -> Result<ModelVersion> {
    conn.serialize(ACTIVATION).await?;
    let chosen = get(conn, id).await?;
    if chosen.state == ModelState::Retired {
        return Err(StoreError::Conflict(format!("model '{}' is retired", chosen.name)));
    }
    conn.run(
        "UPDATE model_versions SET state = 'candidate' WHERE kind = $1 AND state = 'active' AND id <> $2",
        args![chosen.kind.as_str(), id.as_str()],
    )
    .await?;
    conn.run(
        "UPDATE model_versions SET state = 'active', activated = $2 WHERE id = $1 AND state <> 'retired'",
        args![id.as_str(), now],
    )
    .await?;
    if conn.is_postgres() {
        // Every server is notified when this transaction commits.
        conn.run("SELECT pg_notify($1, $2)", args![ACTIVATIONS, id.as_str()]).await?;
    }
    get(conn, id).await
}

pub(super) async fn put_files(conn: &mut Conn, id: &ModelVersionId, files: &[ModelFile]) -> Result<()> {
    get(conn, id).await?;
    conn.run("DELETE FROM model_files WHERE model_version_id = $1", args![id.as_str()]).await?;
    for file in files {
        conn.run(
            "INSERT INTO model_files (model_version_id, path, bytes, sha256) VALUES ($1, $2, $3, $4)",
            args![id.as_str(), &file.path, file.bytes, &file.sha256],
        )
        .await?;
    }
    Ok(())
}

pub(super) async fn files(conn: &mut Conn, id: &ModelVersionId) -> Result<Vec<ModelFile>> {
    conn.all("SELECT * FROM model_files WHERE model_version_id = $1 ORDER BY path", args![id.as_str()])
        .await?
        .iter()
        .map(|row| Ok(ModelFile { path: row.text("path")?, bytes: row.int("bytes")?, sha256: row.text("sha256")? }))
        .collect()
}

pub(super) async fn retire(conn: &mut Conn, id: &ModelVersionId) -> Result<()> {
    conn.serialize(ACTIVATION).await?;
    let found = get(conn, id).await?;
    if found.state == ModelState::Active {
        return Err(StoreError::Conflict(format!("model '{}' is active; promote another one first", found.name)));
    }
    conn.run("UPDATE model_versions SET state = 'retired' WHERE id = $1", args![id.as_str()]).await?;
    Ok(())
}

pub(super) async fn put_dataset(conn: &mut Conn, d: &DatasetVersion) -> Result<()> {
    conn.run(
        "INSERT INTO dataset_versions (id, name, filter, as_of, sha256, n_sets, n_pairs)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![d.id.as_str(), &d.name, &d.filter, d.as_of, &d.sha256, d.n_sets, d.n_pairs],
    )
    .await?;
    Ok(())
}

fn dataset(row: &Row) -> Result<DatasetVersion> {
    Ok(DatasetVersion {
        id: row.text("id")?.into(),
        name: row.opt_text("name")?,
        filter: row.json("filter")?,
        as_of: row.int("as_of")?,
        sha256: row.text("sha256")?,
        n_sets: row.int("n_sets")?,
        n_pairs: row.int("n_pairs")?,
    })
}

/// Newest first.
pub(super) async fn list_datasets(conn: &mut Conn) -> Result<Vec<DatasetVersion>> {
    conn.all("SELECT * FROM dataset_versions ORDER BY id DESC", vec![]).await?.iter().map(dataset).collect()
}

pub(super) async fn get_dataset(conn: &mut Conn, id_or_name: &str) -> Result<DatasetVersion> {
    let row = conn.one("SELECT * FROM dataset_versions WHERE id = $1 OR name = $1", args![id_or_name]).await?;
    dataset(&row.ok_or_else(|| not_found("dataset version", id_or_name))?)
}
