//! People who label (models that do are in `model_judgments`), invites, sessions, API keys and the audit log.

use super::locks::IDENTITIES;
use super::rows::{Conn, Row, args, json, not_found};
use super::{AuditFilter, Result, StoreError};
use crate::domain::*;

/// A time stamp further than this in the future was made by a wrong clock.
pub(super) const CLOCK_SLACK: Micros = 300_000_000;

fn labeler(row: &Row) -> Result<Labeler> {
    Ok(Labeler {
        id: row.text("id")?.into(),
        name: row.text("name")?,
        role: row.name("role", Role::parse)?,
        active: row.flag("active")?,
        daily_quota: row.opt_int("daily_quota")?,
        erased: row.opt_int("erased")?,
        created: row.int("created")?,
    })
}

/// Stores a labeler, or changes the name, role and state of a known one.
pub(super) async fn put_labeler(conn: &mut Conn, l: &Labeler) -> Result<()> {
    let stored = conn
        .run(
            "INSERT INTO labelers (id, name, role, active, daily_quota, created) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, role = excluded.role, active = excluded.active,
             daily_quota = excluded.daily_quota WHERE labelers.kind = 'human'",
            args![l.id.as_str(), &l.name, l.role.as_str(), l.active, l.daily_quota, l.created],
        )
        .await?;
    if stored == 0 {
        return Err(StoreError::Conflict(format!("{} is the id of a language model that ranks as a labeler", l.id)));
    }
    Ok(())
}

pub(super) async fn get_labeler(conn: &mut Conn, id: &LabelerId) -> Result<Labeler> {
    let row = conn.one("SELECT * FROM labelers WHERE id = $1 AND kind = 'human'", args![id.as_str()]).await?;
    labeler(&row.ok_or_else(|| not_found("labeler", id.as_str()))?)
}

pub(super) async fn by_identity(conn: &mut Conn, provider: &str, subject: &str) -> Result<Option<Labeler>> {
    let sql = "SELECT l.* FROM identities i JOIN labelers l ON l.id = i.labeler_id
         WHERE i.provider = $1 AND i.subject = $2";
    conn.one(sql, args![provider, subject]).await?.as_ref().map(labeler).transpose()
}

pub(super) async fn join(conn: &mut Conn, provider: &str, subject: &str, mut new: Labeler) -> Result<Labeler> {
    conn.serialize(IDENTITIES).await?;
    if let Some(known) = by_identity(conn, provider, subject).await? {
        return Ok(known);
    }
    if conn.count("SELECT COUNT(*) AS n FROM labelers WHERE id = $1", args![new.id.as_str()]).await? == 0 {
        let taken: Vec<String> = list_labelers(conn).await?.into_iter().map(|l| l.name.to_lowercase()).collect();
        let numbered = (2u64..).map(|n| format!("{} ({n})", new.name));
        let mut names = std::iter::once(new.name.clone()).chain(numbered);
        let free = names.find(|name| !taken.contains(&name.to_lowercase()));
        new.name = free.unwrap_or_else(|| subject.to_owned());
        put_labeler(conn, &new).await?;
    }
    conn.run(
        "INSERT INTO identities (provider, subject, labeler_id, created) VALUES ($1, $2, $3, $4)",
        args![provider, subject, new.id.as_str(), new.created],
    )
    .await?;
    get_labeler(conn, &new.id).await
}

pub(super) async fn list_labelers(conn: &mut Conn) -> Result<Vec<Labeler>> {
    conn.all("SELECT * FROM labelers WHERE kind = 'human' ORDER BY created, id", vec![])
        .await?
        .iter()
        .map(labeler)
        .collect()
}

pub(super) async fn set_active(conn: &mut Conn, id: &LabelerId, active: bool) -> Result<()> {
    match conn
        .run("UPDATE labelers SET active = $2 WHERE id = $1 AND kind = 'human'", args![id.as_str(), active])
        .await?
    {
        0 => Err(not_found("labeler", id.as_str())),
        _ if active => Ok(()),
        _ => lock_out(conn, id).await,
    }
}

/// Ends a person's sessions, keys and sign-in links; activating the person later does not restore them.
pub(super) async fn lock_out(conn: &mut Conn, id: &LabelerId) -> Result<()> {
    conn.run("DELETE FROM sessions WHERE labeler_id = $1", args![id.as_str()]).await?;
    conn.run("UPDATE api_keys SET revoked = $2 WHERE labeler_id = $1", args![id.as_str(), true]).await?;
    conn.run(
        "UPDATE sign_in_links SET state = 'revoked' WHERE labeler_id = $1 AND state = 'active'",
        args![id.as_str()],
    )
    .await?;
    Ok(())
}

/// Lowers the role of open sessions and keys; raising the person's role later does not raise it.
async fn demote(conn: &mut Conn, id: &LabelerId, role: Role) -> Result<()> {
    for session in conn.all("SELECT token_hash, role FROM sessions WHERE labeler_id = $1", args![id.as_str()]).await? {
        if session.name("role", Role::parse)? > role {
            let hash = session.text("token_hash")?;
            conn.run("UPDATE sessions SET role = $2 WHERE token_hash = $1", args![&hash, role.as_str()]).await?;
        }
    }
    if role == Role::Admin {
        return Ok(());
    }
    let rows =
        conn.all("SELECT * FROM api_keys WHERE labeler_id = $1 AND revoked = $2", args![id.as_str(), false]).await?;
    for row in &rows {
        let key = api_key(row)?;
        let left: Vec<&String> = key.scopes.iter().filter(|s| *s != "admin").collect();
        if left.len() == key.scopes.len() {
            continue;
        }
        if left.is_empty() {
            revoke_api_key(conn, &key.id).await?;
        } else {
            conn.run("UPDATE api_keys SET scopes = $2 WHERE id = $1", args![key.id.as_str(), json(&left)?]).await?;
        }
    }
    Ok(())
}

pub(super) async fn change_labeler(
    conn: &mut Conn,
    id: &LabelerId,
    role: Option<Role>,
    daily_quota: Option<Option<i64>>,
    active: Option<bool>,
) -> Result<Labeler> {
    let mut labeler = get_labeler(conn, id).await?;
    if labeler.erased.is_some() {
        return Err(StoreError::Conflict("the data of this person was erased; add a new person instead".into()));
    }
    labeler.role = role.unwrap_or(labeler.role);
    labeler.daily_quota = daily_quota.unwrap_or(labeler.daily_quota);
    labeler.active = active.unwrap_or(labeler.active);
    put_labeler(conn, &labeler).await?;
    if active == Some(false) {
        lock_out(conn, id).await?;
    }
    if role.is_some() {
        demote(conn, id, labeler.role).await?;
    }
    Ok(labeler)
}

pub(super) async fn revoke_invite(conn: &mut Conn, id: &InviteId, now: Micros) -> Result<()> {
    let row = conn.one("SELECT * FROM invites WHERE id = $1", args![id.as_str()]).await?;
    let found = invite(&row.ok_or_else(|| not_found("invite", id.as_str()))?)?;
    if found.used_by.is_some() {
        return Err(StoreError::Conflict("the invite is used; deactivate the labeler instead".into()));
    }
    conn.run(
        "UPDATE invites SET revoked = $3, expires = $2 WHERE id = $1 AND expires > $2",
        args![id.as_str(), now, true],
    )
    .await?;
    Ok(())
}

fn invite(row: &Row) -> Result<Invite> {
    Ok(Invite {
        id: row.text("id")?.into(),
        token_hash: row.text("token_hash")?,
        role: row.name("role", Role::parse)?,
        name: row.opt_text("name")?,
        note: row.opt_text("note")?,
        expires: row.int("expires")?,
        revoked: row.flag("revoked")?,
        used_by: row.opt_text("used_by")?.map(Into::into),
        created: row.int("created")?,
    })
}

pub(super) async fn put_invite(conn: &mut Conn, i: &Invite) -> Result<()> {
    conn.run(
        "INSERT INTO invites (id, token_hash, role, name, note, expires, revoked, used_by, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            i.id.as_str(),
            &i.token_hash,
            i.role.as_str(),
            &i.name,
            &i.note,
            i.expires,
            i.revoked,
            i.used_by.as_ref().map(LabelerId::as_str),
            i.created
        ],
    )
    .await?;
    Ok(())
}

/// The new labeler gets the invite's role; the given role is ignored.
pub(super) async fn redeem_invite(conn: &mut Conn, token_hash: &str, mut new: Labeler, now: Micros) -> Result<Labeler> {
    let row = conn.one("SELECT * FROM invites WHERE token_hash = $1", args![token_hash]).await?;
    let found = invite(&row.ok_or_else(|| not_found("invite", "(this token)"))?)?;
    new.role = found.role;
    conn.run(
        "INSERT INTO labelers (id, name, role, active, created) VALUES ($1, $2, $3, $4, $5)",
        args![new.id.as_str(), &new.name, new.role.as_str(), new.active, new.created],
    )
    .await?;
    // The condition is in the UPDATE, so that of two concurrent uses only one succeeds.
    let used = conn
        .run(
            "UPDATE invites SET used_by = $2 WHERE id = $1 AND used_by IS NULL AND expires > $3",
            args![found.id.as_str(), new.id.as_str(), now],
        )
        .await?;
    if used == 0 {
        return Err(StoreError::Conflict("the invite is used or has expired; ask for a new one".into()));
    }
    Ok(new)
}

pub(super) async fn list_invites(conn: &mut Conn) -> Result<Vec<Invite>> {
    conn.all("SELECT * FROM invites ORDER BY created DESC, id DESC", vec![]).await?.iter().map(invite).collect()
}

pub(super) async fn put_session(conn: &mut Conn, s: &Session) -> Result<()> {
    // Expired sessions are removed here.
    conn.run("DELETE FROM sessions WHERE expires <= $1", args![s.created]).await?;
    conn.run(
        "INSERT INTO sessions (token_hash, labeler_id, role, credential, used, expires, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![&s.token_hash, s.labeler_id.as_str(), s.role.as_str(), &s.credential, s.used, s.expires, s.created],
    )
    .await?;
    Ok(())
}

/// The time only moves forward, except from a future that a wrong clock recorded.
pub(super) async fn touch_session(conn: &mut Conn, token_hash: &str, now: Micros) -> Result<()> {
    conn.run(
        "UPDATE sessions SET used = $2 WHERE token_hash = $1 AND (used < $2 OR used > $3)",
        args![token_hash, now, now + CLOCK_SLACK],
    )
    .await?;
    Ok(())
}

/// `None` when unknown, expired, or when its labeler has been made inactive.
pub(super) async fn get_session(conn: &mut Conn, token_hash: &str, now: Micros) -> Result<Option<Session>> {
    let row = conn
        .one(
            "SELECT s.* FROM sessions s JOIN labelers l ON l.id = s.labeler_id
             WHERE s.token_hash = $1 AND s.expires > $2 AND l.active = $3",
            args![token_hash, now, true],
        )
        .await?;
    row.map(|row| {
        Ok(Session {
            token_hash: row.text("token_hash")?,
            labeler_id: row.text("labeler_id")?.into(),
            role: row.name("role", Role::parse)?,
            credential: row.text("credential")?,
            used: row.int("used")?,
            expires: row.int("expires")?,
            created: row.int("created")?,
        })
    })
    .transpose()
}

pub(super) async fn delete_session(conn: &mut Conn, token_hash: &str) -> Result<()> {
    conn.run("DELETE FROM sessions WHERE token_hash = $1", args![token_hash]).await?;
    Ok(())
}

pub(super) fn api_key(row: &Row) -> Result<ApiKey> {
    Ok(ApiKey {
        id: row.text("id")?.into(),
        name: row.text("name")?,
        key_hash: row.text("key_hash")?,
        scopes: row.json("scopes")?,
        labeler_id: row.opt_text("labeler_id")?.map(Into::into),
        daily_tokens: row.opt_int("daily_tokens")?,
        origin: row.name("origin", KeyOrigin::parse)?,
        revoked: row.flag("revoked")?,
        created: row.int("created")?,
    })
}

pub(super) async fn put_api_key(conn: &mut Conn, k: &ApiKey) -> Result<()> {
    conn.run(
        "INSERT INTO api_keys (id, name, key_hash, scopes, labeler_id, daily_tokens, origin, revoked, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        args![
            k.id.as_str(),
            &k.name,
            &k.key_hash,
            json(&k.scopes)?,
            k.labeler_id.as_ref().map(LabelerId::as_str),
            k.daily_tokens,
            k.origin.as_str(),
            k.revoked,
            k.created
        ],
    )
    .await?;
    Ok(())
}

/// Revoked keys are not found.
pub(super) async fn find_api_key(conn: &mut Conn, key_hash: &str) -> Result<Option<ApiKey>> {
    conn.one("SELECT * FROM api_keys WHERE key_hash = $1 AND revoked = $2", args![key_hash, false])
        .await?
        .as_ref()
        .map(api_key)
        .transpose()
}

/// `None` when it is unknown or revoked.
pub(super) async fn live_api_key(conn: &mut Conn, id: &ApiKeyId) -> Result<Option<ApiKey>> {
    conn.one("SELECT * FROM api_keys WHERE id = $1 AND revoked = $2", args![id.as_str(), false])
        .await?
        .as_ref()
        .map(api_key)
        .transpose()
}

pub(super) async fn list_api_keys(conn: &mut Conn) -> Result<Vec<ApiKey>> {
    conn.all("SELECT * FROM api_keys ORDER BY created DESC, id DESC", vec![]).await?.iter().map(api_key).collect()
}

/// Also ends the sessions that it opened.
pub(super) async fn revoke_api_key(conn: &mut Conn, id: &ApiKeyId) -> Result<()> {
    match conn.run("UPDATE api_keys SET revoked = $2 WHERE id = $1", args![id.as_str(), true]).await? {
        0 => Err(not_found("API key", id.as_str())),
        _ => {
            conn.run("DELETE FROM sessions WHERE credential = $1", args![id.as_str()]).await?;
            Ok(())
        }
    }
}

pub(super) async fn key_tokens(conn: &mut Conn, id: &ApiKeyId, day: i64) -> Result<i64> {
    let row = conn.one("SELECT tokens FROM key_usage WHERE key_id = $1 AND day = $2", args![id.as_str(), day]).await?;
    row.map_or(Ok(0), |row| row.int("tokens"))
}

pub(super) async fn add_key_tokens(conn: &mut Conn, id: &ApiKeyId, day: i64, tokens: i64) -> Result<()> {
    conn.run(
        "INSERT INTO key_usage (key_id, day, tokens) VALUES ($1, $2, $3)
         ON CONFLICT (key_id, day) DO UPDATE SET tokens = key_usage.tokens + excluded.tokens",
        args![id.as_str(), day, tokens],
    )
    .await?;
    Ok(())
}

pub(super) async fn audit(
    conn: &mut Conn,
    by: &Signature,
    action: &str,
    target: &str,
    detail: &serde_json::Value,
    now: Micros,
) -> Result<()> {
    conn.run(
        "INSERT INTO audit_log (actor, credential, action, target, detail, created) VALUES ($1, $2, $3, $4, $5, $6)",
        args![&by.actor, &by.credential, action, target, detail, now],
    )
    .await?;
    Ok(())
}

pub(super) async fn list_audit(
    conn: &mut Conn,
    filter: &AuditFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<AuditEntry>> {
    conn.all(
        "SELECT * FROM audit_log WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR actor = $2)
           AND ($3 IS NULL OR action = $3) AND ($4 IS NULL OR target = $4) AND ($5 IS NULL OR created >= $5)
           AND ($6 IS NULL OR created <= $6)
         ORDER BY id DESC LIMIT $7",
        args![before, &filter.actor, &filter.action, &filter.target, filter.since, filter.until, limit],
    )
    .await?
    .iter()
    .map(|row| {
        Ok(AuditEntry {
            id: row.int("id")?,
            actor: row.text("actor")?,
            credential: row.opt_text("credential")?,
            action: row.text("action")?,
            target: row.text("target")?,
            detail: row.json("detail")?,
            created: row.int("created")?,
        })
    })
    .collect()
}
