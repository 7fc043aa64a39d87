//! Webhooks and their deliveries. Deliveries are derived from the rows of the events that they report, so that
//! nothing is sent of what was not stored, and storing an event takes no further statement.

use serde_json::json;

use super::locks::WEBHOOKS;
use super::rows::{Arg, Conn, Row, args, json as to_json, not_found};
use super::{Page, Result, StoreError};
use crate::domain::*;

/// A webhook with what only the sender needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    pub webhook: Webhook,
    /// Signs deliveries.
    pub secret: String,
    /// Events that were stored before this time have their deliveries.
    pub derived_until: Micros,
}

/// A delivery to be stored, due at once.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDelivery {
    pub id: String,
    pub event: WebhookEvent,
    /// See [`Occurrence::source`].
    pub source: String,
    pub body: String,
    pub now: Micros,
}

/// A delivery that the caller holds and sends.
#[derive(Clone, Debug, PartialEq)]
pub struct DueDelivery {
    pub id: String,
    pub body: String,
    /// Earlier attempts.
    pub attempts: i64,
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryEnd {
    /// `Pending` = it is tried again at `next_attempt`.
    pub state: DeliveryState,
    pub code: Option<i64>,
    pub error: Option<String>,
    pub next_attempt: Micros,
    pub now: Micros,
}

fn subscription(row: &Row) -> Result<Subscription> {
    // A name that this release does not know is not sent.
    let events: Vec<String> = row.json("events")?;
    let webhook = Webhook {
        id: row.text("id")?,
        url: row.text("url")?,
        events: events.iter().filter_map(|name| WebhookEvent::parse(name)).collect(),
        created: row.int("created")?,
    };
    Ok(Subscription { webhook, secret: row.text("secret")?, derived_until: row.int("derived_until")? })
}

fn delivery(row: &Row) -> Result<Delivery> {
    Ok(Delivery {
        id: row.text("id")?,
        webhook_id: row.text("webhook_id")?,
        event: row.name("event", WebhookEvent::parse)?,
        body: row.text("body")?,
        state: row.name("state", DeliveryState::parse)?,
        attempts: row.int("attempts")?,
        next_attempt: row.int("next_attempt")?,
        last_code: row.opt_int("last_code")?,
        last_error: row.opt_text("last_error")?,
        created: row.int("created")?,
        ended: row.opt_int("ended")?,
    })
}

pub(super) async fn put(conn: &mut Conn, webhook: &Webhook, secret: &str) -> Result<()> {
    conn.run(
        "INSERT INTO webhooks (id, url, events, secret, created, derived_until) VALUES ($1, $2, $3, $4, $5, $5)",
        args![&webhook.id, &webhook.url, to_json(&webhook.events)?, secret, webhook.created],
    )
    .await?;
    Ok(())
}

pub(super) async fn list(conn: &mut Conn) -> Result<Vec<Subscription>> {
    conn.all("SELECT * FROM webhooks ORDER BY created, id", vec![]).await?.iter().map(subscription).collect()
}

pub(super) async fn delete(conn: &mut Conn, id: &str) -> Result<()> {
    conn.serialize(WEBHOOKS).await?;
    conn.run("DELETE FROM webhook_deliveries WHERE webhook_id = $1", args![id]).await?;
    match conn.run("DELETE FROM webhooks WHERE id = $1", args![id]).await? {
        0 => Err(not_found("webhook", id)),
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------- what is to be sent

pub(super) async fn undelivered(
    conn: &mut Conn,
    webhook: &str,
    event: WebhookEvent,
    since: Micros,
    limit: i64,
) -> Result<Vec<Occurrence>> {
    let args = args![webhook, event.as_str(), since, limit];
    let rows = match event {
        WebhookEvent::JudgmentCreated => judgments(conn, args).await?,
        WebhookEvent::JobSucceeded => ended_jobs(conn, args, "succeeded").await?,
        WebhookEvent::JobFailed => ended_jobs(conn, args, "failed").await?,
        WebhookEvent::ModelPromoted => promotions(conn, args).await?,
        // Stored with their deliveries.
        WebhookEvent::QueueEmpty | WebhookEvent::GoldDrift | WebhookEvent::Test => Vec::new(),
    };
    Ok(rows.into_iter().map(|(source, at, data)| Occurrence { event, source, at, data }).collect())
}

/// Source, time and data of an event.
type Found = (String, Micros, serde_json::Value);

async fn judgments(conn: &mut Conn, args: Vec<Arg>) -> Result<Vec<Found>> {
    conn.all(
        "SELECT j.id, j.set_id, j.outcome, j.revision, j.created FROM judgments j
         WHERE j.created >= $3 AND j.labeler_id <> 'import' AND j.labeler_id NOT LIKE 'import-%'
             AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d
                 WHERE d.webhook_id = $1 AND d.event = $2 AND d.source = j.id)
         ORDER BY j.created, j.id LIMIT $4",
        args,
    )
    .await?
    .iter()
    .map(|row| {
        let id = row.text("id")?;
        let (set, outcome) = (row.text("set_id")?, row.text("outcome")?);
        let data = json!({"judgment_id": id, "set_id": set, "outcome": outcome, "revision": row.int("revision")?});
        Ok((id, row.int("created")?, data))
    })
    .collect()
}

async fn ended_jobs(conn: &mut Conn, mut args: Vec<Arg>, state: &str) -> Result<Vec<Found>> {
    args.push(state.into());
    conn.all(
        "SELECT e.job_id, e.seq, e.created, j.kind, j.name,
             (SELECT MAX(m.id) FROM model_versions m WHERE m.job_id = e.job_id) AS model_id
         FROM job_events e JOIN jobs j ON j.id = e.job_id
         WHERE e.kind = 'state' AND e.created >= $3 AND e.data ->> 'state' = $5
             AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d
                 WHERE d.webhook_id = $1 AND d.event = $2 AND d.source = e.job_id || ':' || CAST(e.seq AS TEXT))
         ORDER BY e.created, e.job_id, e.seq LIMIT $4",
        args,
    )
    .await?
    .iter()
    .map(|row| {
        let (job, kind) = (row.text("job_id")?, row.text("kind")?);
        let (name, model) = (row.opt_text("name")?, row.opt_text("model_id")?);
        let source = format!("{job}:{}", row.int("seq")?);
        Ok((source, row.int("created")?, json!({"job_id": job, "kind": kind, "name": name, "model_id": model})))
    })
    .collect()
}

async fn promotions(conn: &mut Conn, args: Vec<Arg>) -> Result<Vec<Found>> {
    conn.all(
        "SELECT a.id, a.action, a.detail, a.created, m.id AS model_id, m.name, m.kind
         FROM audit_log a JOIN model_versions m ON m.id = a.target
         WHERE a.action IN ('promote', 'roll_back') AND a.created >= $3
             AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d
                 WHERE d.webhook_id = $1 AND d.event = $2 AND d.source = CAST(a.id AS TEXT))
         ORDER BY a.id LIMIT $4",
        args,
    )
    .await?
    .iter()
    .map(|row| {
        let detail: serde_json::Value = row.json("detail")?;
        let data = json!({
            "model_id": row.text("model_id")?, "name": row.text("name")?, "kind": row.text("kind")?,
            "replaced": detail["replaced"], "roll_back": row.text("action")? == "roll_back",
        });
        Ok((row.int("id")?.to_string(), row.int("created")?, data))
    })
    .collect()
}

pub(super) async fn enqueue(
    conn: &mut Conn,
    webhook: &str,
    new: &[NewDelivery],
    derived_until: Option<Micros>,
) -> Result<()> {
    // Also locks the row, so that it is not removed meanwhile.
    let found = conn
        .run(
            "UPDATE webhooks SET derived_until = COALESCE($2, derived_until) WHERE id = $1",
            args![webhook, derived_until],
        )
        .await?;
    if found == 1 {
        for delivery in new {
            insert(conn, webhook, delivery).await?;
        }
    }
    Ok(())
}

async fn insert(conn: &mut Conn, webhook: &str, new: &NewDelivery) -> Result<()> {
    conn.run(
        "INSERT INTO webhook_deliveries (id, webhook_id, event, source, body, state, attempts, next_attempt, last_code,
             last_error, created, ended, held_by, held_until)
         VALUES ($1, $2, $3, $4, $5, 'pending', 0, $6, NULL, NULL, $6, NULL, NULL, 0)
         ON CONFLICT DO NOTHING",
        args![&new.id, webhook, new.event.as_str(), &new.source, &new.body, new.now],
    )
    .await?;
    Ok(())
}

pub(super) async fn notice(
    conn: &mut Conn,
    event: WebhookEvent,
    raised: bool,
    now: Micros,
    new: &[(String, NewDelivery)],
) -> Result<bool> {
    conn.serialize(WEBHOOKS).await?;
    let stored = conn.one("SELECT raised FROM notices WHERE event = $1", args![event.as_str()]).await?;
    let stored = stored.map(|row| row.flag("raised")).transpose()?;
    if stored == Some(raised) {
        return Ok(false);
    }
    conn.run(
        "INSERT INTO notices (event, raised, since) VALUES ($1, $2, $3)
         ON CONFLICT (event) DO UPDATE SET raised = excluded.raised, since = excluded.since",
        args![event.as_str(), raised, now],
    )
    .await?;
    if raised && stored.is_some() {
        for (webhook, delivery) in new {
            enqueue(conn, webhook, std::slice::from_ref(delivery), None).await?;
        }
    }
    Ok(stored.is_some())
}

pub(super) async fn queue_is_empty(conn: &mut Conn) -> Result<bool> {
    let sql = "SELECT COUNT(*) AS n FROM
        (SELECT id FROM comparison_sets WHERE status = 'open' AND kind = 'normal' LIMIT 1) o";
    Ok(conn.count(sql, vec![]).await? == 0)
}

pub(super) async fn gold_scores(conn: &mut Conn, limit: i64) -> Result<Vec<f64>> {
    conn.all(
        "SELECT j.id, CAST(AVG(CASE WHEN x.tier = y.tier THEN 0.5 WHEN x.tier < y.tier THEN 1.0 ELSE 0.0 END)
             AS DOUBLE PRECISION) AS score
         FROM (SELECT j.id, j.set_id, j.created FROM judgments j JOIN comparison_sets s ON s.id = j.set_id
               WHERE s.kind = 'gold' AND j.revision = 1 AND j.outcome = 'ranked'
               ORDER BY j.created DESC, j.id DESC LIMIT $1) j
         JOIN gold_items a ON a.set_id = j.set_id
         JOIN gold_items b ON b.set_id = j.set_id AND a.expected_tier < b.expected_tier
         JOIN judgment_items x ON x.judgment_id = j.id AND x.completion_id = a.completion_id
         JOIN judgment_items y ON y.judgment_id = j.id AND y.completion_id = b.completion_id
         GROUP BY j.id, j.created ORDER BY j.created DESC, j.id DESC",
        args![limit],
    )
    .await?
    .iter()
    .map(|row| row.real("score"))
    .collect()
}

// ---------------------------------------------------------------- sending

pub(super) async fn is_due(conn: &mut Conn, webhook: &str, now: Micros) -> Result<bool> {
    let sql = "SELECT COUNT(*) AS n FROM (SELECT id FROM webhook_deliveries
         WHERE webhook_id = $1 AND state = 'pending' AND next_attempt <= $2 LIMIT 1) d";
    Ok(conn.count(sql, args![webhook, now]).await? > 0)
}

pub(super) async fn claim(
    conn: &mut Conn,
    webhook: &str,
    me: &str,
    now: Micros,
    until: Micros,
    limit: i64,
) -> Result<Vec<DueDelivery>> {
    conn.serialize(WEBHOOKS).await?;
    // A hold that ends later than any server holds a delivery was written by a wrong clock.
    let due: Vec<DueDelivery> = conn
        .all(
            "SELECT id, body, attempts FROM webhook_deliveries
             WHERE webhook_id = $1 AND state = 'pending' AND next_attempt <= $2
                 AND (held_until <= $2 OR held_until > $3)
             ORDER BY next_attempt, created, id LIMIT $4",
            args![webhook, now, until, limit],
        )
        .await?
        .iter()
        .map(|row| Ok(DueDelivery { id: row.text("id")?, body: row.text("body")?, attempts: row.int("attempts")? }))
        .collect::<Result<_>>()?;
    for delivery in &due {
        conn.run(
            "UPDATE webhook_deliveries SET held_by = $2, held_until = $3 WHERE id = $1",
            args![&delivery.id, me, until],
        )
        .await?;
    }
    Ok(due)
}

pub(super) async fn finish(conn: &mut Conn, id: &str, me: &str, end: &DeliveryEnd) -> Result<()> {
    let ended = (end.state != DeliveryState::Pending).then_some(end.now);
    let changed = conn
        .run(
            "UPDATE webhook_deliveries SET state = $3, attempts = attempts + 1, last_code = $4, last_error = $5,
                 next_attempt = $6, ended = $7, held_by = NULL, held_until = 0
             WHERE id = $1 AND held_by = $2",
            args![id, me, end.state.as_str(), end.code, &end.error, end.next_attempt, ended],
        )
        .await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::LeaseLost(format!("delivery {id}"))) }
}

pub(super) async fn deliveries(
    conn: &mut Conn,
    webhook: Option<&str>,
    state: Option<DeliveryState>,
    page: &Page,
) -> Result<Vec<Delivery>> {
    conn.all(
        "SELECT d.* FROM webhook_deliveries d
         WHERE ($1 IS NULL OR d.webhook_id = $1) AND ($2 IS NULL OR d.state = $2)
             AND ($3 IS NULL OR (d.created, d.id) < (SELECT l.created, l.id FROM webhook_deliveries l WHERE l.id = $3))
         ORDER BY d.created DESC, d.id DESC LIMIT $4",
        args![webhook, state.map(DeliveryState::as_str), &page.after, page.limit],
    )
    .await?
    .iter()
    .map(delivery)
    .collect()
}

pub(super) async fn get_delivery(conn: &mut Conn, id: &str) -> Result<Delivery> {
    let row = conn.one("SELECT * FROM webhook_deliveries WHERE id = $1", args![id]).await?;
    delivery(&row.ok_or_else(|| not_found("delivery", id))?)
}

pub(super) async fn resend(conn: &mut Conn, id: &str, now: Micros) -> Result<Delivery> {
    conn.serialize(WEBHOOKS).await?;
    conn.run(
        "UPDATE webhook_deliveries SET state = 'pending', attempts = 0, next_attempt = $2, ended = NULL WHERE id = $1",
        args![id, now],
    )
    .await?;
    get_delivery(conn, id).await
}

pub(super) async fn expire(conn: &mut Conn, before: Micros, margin: Micros) -> Result<u64> {
    conn.run(
        "DELETE FROM webhook_deliveries WHERE ended < $1
             AND created < (SELECT w.derived_until - $2 FROM webhooks w WHERE w.id = webhook_deliveries.webhook_id)",
        args![before, margin],
    )
    .await
}
