//! The job queue: claims with leases on the database's clock, fenced writes, events and curves.

use serde_json::json;

use super::rows::{Arg, Conn, Row, args, json as to_json, not_found, placeholders};
use super::searches::{self, Part, PartEnd, Table};
use super::{Fence, JobFilter, JobReport, ModelFile, Page, Result, StoreError, models};
use crate::domain::*;

fn job(row: &Row) -> Result<Job> {
    Ok(Job {
        id: row.text("id")?.into(),
        kind: row.text("kind")?,
        args: row.json("args")?,
        state: row.name("state", JobState::parse)?,
        unique_key: row.opt_text("unique_key")?,
        priority: row.int("priority")?,
        attempt: row.int("attempt")?,
        crash_count: row.int("crash_count")?,
        lease_owner: row.opt_text("lease_owner")?,
        lease_expires: row.opt_int("lease_expires")?,
        cancel_requested: row.flag("cancel_requested")?,
        checkpoint_uri: row.opt_text("checkpoint_uri")?,
        external_ref: row.opt_text("external_ref")?,
        progress: row.opt_json("progress")?,
        result: row.opt_json("result")?,
        error: row.opt_text("error")?,
        notes: JobNotes {
            name: row.opt_text("name")?,
            note: row.opt_text("note")?,
            tags: row.json("tags")?,
            created_by: row.opt_text("created_by")?.map(Into::into),
        },
        created: row.int("created")?,
        started: row.opt_int("started")?,
        finished: row.opt_int("finished")?,
    })
}

fn busy_key(key: &Option<String>) -> StoreError {
    StoreError::Conflict(format!("a job with the key '{}' is queued or running already", key.as_deref().unwrap_or("")))
}

/// Turns a violation of the unique index into a readable error.
fn keyed(key: &Option<String>) -> impl Fn(StoreError) -> StoreError + '_ {
    move |error| match error {
        StoreError::Conflict(m) if m.contains("unique_key") => busy_key(key),
        other => other,
    }
}

/// Refuses a job whose model would have the name that an unfinished job's model will have.
async fn check_name(conn: &mut Conn, job: &Job) -> Result<()> {
    let Some(name) = job.args.get("publish_as").and_then(serde_json::Value::as_str) else { return Ok(()) };
    conn.serialize(super::locks::JOB_NAMES).await?;
    let sql = "SELECT id, kind, state FROM jobs WHERE state IN ('queued', 'running') AND args ->> 'publish_as' = $1
        ORDER BY id LIMIT 1";
    let Some(row) = conn.one(sql, args![name]).await? else { return Ok(()) };
    Err(StoreError::Conflict(format!(
        "publish_as: the {} job {} is {} and will publish its model as '{name}'; choose another name, or cancel that job",
        row.text("kind")?,
        row.text("id")?,
        row.text("state")?
    )))
}

pub(super) async fn enqueue(conn: &mut Conn, j: &Job) -> Result<Job> {
    check_name(conn, j).await?;
    conn.run(
        "INSERT INTO jobs (id, kind, args, state, unique_key, priority, attempt, crash_count, cancel_requested,
             checkpoint_uri, external_ref, created, name, note, tags, created_by)
         VALUES ($1, $2, $3, 'queued', $4, $5, 0, 0, $6, $7, $8, $9, $10, $11, $12, $13)",
        args![
            j.id.as_str(),
            &j.kind,
            &j.args,
            &j.unique_key,
            j.priority,
            false,
            &j.checkpoint_uri,
            &j.external_ref,
            j.created,
            &j.notes.name,
            &j.notes.note,
            to_json(&j.notes.tags)?,
            j.notes.created_by.as_ref().map(LabelerId::as_str)
        ],
    )
    .await
    .map_err(keyed(&j.unique_key))?;
    get(conn, &j.id).await
}

pub(super) async fn get(conn: &mut Conn, id: &JobId) -> Result<Job> {
    let row = conn.one("SELECT * FROM jobs WHERE id = $1", args![id.as_str()]).await?;
    job(&row.ok_or_else(|| not_found("job", id.as_str()))?)
}

/// Reads a job for update: on Postgres its row is locked.
async fn get_locked(conn: &mut Conn, id: &JobId) -> Result<Job> {
    if conn.is_postgres() {
        conn.run("SELECT id FROM jobs WHERE id = $1 FOR UPDATE", args![id.as_str()]).await?;
    }
    get(conn, id).await
}

pub(super) async fn list(conn: &mut Conn, page: &Page, state: Option<JobState>) -> Result<Vec<Job>> {
    conn.all(
        "SELECT * FROM jobs WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR state = $2)
         ORDER BY id DESC LIMIT $3",
        args![&page.after, state.map(JobState::as_str), page.limit],
    )
    .await?
    .iter()
    .map(job)
    .collect()
}

/// Jobs that match, newest first. The words of `text` are searched in id, recipe, name, note, tags, arguments and
/// result.
pub(super) async fn find(conn: &mut Conn, page: &Page, filter: &JobFilter) -> Result<Vec<Job>> {
    matching(conn, page, filter, None).await
}

pub(super) async fn search(conn: &mut Conn, part: &Part, filter: &JobFilter) -> Result<(Vec<Job>, Option<PartEnd>)> {
    let end = searches::end(conn, Table::Jobs, part).await?;
    let page = Page { after: part.after.clone(), limit: part.limit };
    Ok((matching(conn, &page, filter, end.as_ref()).await?, end))
}

/// The jobs of a page that are not older than `end`.
async fn matching(conn: &mut Conn, page: &Page, filter: &JobFilter, end: Option<&PartEnd>) -> Result<Vec<Job>> {
    let text = filter.text.as_ref().map(|t| format!("%{}%", escaped(&t.to_lowercase())));
    conn.all(
        "SELECT * FROM jobs WHERE id < COALESCE($1, '~') AND id >= COALESCE($6, '') AND ($2 IS NULL OR state = $2)
           AND ($3 IS NULL OR kind = $3)
           AND ($4 IS NULL OR LOWER(id || ' ' || kind || ' ' || COALESCE(name, '') || ' ' || COALESCE(note, '') || ' '
                || CAST(tags AS TEXT) || ' ' || CAST(args AS TEXT) || ' ' || COALESCE(CAST(result AS TEXT), ''))
                LIKE $4 ESCAPE '!')
         ORDER BY id DESC LIMIT $5",
        args![
            &page.after,
            filter.state.map(JobState::as_str),
            &filter.kind,
            &text,
            page.limit,
            end.map(|end| end.id.as_str())
        ],
    )
    .await?
    .iter()
    .map(job)
    .collect()
}

/// Escapes a text for a LIKE pattern.
fn escaped(text: &str) -> String {
    text.replace('!', "!!").replace('%', "!%").replace('_', "!_")
}

/// Changes name, note and tags of a job in any state.
pub(super) async fn describe(conn: &mut Conn, id: &JobId, notes: &JobNotes) -> Result<Job> {
    get_locked(conn, id).await?;
    conn.run(
        "UPDATE jobs SET name = $2, note = $3, tags = $4 WHERE id = $1",
        args![id.as_str(), &notes.name, &notes.note, to_json(&notes.tags)?],
    )
    .await?;
    get(conn, id).await
}

/// Appends the event of a job's new state.
async fn state_event(conn: &mut Conn, id: &JobId, data: serde_json::Value) -> Result<()> {
    append(conn, id, &[("state".to_owned(), data)]).await.map(|_| ())
}

async fn finish_unfenced(
    conn: &mut Conn,
    id: &JobId,
    state: JobState,
    crashes: i64,
    error: Option<&str>,
) -> Result<()> {
    let now = conn.now().await?;
    conn.run(
        "UPDATE jobs SET state = $2, crash_count = $3, error = $4, finished = $5, lease_owner = NULL,
             lease_expires = NULL WHERE id = $1",
        args![id.as_str(), state.as_str(), crashes, error, now],
    )
    .await?;
    state_event(conn, id, json!({"state": state, "error": error})).await
}

/// Longest lease (µs). One that ends later was given by a clock that was ahead, and would block the job of a lost
/// worker until that time.
fn longest_lease(lease_seconds: i64) -> i64 {
    time::after(0, lease_seconds.saturating_mul(10), time::SECOND).max(time::HOUR)
}

/// The job that a worker claims next: queued, or running with an expired lease. `locking` is the end of the statement.
async fn first_waiting(
    conn: &mut Conn,
    now: Micros,
    lease_seconds: i64,
    kinds: &[String],
    locking: &str,
) -> Result<Option<Job>> {
    let mut sql = String::from(
        "SELECT * FROM jobs WHERE (state = 'queued' OR (state = 'running' AND (lease_expires <= $1 OR lease_expires > $2)))",
    );
    let mut args = args![now, now.saturating_add(longest_lease(lease_seconds))];
    if !kinds.is_empty() {
        sql.push_str(&format!(" AND kind IN ({})", placeholders(3, kinds.len())));
        args.extend(kinds.iter().map(Arg::from));
    }
    sql.push_str(" ORDER BY priority DESC, id LIMIT 1");
    sql.push_str(locking);
    conn.all_built(sql, args).await?.first().map(job).transpose()
}

/// Whether there is a job for [`claim`].
pub(super) async fn any_waiting(conn: &mut Conn, lease_seconds: i64, kinds: &[String]) -> Result<bool> {
    let now = conn.now().await?;
    Ok(first_waiting(conn, now, lease_seconds, kinds, "").await?.is_some())
}

pub(super) async fn claim(
    conn: &mut Conn,
    lease_owner: &str,
    lease_seconds: i64,
    kinds: &[String],
    max_crashes: i64,
) -> Result<Option<(Job, Fence)>> {
    loop {
        let now = conn.now().await?;
        let locking = if conn.is_postgres() { " FOR UPDATE SKIP LOCKED" } else { "" };
        let Some(found) = first_waiting(conn, now, lease_seconds, kinds, locking).await? else { return Ok(None) };
        let crashes = found.crash_count + i64::from(found.state == JobState::Running);
        if found.state == JobState::Running {
            if found.cancel_requested {
                finish_unfenced(conn, &found.id, JobState::Cancelled, crashes, Some("the worker of the job was lost"))
                    .await?;
                continue;
            }
            if crashes >= max_crashes {
                let error = format!(
                    "the job was given up: its worker crashed or was lost {crashes} times without a new checkpoint"
                );
                finish_unfenced(conn, &found.id, JobState::Failed, crashes, Some(&error)).await?;
                continue;
            }
        }
        conn.run(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, crash_count = $2, lease_owner = $3,
                 lease_expires = $4, started = COALESCE(started, $5), finished = NULL WHERE id = $1",
            args![found.id.as_str(), crashes, lease_owner, time::after(now, lease_seconds, time::SECOND), now],
        )
        .await?;
        let claimed = get(conn, &found.id).await?;
        state_event(conn, &found.id, json!({"state": "running", "attempt": claimed.attempt})).await?;
        let fence = Fence { job_id: found.id, attempt: claimed.attempt, lease_owner: lease_owner.to_owned() };
        return Ok(Some((claimed, fence)));
    }
}

/// The job, if this worker holds its lease.
async fn fenced(conn: &mut Conn, fence: &Fence) -> Result<Job> {
    let found = get_locked(conn, &fence.job_id).await?;
    let held = found.state == JobState::Running
        && found.attempt == fence.attempt
        && found.lease_owner.as_deref() == Some(fence.lease_owner.as_str());
    if held { Ok(found) } else { Err(StoreError::LeaseLost(fence.job_id.to_string())) }
}

pub(super) async fn heartbeat(
    conn: &mut Conn,
    fence: &Fence,
    lease_seconds: i64,
    progress: Option<&Progress>,
) -> Result<bool> {
    let held = fenced(conn, fence).await?;
    let expires = time::after(conn.now().await?, lease_seconds, time::SECOND);
    conn.run(
        "UPDATE jobs SET lease_expires = $2, progress = COALESCE($3, progress) WHERE id = $1",
        args![fence.job_id.as_str(), expires, progress.map(to_json).transpose()?],
    )
    .await?;
    Ok(held.cancel_requested)
}

pub(super) async fn place(conn: &mut Conn, fence: &Fence, external_ref: Option<&str>) -> Result<()> {
    fenced(conn, fence).await?;
    conn.run("UPDATE jobs SET external_ref = $2 WHERE id = $1", args![fence.job_id.as_str(), external_ref]).await?;
    Ok(())
}

pub(super) async fn checkpoint(conn: &mut Conn, fence: &Fence, uri: &str) -> Result<()> {
    fenced(conn, fence).await?;
    set_checkpoint(conn, &fence.job_id, uri).await
}

/// A further checkpoint is progress, after which crashes count anew: a long job may lose many machines.
async fn set_checkpoint(conn: &mut Conn, id: &JobId, uri: &str) -> Result<()> {
    conn.run(
        "UPDATE jobs SET crash_count = CASE WHEN checkpoint_uri = $2 THEN crash_count ELSE 0 END, checkpoint_uri = $2
         WHERE id = $1",
        args![id.as_str(), uri],
    )
    .await?;
    Ok(())
}

pub(super) async fn report(conn: &mut Conn, fence: &Fence, lease_seconds: i64, report: JobReport) -> Result<bool> {
    let cancelled = heartbeat(conn, fence, lease_seconds, report.progress.as_ref()).await?;
    if let Some(uri) = &report.checkpoint {
        set_checkpoint(conn, &fence.job_id, uri).await?;
    }
    put_metrics(conn, &fence.job_id, &report.metrics).await?;
    if !report.events.is_empty() {
        append(conn, &fence.job_id, &report.events).await?;
    }
    Ok(cancelled)
}

pub(super) async fn complete(
    conn: &mut Conn,
    fence: &Fence,
    model: &ModelVersion,
    files: &[ModelFile],
    result: serde_json::Value,
) -> Result<()> {
    fenced(conn, fence).await?;
    models::put(conn, model).await?;
    models::put_files(conn, &model.id, files).await?;
    finish(conn, fence, JobState::Succeeded, Some(result), None).await
}

pub(super) async fn finish(
    conn: &mut Conn,
    fence: &Fence,
    state: JobState,
    result: Option<serde_json::Value>,
    error: Option<&str>,
) -> Result<()> {
    if !state.is_terminal() {
        return Err(StoreError::Conflict(format!("'{state}' does not end a job")));
    }
    fenced(conn, fence).await?;
    let now = conn.now().await?;
    conn.run(
        "UPDATE jobs SET state = $2, result = $3, error = $4, finished = $5, lease_owner = NULL,
             lease_expires = NULL WHERE id = $1",
        args![fence.job_id.as_str(), state.as_str(), result.clone(), error, now],
    )
    .await?;
    state_event(conn, &fence.job_id, json!({"state": state, "error": error, "result": result})).await
}

pub(super) async fn requeue(conn: &mut Conn, fence: &Fence, crash: Option<&str>, max_crashes: i64) -> Result<JobState> {
    let held = fenced(conn, fence).await?;
    let crashes = held.crash_count + i64::from(crash.is_some());
    if held.cancel_requested {
        finish_unfenced(conn, &held.id, JobState::Cancelled, crashes, crash).await?;
        return Ok(JobState::Cancelled);
    }
    if let Some(error) = crash
        && crashes >= max_crashes
    {
        let error =
            format!("the job was given up after {crashes} crashes without a new checkpoint; the last one: {error}");
        finish_unfenced(conn, &held.id, JobState::Failed, crashes, Some(&error)).await?;
        return Ok(JobState::Failed);
    }
    // Without a crash the attempt does not count. The next claim may then repeat its number, which is
    // why a fence also holds the owner: workers use a fresh owner name for every claim.
    conn.run(
        "UPDATE jobs SET state = 'queued', crash_count = $2, attempt = $3, error = $4, lease_owner = NULL,
             lease_expires = NULL WHERE id = $1",
        args![held.id.as_str(), crashes, held.attempt - i64::from(crash.is_none()), crash],
    )
    .await?;
    state_event(conn, &held.id, json!({"state": "queued"})).await?;
    Ok(JobState::Queued)
}

pub(super) async fn cancel(conn: &mut Conn, id: &JobId) -> Result<Job> {
    let found = get_locked(conn, id).await?;
    match found.state {
        JobState::Queued => finish_unfenced(conn, id, JobState::Cancelled, found.crash_count, None).await?,
        JobState::Running => {
            conn.run("UPDATE jobs SET cancel_requested = $2 WHERE id = $1", args![id.as_str(), true]).await?;
        }
        ended => return Err(StoreError::Conflict(format!("the job has ended already: {ended}"))),
    }
    get(conn, id).await
}

pub(super) async fn resume(conn: &mut Conn, id: &JobId) -> Result<Job> {
    let found = get_locked(conn, id).await?;
    if !matches!(found.state, JobState::Failed | JobState::Cancelled) {
        return Err(StoreError::Conflict(format!(
            "only failed or cancelled jobs can be resumed; this one is {}",
            found.state
        )));
    }
    conn.run(
        "UPDATE jobs SET state = 'queued', crash_count = 0, cancel_requested = $2, error = NULL, finished = NULL
         WHERE id = $1",
        args![id.as_str(), false],
    )
    .await
    .map_err(keyed(&found.unique_key))?;
    get(conn, id).await
}

// ---------------------------------------------------------------- events and curves

pub(super) async fn append_events(conn: &mut Conn, id: &JobId, events: &[(String, serde_json::Value)]) -> Result<i64> {
    get_locked(conn, id).await?;
    append(conn, id, events).await
}

/// The job's row must be locked, because numbers are consecutive.
async fn append(conn: &mut Conn, id: &JobId, events: &[(String, serde_json::Value)]) -> Result<i64> {
    let now = conn.now().await?;
    let mut seq = conn
        .count(
            "SELECT CAST(COALESCE(MAX(seq), 0) AS BIGINT) AS n FROM job_events WHERE job_id = $1",
            args![id.as_str()],
        )
        .await?;
    for (kind, data) in events {
        seq += 1;
        conn.run(
            "INSERT INTO job_events (job_id, seq, kind, data, created) VALUES ($1, $2, $3, $4, $5)",
            args![id.as_str(), seq, kind, data, now],
        )
        .await?;
    }
    Ok(seq)
}

pub(super) async fn events(conn: &mut Conn, id: &JobId, after_seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
    conn.all(
        "SELECT * FROM job_events WHERE job_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        args![id.as_str(), after_seq, limit],
    )
    .await?
    .iter()
    .map(|row| {
        Ok(JobEvent {
            job_id: row.text("job_id")?.into(),
            seq: row.int("seq")?,
            kind: row.text("kind")?,
            data: row.json("data")?,
            created: row.int("created")?,
        })
    })
    .collect()
}

/// A point of the same step replaces the previous one (a resumed run repeats steps after its checkpoint). Values that
/// are not finite are left out.
pub(super) async fn put_metrics(conn: &mut Conn, id: &JobId, metrics: &[Metric]) -> Result<()> {
    get(conn, id).await?;
    for m in metrics.iter().filter(|m| m.value.is_finite()) {
        conn.run(
            "INSERT INTO metrics (job_id, name, step, value) VALUES ($1, $2, $3, $4)
             ON CONFLICT (job_id, name, step) DO UPDATE SET value = excluded.value",
            args![id.as_str(), &m.name, m.step, m.value],
        )
        .await?;
    }
    Ok(())
}

/// By step, then name; all names when none is given.
pub(super) async fn metrics(conn: &mut Conn, id: &JobId, names: &[String]) -> Result<Vec<Metric>> {
    let mut sql = String::from("SELECT step, name, value FROM metrics WHERE job_id = $1");
    let mut args = args![id.as_str()];
    if !names.is_empty() {
        sql.push_str(&format!(" AND name IN ({})", placeholders(2, names.len())));
        args.extend(names.iter().map(Arg::from));
    }
    sql.push_str(" ORDER BY step, name");
    conn.all_built(sql, args)
        .await?
        .iter()
        .map(|row| Ok(Metric { step: row.int("step")?, name: row.text("name")?, value: row.real("value")? }))
        .collect()
}
