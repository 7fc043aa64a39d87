//! Prompts, completions, demonstrations and feedback.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::privacy::{self, asked};
use super::rows::{Arg, Conn, PAGE_BYTES, Row, args, json, not_found, placeholders};
use super::{FeedbackFact, FeedbackFilter, Page, Result, StoreError, keys};
use crate::domain::*;

// ---------------------------------------------------------------- prompts

pub(super) fn prompt(row: &Row) -> Result<Prompt> {
    Ok(Prompt {
        id: row.text("id")?.into(),
        project_id: row.text("project_id")?.into(),
        messages: row.json("messages")?,
        lang: row.opt_text("lang")?,
        source: row.text("source")?,
        content_hash: row.text("content_hash")?,
        split: row.name("split", Split::parse)?,
        tags: row.json("tags")?,
        answer: row.opt_text("answer")?,
        created: row.int("created")?,
    })
}

/// Stores a prompt; returns the existing one when the content hash is known.
pub(super) async fn put(conn: &mut Conn, p: &Prompt) -> Result<Prompt> {
    let made = conn
        .run(
            "INSERT INTO prompts (id, messages, lang, source, content_hash, split, tags, created, answer, project_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (content_hash) DO NOTHING",
            args![
                p.id.as_str(),
                json(&p.messages)?,
                &p.lang,
                &p.source,
                &p.content_hash,
                p.split.as_str(),
                json(&p.tags)?,
                p.created,
                &p.answer,
                p.project_id.as_str()
            ],
        )
        .await?;
    if made == 1 {
        return Ok(p.clone());
    }
    if !privacy::is_request(&p.source) {
        conn.run(
            concat!("UPDATE prompts AS p SET submitted = $2 WHERE p.content_hash = $1 AND ", asked!("p")),
            args![&p.content_hash, p.created],
        )
        .await?;
    }
    by_hash(conn, &p.content_hash).await?.ok_or_else(|| not_found("prompt", &p.content_hash))
}

pub(super) async fn by_hash(conn: &mut Conn, hash: &str) -> Result<Option<Prompt>> {
    conn.one("SELECT * FROM prompts WHERE content_hash = $1", args![hash]).await?.as_ref().map(prompt).transpose()
}

pub(super) async fn get(conn: &mut Conn, id: &PromptId) -> Result<Prompt> {
    let row = conn.one("SELECT * FROM prompts WHERE id = $1", args![id.as_str()]).await?;
    prompt(&row.ok_or_else(|| not_found("prompt", id.as_str()))?)
}

pub(super) async fn list(conn: &mut Conn, page: &Page, source: Option<&str>) -> Result<Vec<Prompt>> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let sql = "SELECT * FROM prompts WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR source = $2)
         ORDER BY id DESC LIMIT $3";
    conn.each(sql, args![&page.after, source, page.limit], |row| {
        let one = prompt(row)?;
        bytes += size(&one);
        found.push(one);
        Ok(bytes < PAGE_BYTES)
    })
    .await?;
    Ok(found)
}

/// Bytes of a prompt's texts.
pub(super) fn size(prompt: &Prompt) -> usize {
    prompt.messages.iter().map(|m| m.content.len()).sum::<usize>() + prompt.answer.as_ref().map_or(0, String::len)
}

// ---------------------------------------------------------------- completions

/// Little-endian bytes of 4-byte numbers, and back.
pub(super) fn pack<T: Copy>(values: &[T], bytes: fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

fn unpack<T>(bytes: &[u8], value: fn([u8; 4]) -> T) -> Vec<T> {
    bytes.chunks_exact(4).map(|c| value([c[0], c[1], c[2], c[3]])).collect()
}

pub(super) fn completion(row: &Row) -> Result<Completion> {
    Ok(Completion {
        id: row.text("id")?.into(),
        prompt_id: row.text("prompt_id")?.into(),
        model_version_id: row.opt_text("model_version_id")?.map(Into::into),
        origin: row.name("origin", CompletionOrigin::parse)?,
        parent_completion_id: row.opt_text("parent_completion_id")?.map(Into::into),
        text: row.text("text")?,
        token_ids: unpack(&row.bytes("token_ids")?, u32::from_le_bytes),
        logprobs: unpack(&row.bytes("logprobs")?, f32::from_le_bytes),
        sampling: row.json("sampling")?,
        seed: row.opt_int("seed")?.map(i64::cast_unsigned),
        finish_reason: row.opt_text("finish_reason")?,
        request_id: row.opt_text("request_id")?,
        reward: row.opt_real("reward")?,
        created: row.int("created")?,
    })
}

/// `served`: the route of the request that it answers, if there was one.
pub(super) async fn put_completion(conn: &mut Conn, c: &Completion, served: Option<&str>) -> Result<()> {
    conn.run(
        "INSERT INTO completions (id, prompt_id, model_version_id, origin, parent_completion_id, text, token_ids,
             logprobs, sampling, seed, finish_reason, request_id, reward, created, served)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        args![
            c.id.as_str(),
            c.prompt_id.as_str(),
            c.model_version_id.as_ref().map(ModelVersionId::as_str),
            c.origin.as_str(),
            c.parent_completion_id.as_ref().map(CompletionId::as_str),
            &c.text,
            pack(&c.token_ids, u32::to_le_bytes),
            pack(&c.logprobs, f32::to_le_bytes),
            &c.sampling,
            c.seed.map(u64::cast_signed),
            &c.finish_reason,
            &c.request_id,
            c.reward,
            c.created,
            served
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn get_completion(conn: &mut Conn, id: &CompletionId) -> Result<Completion> {
    let row = conn.one("SELECT * FROM completions WHERE id = $1", args![id.as_str()]).await?;
    completion(&row.ok_or_else(|| not_found("completion", id.as_str()))?)
}

pub(super) async fn list_completions(conn: &mut Conn, prompt_id: &PromptId) -> Result<Vec<Completion>> {
    conn.all("SELECT * FROM completions WHERE prompt_id = $1 ORDER BY id", args![prompt_id.as_str()])
        .await?
        .iter()
        .map(completion)
        .collect()
}

pub(super) async fn set_reward(conn: &mut Conn, id: &CompletionId, reward: f64) -> Result<()> {
    match conn.run("UPDATE completions SET reward = $2 WHERE id = $1", args![id.as_str(), reward]).await? {
        0 => Err(not_found("completion", id.as_str())),
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------- demonstrations

/// Stores prompt and answer; the same answer to the same prompt is one demonstration.
pub(super) async fn put_demonstration(
    conn: &mut Conn,
    p: &Prompt,
    mut c: Completion,
    labeler: Option<&LabelerId>,
    now: Micros,
) -> Result<Demonstration> {
    c.prompt_id = put(conn, p).await?.id;
    let known = conn
        .one(
            "SELECT d.* FROM demonstrations d JOIN completions c ON c.id = d.completion_id
             WHERE d.prompt_id = $1 AND (d.text_key = $3 OR d.text_key IS NULL) AND c.text = $2",
            args![c.prompt_id.as_str(), &c.text, keys::text_key(&c.text).as_str()],
        )
        .await?;
    if let Some(row) = known {
        return Ok(Demonstration {
            prompt_id: row.text("prompt_id")?.into(),
            completion_id: row.text("completion_id")?.into(),
            labeler_id: row.opt_text("labeler_id")?.map(Into::into),
            created: row.int("created")?,
        });
    }
    put_completion(conn, &c, None).await?;
    if let Some(labeler) = labeler.filter(|_| !p.source.starts_with("import:")) {
        privacy::submitted_by(conn, &c.prompt_id, labeler, now).await?;
    }
    add_demonstration(conn, &c, labeler, now).await
}

/// Marks a stored completion as an ideal answer.
pub(super) async fn add_demonstration(
    conn: &mut Conn,
    c: &Completion,
    labeler: Option<&LabelerId>,
    now: Micros,
) -> Result<Demonstration> {
    conn.run(
        "INSERT INTO demonstrations (prompt_id, completion_id, labeler_id, created, text_key)
         VALUES ($1, $2, $3, $4, $5)",
        args![
            c.prompt_id.as_str(),
            c.id.as_str(),
            labeler.map(LabelerId::as_str),
            now,
            keys::text_key(&c.text).as_str()
        ],
    )
    .await?;
    Ok(Demonstration {
        prompt_id: c.prompt_id.clone(),
        completion_id: c.id.clone(),
        labeler_id: labeler.cloned(),
        created: now,
    })
}

/// At most `limit` demonstrations after one, oldest first.
pub(super) async fn demonstration_page(
    conn: &mut Conn,
    after: Option<&Demonstration>,
    limit: i64,
) -> Result<Vec<(Demonstration, Prompt, Completion)>> {
    let rows = conn
        .all(
            "SELECT prompt_id, completion_id, labeler_id, created FROM demonstrations
             WHERE (created, completion_id) > (COALESCE($1, -9223372036854775807), COALESCE($2, ''))
             ORDER BY created, completion_id LIMIT $3",
            args![after.map(|d| d.created), after.map(|d| d.completion_id.as_str()), limit],
        )
        .await?;
    let ids = |column: &str| rows.iter().map(|row| row.text(column)).collect::<Result<BTreeSet<_>>>();
    let prompts = named(conn, "prompts", ids("prompt_id")?, prompt).await?;
    let completions = named(conn, "completions", ids("completion_id")?, completion).await?;
    let mut page = Vec::with_capacity(rows.len());
    for row in &rows {
        let (prompt_id, completion_id) = (row.text("prompt_id")?, row.text("completion_id")?);
        // A demonstration that is erased meanwhile has lost its texts.
        let (Some(prompt), Some(completion)) = (prompts.get(&prompt_id), completions.get(&completion_id)) else {
            continue;
        };
        let demonstration = Demonstration {
            prompt_id: prompt_id.into(),
            completion_id: completion_id.into(),
            labeler_id: row.opt_text("labeler_id")?.map(Into::into),
            created: row.int("created")?,
        };
        page.push((demonstration, prompt.clone(), completion.clone()));
    }
    Ok(page)
}

/// Demonstrations by labelers that correct completions of a set, oldest first.
pub(super) async fn corrections(conn: &mut Conn, set: &SetId) -> Result<Vec<(LabelerId, Completion)>> {
    let rows = conn
        .all(
            "SELECT c.*, d.labeler_id AS corrected_by
             FROM comparison_sets s
             JOIN demonstrations d ON d.prompt_id = s.prompt_id
             JOIN completions c ON c.id = d.completion_id
             WHERE s.id = $1 AND d.labeler_id IS NOT NULL
               AND c.parent_completion_id IN (SELECT completion_id FROM set_items WHERE set_id = $1)
             ORDER BY d.created, d.completion_id",
            args![set.as_str()],
        )
        .await?;
    rows.iter().map(|row| Ok((row.text("corrected_by")?.into(), completion(row)?))).collect()
}

/// Number of ids in one statement.
const IDS: usize = 500;

/// The rows of a table with these ids, by id.
async fn named<T>(
    conn: &mut Conn,
    table: &'static str,
    ids: BTreeSet<String>,
    read: fn(&Row) -> Result<T>,
) -> Result<HashMap<String, T>> {
    let ids: Vec<String> = ids.into_iter().collect();
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(IDS) {
        let sql = format!("SELECT * FROM {table} WHERE id IN ({})", placeholders(1, chunk.len()));
        for row in &conn.all_built(sql, chunk.iter().map(Arg::from).collect()).await? {
            found.insert(row.text("id")?, read(row)?);
        }
    }
    Ok(found)
}

// ---------------------------------------------------------------- feedback

pub(super) fn feedback(row: &Row) -> Result<FeedbackEvent> {
    Ok(FeedbackEvent {
        id: row.text("id")?.into(),
        completion_id: row.text("completion_id")?.into(),
        kind: row.text("kind")?,
        value: row.json("value")?,
        actor_hash: row.opt_text("actor_hash")?,
        idempotency_key: row.text("idempotency_key")?,
        created: row.int("created")?,
    })
}

/// A known idempotency key returns the event stored under it.
///
/// # Errors
/// `KeyReused` if that event says something else.
pub(super) async fn put_feedback(conn: &mut Conn, e: &FeedbackEvent) -> Result<FeedbackEvent> {
    let completion = get_completion(conn, &e.completion_id).await?;
    conn.run(
        "INSERT INTO feedback_events (id, completion_id, kind, value, actor_hash, idempotency_key, created, prompt_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (idempotency_key) DO NOTHING",
        args![
            e.id.as_str(),
            e.completion_id.as_str(),
            &e.kind,
            &e.value,
            &e.actor_hash,
            &e.idempotency_key,
            e.created,
            completion.prompt_id.as_str()
        ],
    )
    .await?;
    let row = conn.one("SELECT * FROM feedback_events WHERE idempotency_key = $1", args![&e.idempotency_key]).await?;
    let stored = feedback(&row.ok_or_else(|| not_found("feedback", &e.idempotency_key))?)?;
    if (&stored.completion_id, &stored.kind) != (&e.completion_id, &e.kind) || !is_same_value(&stored.value, &e.value) {
        return Err(StoreError::KeyReused("other feedback"));
    }
    Ok(stored)
}

/// Whether a stored value is a given one. Databases may write a number in another form: 1 for 1.0.
fn is_same_value(stored: &Value, given: &Value) -> bool {
    stored == given || stored.is_number() && stored.as_f64() == given.as_f64()
}

pub(super) async fn list_feedback(conn: &mut Conn, page: &Page) -> Result<Vec<FeedbackEvent>> {
    conn.all(
        "SELECT * FROM feedback_events WHERE ($1 IS NULL OR id < $1) ORDER BY id DESC LIMIT $2",
        args![&page.after, page.limit],
    )
    .await?
    .iter()
    .map(feedback)
    .collect()
}

/// The events on at most `prompts` prompts with ids after `after`, with their completions and prompts: by prompt, oldest
/// first; and the id to continue after, `None` at the end.
pub(super) async fn feedback_page(
    conn: &mut Conn,
    which: &FeedbackFilter,
    after: Option<&PromptId>,
    prompts: i64,
) -> Result<(Vec<FeedbackFact>, Option<PromptId>)> {
    let after = after.map(PromptId::as_str);
    let last = conn
        .one(
            "SELECT COUNT(*) AS n, MAX(prompt_id) AS last FROM (SELECT DISTINCT prompt_id FROM feedback_events
                 WHERE prompt_id > COALESCE($1, '') ORDER BY prompt_id LIMIT $2) t",
            args![after, prompts],
        )
        .await?;
    let Some(row) = last else { return Ok((Vec::new(), None)) };
    let Some(last) = row.opt_text("last")? else { return Ok((Vec::new(), None)) };
    let is_full = row.int("n")? >= prompts;
    let rows = conn
        .all(
            "SELECT f.* FROM feedback_events f
             WHERE f.prompt_id > COALESCE($3, '') AND f.prompt_id <= $4 AND ($1 IS NULL OR f.created <= $1)
               AND (NOT $2 OR EXISTS (SELECT 1 FROM completions c JOIN prompts p ON p.id = c.prompt_id
                   WHERE c.id = f.completion_id AND c.served IS NULL
                     AND NOT (p.source IN ('chat', 'completions')
                         AND (p.submitted IS NULL OR p.submitted > COALESCE($1, 9223372036854775807)))))
             ORDER BY f.prompt_id, f.created, f.id",
            args![which.as_of, which.without_requests, after, last.as_str()],
        )
        .await?;
    let ids = |column: &str| rows.iter().map(|row| row.text(column)).collect::<Result<BTreeSet<_>>>();
    let texts = named(conn, "prompts", ids("prompt_id")?, prompt).await?;
    let completions = named(conn, "completions", ids("completion_id")?, completion).await?;
    let mut facts = Vec::with_capacity(rows.len());
    for row in &rows {
        let event = feedback(row)?;
        // A completion that retention removes meanwhile takes its feedback with it.
        if let (Some(completion), Some(prompt)) =
            (completions.get(event.completion_id.as_str()), texts.get(&row.text("prompt_id")?))
        {
            facts.push(FeedbackFact { event, completion: completion.clone(), prompt: prompt.clone() });
        }
    }
    Ok((facts, is_full.then(|| last.into())))
}
