//! Uploaded files, batches of requests and their results. Results are stored line by line, so that a batch continues
//! after a restart; its output files are views of those lines.

use super::locks::BATCHES;
use super::rows::{Conn, Row, args, json, not_found};
use super::{Page, Result, StoreError};
use crate::domain::*;

/// How a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEnd {
    pub state: BatchState,
    pub faults: Vec<BatchFault>,
    /// Ids of the files of results and errors, created only if there are any.
    pub output: String,
    pub errors: String,
    pub now: Micros,
}

fn file(row: &Row) -> Result<StoredFile> {
    Ok(StoredFile {
        id: row.text("id")?,
        owner: row.text("owner")?,
        name: row.text("name")?,
        purpose: row.name("purpose", FilePurpose::parse)?,
        bytes: row.int("bytes")?,
        created: row.int("created")?,
    })
}

fn batch(row: &Row) -> Result<Batch> {
    Ok(Batch {
        id: row.text("id")?,
        owner: row.text("owner")?,
        input_file: row.text("input_file")?,
        endpoint: row.text("endpoint")?,
        state: row.name("state", BatchState::parse)?,
        metadata: row.json("metadata")?,
        faults: row.json("faults")?,
        total: row.int("total")?,
        completed: row.int("completed")?,
        failed: row.int("failed")?,
        created: row.int("created")?,
        began: row.opt_int("began")?,
        cancelling: row.opt_int("cancelling")?,
        ended: row.opt_int("ended")?,
        expires: row.int("expires")?,
        output_file: row.opt_text("output_file")?,
        error_file: row.opt_text("error_file")?,
    })
}

const FILE: &str = "SELECT id, owner, name, purpose, bytes, created FROM files WHERE id = $1 AND owner = $2";

pub(super) async fn insert_file(conn: &mut Conn, f: &StoredFile, content: Option<&str>) -> Result<()> {
    conn.run(
        "INSERT INTO files (id, owner, name, purpose, bytes, content, created) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![&f.id, &f.owner, &f.name, f.purpose.as_str(), f.bytes, content, f.created],
    )
    .await?;
    Ok(())
}

pub(super) async fn put_file(conn: &mut Conn, f: &StoredFile, content: &str, most_bytes: i64) -> Result<()> {
    conn.serialize(BATCHES).await?;
    let held = file_bytes(conn, &f.owner).await?;
    if held + f.bytes > most_bytes {
        let message = format!(
            "{held} bytes of files are stored for this key; at most {most_bytes} are allowed, so delete files first"
        );
        return Err(StoreError::Conflict(message));
    }
    insert_file(conn, f, Some(content)).await
}

pub(super) async fn get_file(conn: &mut Conn, id: &str, owner: &str) -> Result<StoredFile> {
    let row = conn.one(FILE, args![id, owner]).await?;
    file(&row.ok_or_else(|| not_found("file", id))?)
}

pub(super) async fn file_bytes(conn: &mut Conn, owner: &str) -> Result<i64> {
    let files = conn
        .count("SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS n FROM files WHERE owner = $1", args![owner])
        .await?;
    let unfiled = conn
        .count(
            "SELECT CAST(COALESCE(SUM(octet_length(r.text) + 1), 0) AS BIGINT) AS n
             FROM batch_results r JOIN batches b ON b.id = r.batch_id WHERE b.owner = $1 AND b.ended IS NULL",
            args![owner],
        )
        .await?;
    Ok(files + unfiled)
}

pub(super) async fn batch_of_file(conn: &mut Conn, id: &str) -> Result<(String, bool)> {
    let row = conn
        .one(
            "SELECT id, CAST(CASE WHEN error_file = $1 THEN 1 ELSE 0 END AS BIGINT) AS failed FROM batches
             WHERE output_file = $1 OR error_file = $1",
            args![id],
        )
        .await?;
    let row = row.ok_or_else(|| not_found("file", id))?;
    Ok((row.text("id")?, row.int("failed")? == 1))
}

pub(super) async fn list_files(
    conn: &mut Conn,
    owner: &str,
    purpose: Option<FilePurpose>,
    page: &Page,
) -> Result<Vec<StoredFile>> {
    conn.all(
        "SELECT id, owner, name, purpose, bytes, created FROM files
         WHERE owner = $1 AND ($2 IS NULL OR purpose = $2) AND ($3 IS NULL OR id < $3)
         ORDER BY id DESC LIMIT $4",
        args![owner, purpose.map(FilePurpose::as_str), &page.after, page.limit],
    )
    .await?
    .iter()
    .map(file)
    .collect()
}

pub(super) async fn list(conn: &mut Conn, owner: &str, page: &Page) -> Result<Vec<Batch>> {
    conn.all(
        "SELECT * FROM batches WHERE owner = $1 AND ($2 IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        args![owner, &page.after, page.limit],
    )
    .await?
    .iter()
    .map(batch)
    .collect()
}

/// Extends the lease of a batch; returns its current state.
pub(super) async fn hold(conn: &mut Conn, id: &str, me: &str, until: Micros) -> Result<Batch> {
    held(conn, id, me, Some(until)).await?;
    find(conn, id).await
}

pub(super) async fn answered_lines(conn: &mut Conn, id: &str) -> Result<Vec<i64>> {
    let rows = conn.all("SELECT line FROM batch_results WHERE batch_id = $1 ORDER BY line", args![id]).await?;
    rows.iter().map(|row| row.int("line")).collect()
}

pub(super) async fn file_content(conn: &mut Conn, id: &str) -> Result<String> {
    let row = conn.one("SELECT content FROM files WHERE id = $1 AND content IS NOT NULL", args![id]).await?;
    row.ok_or_else(|| not_found("file", id))?.text("content")
}

pub(super) async fn delete_file(conn: &mut Conn, id: &str, owner: &str) -> Result<()> {
    conn.serialize(BATCHES).await?;
    get_file(conn, id, owner).await?;
    let read = conn
        .count(
            "SELECT COUNT(*) AS n FROM batches
             WHERE input_file = $1 AND state IN ('validating', 'in_progress', 'cancelling')",
            args![id],
        )
        .await?;
    if read > 0 {
        return Err(StoreError::Conflict("an unfinished batch reads this file; cancel the batch first".into()));
    }
    for (sql, failed) in [
        (
            "DELETE FROM batch_results WHERE failed = $2 AND batch_id IN (SELECT id FROM batches WHERE output_file = $1)",
            false,
        ),
        (
            "DELETE FROM batch_results WHERE failed = $2 AND batch_id IN (SELECT id FROM batches WHERE error_file = $1)",
            true,
        ),
    ] {
        conn.run(sql, args![id, failed]).await?;
    }
    conn.run("DELETE FROM files WHERE id = $1", args![id]).await?;
    Ok(())
}

pub(super) async fn expire(conn: &mut Conn, before: Micros) -> Result<u64> {
    conn.serialize(BATCHES).await?;
    conn.run("DELETE FROM batch_results WHERE batch_id IN (SELECT id FROM batches WHERE ended < $1)", args![before])
        .await?;
    let gone = conn
        .run(
            "DELETE FROM files WHERE id IN (SELECT output_file FROM batches WHERE ended < $1)
                OR id IN (SELECT error_file FROM batches WHERE ended < $1)",
            args![before],
        )
        .await?;
    conn.run("DELETE FROM batches WHERE ended < $1", args![before]).await?;
    let uploaded = conn
        .run(
            "DELETE FROM files WHERE created < $1 AND purpose = 'batch' AND id NOT IN
                (SELECT input_file FROM batches WHERE state IN ('validating', 'in_progress', 'cancelling'))",
            args![before],
        )
        .await?;
    Ok(gone + uploaded)
}

/// Removes everything of an owner; with a person, of the person's keys too.
pub(super) async fn erase(conn: &mut Conn, labeler: &str) -> Result<()> {
    const OF: &str = "(SELECT id FROM api_keys WHERE labeler_id = $1)";
    let person = format!("person:{labeler}");
    for sql in [
        format!(
            "DELETE FROM batch_results WHERE batch_id IN (SELECT id FROM batches WHERE owner = $2 OR owner IN {OF})"
        ),
        format!("DELETE FROM batches WHERE owner = $2 OR owner IN {OF}"),
        format!("DELETE FROM files WHERE owner = $2 OR owner IN {OF}"),
    ] {
        conn.all_built(sql, args![labeler, &person]).await?;
    }
    Ok(())
}

pub(super) async fn put_batch(conn: &mut Conn, b: &Batch, most_open: i64) -> Result<()> {
    conn.serialize(BATCHES).await?;
    let open = conn
        .count(
            "SELECT COUNT(*) AS n FROM batches
             WHERE owner = $1 AND state IN ('validating', 'in_progress', 'cancelling')",
            args![&b.owner],
        )
        .await?;
    if open >= most_open && !b.state.is_over() {
        return Err(StoreError::Conflict(format!(
            "{open} batches of this key are unfinished; wait for one of them to end"
        )));
    }
    conn.run(
        "INSERT INTO batches (id, owner, input_file, endpoint, state, metadata, faults, total, completed, failed,
             created, began, cancelling, ended, expires, output_file, error_file, held_by, held_until)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, $9, NULL, NULL, $10, $11, NULL, NULL, NULL, 0)",
        args![
            &b.id,
            &b.owner,
            &b.input_file,
            &b.endpoint,
            b.state.as_str(),
            &b.metadata,
            json(&b.faults)?,
            b.total,
            b.created,
            b.ended,
            b.expires
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn find(conn: &mut Conn, id: &str) -> Result<Batch> {
    let row = conn.one("SELECT * FROM batches WHERE id = $1", args![id]).await?;
    batch(&row.ok_or_else(|| not_found("batch", id))?)
}

pub(super) async fn get_batch(conn: &mut Conn, id: &str, owner: &str) -> Result<Batch> {
    let found = find(conn, id).await?;
    if found.owner == owner { Ok(found) } else { Err(not_found("batch", id)) }
}

pub(super) async fn cancel(conn: &mut Conn, id: &str, owner: &str, now: Micros) -> Result<Batch> {
    conn.serialize(BATCHES).await?;
    let found = get_batch(conn, id, owner).await?;
    match found.state {
        BatchState::Queued => {
            conn.run(
                "UPDATE batches SET state = 'cancelled', cancelling = $2, ended = $2 WHERE id = $1",
                args![id, now],
            )
            .await?;
        }
        BatchState::Running => {
            conn.run("UPDATE batches SET state = 'cancelling', cancelling = $2 WHERE id = $1", args![id, now]).await?;
        }
        BatchState::Cancelling => {}
        over => return Err(StoreError::Conflict(format!("the batch is {over}"))),
    }
    find(conn, id).await
}

/// The first unfinished batch that no server holds.
pub(super) async fn free(conn: &mut Conn, now: Micros, until: Micros) -> Result<Option<String>> {
    // A lease that ends later than any server holds a batch was written by a wrong clock.
    let found = conn
        .one(
            "SELECT id FROM batches WHERE state IN ('validating', 'in_progress', 'cancelling')
                AND (held_until <= $1 OR held_until > $2) ORDER BY id LIMIT 1",
            args![now, until],
        )
        .await?;
    found.map(|row| row.text("id")).transpose()
}

pub(super) async fn claim(conn: &mut Conn, me: &str, now: Micros, until: Micros) -> Result<Option<Batch>> {
    conn.serialize(BATCHES).await?;
    let Some(id) = free(conn, now, until).await? else { return Ok(None) };
    conn.run(
        "UPDATE batches SET held_by = $2, held_until = $3, began = COALESCE(began, $4),
             state = CASE WHEN state = 'validating' THEN 'in_progress' ELSE state END WHERE id = $1",
        args![&id, me, until, now],
    )
    .await?;
    find(conn, &id).await.map(Some)
}

/// Holds the batch, in a transaction that changes it.
pub(super) async fn held(conn: &mut Conn, id: &str, me: &str, until: Option<Micros>) -> Result<()> {
    let changed = conn
        .run(
            "UPDATE batches SET held_until = COALESCE($3, held_until) WHERE id = $1 AND held_by = $2 AND ended IS NULL",
            args![id, me, until],
        )
        .await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::LeaseLost(format!("batch {id}"))) }
}

pub(super) async fn put_results(conn: &mut Conn, id: &str, me: &str, results: &[BatchResult]) -> Result<()> {
    held(conn, id, me, None).await?;
    let (mut completed, mut failed) = (0, 0);
    for r in results {
        let new = conn
            .run(
                "INSERT INTO batch_results (batch_id, line, failed, text) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (batch_id, line) DO NOTHING",
                args![id, r.line, r.failed, &r.text],
            )
            .await? as i64;
        *(if r.failed { &mut failed } else { &mut completed }) += new;
    }
    conn.run(
        "UPDATE batches SET completed = completed + $2, failed = failed + $3 WHERE id = $1",
        args![id, completed, failed],
    )
    .await?;
    Ok(())
}

pub(super) async fn end(conn: &mut Conn, id: &str, me: &str, how: &BatchEnd) -> Result<Batch> {
    conn.serialize(BATCHES).await?;
    held(conn, id, me, None).await?;
    let batch = find(conn, id).await?;
    let mut made = [None, None];
    for (i, (failed, file_id, name)) in
        [(false, &how.output, "output"), (true, &how.errors, "errors")].into_iter().enumerate()
    {
        let bytes = conn
            .count(
                "SELECT CAST(COALESCE(SUM(octet_length(text) + 1), 0) AS BIGINT) AS n FROM batch_results
                 WHERE batch_id = $1 AND failed = $2",
                args![id, failed],
            )
            .await?;
        if bytes > 0 {
            let file = StoredFile {
                id: file_id.clone(),
                owner: batch.owner.clone(),
                name: format!("{id}_{name}.jsonl"),
                purpose: FilePurpose::BatchOutput,
                bytes,
                created: how.now,
            };
            insert_file(conn, &file, None).await?;
            made[i] = Some(file.id);
        }
    }
    let [output, errors] = made;
    conn.run(
        "UPDATE batches SET state = $2, faults = $3, ended = $4, output_file = $5, error_file = $6, held_by = NULL,
             held_until = 0 WHERE id = $1",
        args![id, how.state.as_str(), json(&how.faults)?, how.now, &output, &errors],
    )
    .await?;
    find(conn, id).await
}

pub(super) async fn results(
    conn: &mut Conn,
    id: &str,
    failed: bool,
    after: i64,
    bytes: usize,
) -> Result<Vec<(i64, String)>> {
    let (mut found, mut taken) = (Vec::new(), 0);
    conn.each(
        "SELECT line, text FROM batch_results WHERE batch_id = $1 AND failed = $2 AND line > $3 ORDER BY line",
        args![id, failed, after],
        |row| {
            let text = row.text("text")?;
            taken += text.len();
            found.push((row.int("line")?, text));
            Ok(taken < bytes)
        },
    )
    .await?;
    Ok(found)
}
