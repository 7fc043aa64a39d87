//! Queries for signing in (personal links, keys in use), and the removal of erased rows from the database's files.

use super::rows::{Conn, Row, args, not_found};
use super::sql::{Store, read, write};
use super::*;

fn link(row: &Row) -> Result<SignInLink> {
    Ok(SignInLink {
        id: row.text("id")?.into(),
        labeler_id: row.text("labeler_id")?.into(),
        token_hash: row.text("token_hash")?,
        state: row.name("state", LinkState::parse)?,
        expires: row.opt_int("expires")?,
        used: row.opt_int("used")?,
        created: row.int("created")?,
    })
}

/// Ends the active link of a person; returns its id.
async fn end(conn: &mut Conn, labeler: &LabelerId, state: LinkState) -> Result<Option<String>> {
    let row = conn
        .one(
            "UPDATE sign_in_links SET state = $2 WHERE labeler_id = $1 AND state = 'active' RETURNING id",
            args![labeler.as_str(), state.as_str()],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let id = row.text("id")?;
    let opened = format!("link:{id}");
    conn.run("DELETE FROM sessions WHERE credential = $1", args![&opened]).await?;
    Ok(Some(id))
}

pub(super) async fn put_link(conn: &mut Conn, new: &SignInLink) -> Result<()> {
    let owner = super::people::get_labeler(conn, &new.labeler_id).await?;
    if !owner.active {
        return Err(StoreError::Conflict(format!("{} may not sign in; activate the labeler first", owner.name)));
    }
    end(conn, &new.labeler_id, LinkState::Replaced).await?;
    conn.run(
        "INSERT INTO sign_in_links (id, labeler_id, token_hash, state, expires, used, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![
            new.id.as_str(),
            new.labeler_id.as_str(),
            &new.token_hash,
            new.state.as_str(),
            new.expires,
            new.used,
            new.created
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn one(conn: &mut Conn, sql: &'static str, value: &str) -> Result<Option<SignInLink>> {
    conn.one(sql, args![value]).await?.as_ref().map(link).transpose()
}

pub(super) async fn list(conn: &mut Conn) -> Result<Vec<SignInLink>> {
    let sql = "SELECT * FROM sign_in_links WHERE state = 'active' ORDER BY created, id";
    conn.all(sql, vec![]).await?.iter().map(link).collect()
}

pub(super) async fn touch(conn: &mut Conn, id: &LinkId, now: Micros) -> Result<()> {
    conn.run("UPDATE sign_in_links SET used = $2 WHERE id = $1", args![id.as_str(), now]).await?;
    Ok(())
}

pub(super) async fn revoke(conn: &mut Conn, labeler: &LabelerId) -> Result<()> {
    let ended = end(conn, labeler, LinkState::Revoked).await?;
    ended.map(drop).ok_or_else(|| not_found("sign-in link of", labeler.as_str()))
}

/// Ends leases that end later than one that begins now: they were given by a clock that was ahead, and would hold their
/// sets until that time. Their holders get them back like any expired lease.
pub(super) async fn end_future_leases(store: &Store, longest: Micros) -> Result<()> {
    let latest = longest + people::CLOCK_SLACK;
    let sql = "SELECT COUNT(*) AS n FROM assignments WHERE state = 'leased' AND expires_at > $1";
    if read!(store, |c| c.count(sql, args![latest]))? == 0 {
        return Ok(());
    }
    tracing::warn!("leases that a clock ahead of time had given are ended");
    write!(store, |tx| expire_after(tx, latest))
}

async fn expire_after(conn: &mut Conn, latest: Micros) -> Result<()> {
    conn.run("UPDATE assignments SET state = 'expired' WHERE state = 'leased' AND expires_at > $1", args![latest])
        .await?;
    Ok(())
}

/// An open session with its person and its credential.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenSession {
    pub session: Session,
    pub person: Labeler,
    /// Whether the sign-in link that opened it is active.
    pub link_is_live: bool,
    /// The key that opened it, unless it is revoked, and that key's person.
    pub key: Option<(ApiKey, Option<Labeler>)>,
}

/// Columns of the labeler `$l`, under names that begin with it.
macro_rules! labeler_columns {
    ($l:literal) => {
        concat!(
            $l,
            ".id AS ",
            $l,
            "_id, ",
            $l,
            ".name AS ",
            $l,
            "_name, ",
            $l,
            ".role AS ",
            $l,
            "_role, ",
            $l,
            ".active AS ",
            $l,
            "_active, ",
            $l,
            ".daily_quota AS ",
            $l,
            "_quota, ",
            $l,
            ".erased AS ",
            $l,
            "_erased, ",
            $l,
            ".created AS ",
            $l,
            "_created"
        )
    };
}

fn labeler_of(row: &Row, l: &str) -> Result<Option<Labeler>> {
    let column = |name: &str| format!("{l}_{name}");
    let Some(id) = row.opt_text(&column("id"))? else { return Ok(None) };
    Ok(Some(Labeler {
        id: id.into(),
        name: row.text(&column("name"))?,
        role: row.name(&column("role"), Role::parse)?,
        active: row.flag(&column("active"))?,
        daily_quota: row.opt_int(&column("quota"))?,
        erased: row.opt_int(&column("erased"))?,
        created: row.int(&column("created"))?,
    }))
}

pub(super) async fn key_owner(conn: &mut Conn, key_hash: &str) -> Result<Option<(ApiKey, Option<Labeler>)>> {
    let sql = concat!(
        "SELECT k.*, ",
        labeler_columns!("l"),
        " FROM api_keys k LEFT JOIN labelers l ON l.id = k.labeler_id WHERE k.key_hash = $1 AND k.revoked = $2"
    );
    let row = conn.one(sql, args![key_hash, false]).await?;
    row.map(|row| Ok((people::api_key(&row)?, labeler_of(&row, "l")?))).transpose()
}

pub(super) async fn open_session(conn: &mut Conn, token_hash: &str, now: Micros) -> Result<Option<OpenSession>> {
    let sql = concat!(
        "SELECT k.*, s.token_hash, s.labeler_id AS session_labeler, s.role AS session_role, s.credential, s.used,
             s.expires, s.created AS session_created, ",
        labeler_columns!("p"),
        ", ",
        labeler_columns!("l"),
        ", EXISTS (SELECT 1 FROM sign_in_links n WHERE n.id = substr(s.credential, 6) AND n.state = 'active'
             AND s.credential LIKE 'link:%') AS link_is_live
         FROM sessions s JOIN labelers p ON p.id = s.labeler_id
         LEFT JOIN api_keys k ON k.id = s.credential AND k.revoked = $3
         LEFT JOIN labelers l ON l.id = k.labeler_id
         WHERE s.token_hash = $1 AND s.expires > $2 AND p.active = $4"
    );
    let Some(row) = conn.one(sql, args![token_hash, now, false, true]).await? else { return Ok(None) };
    let session = Session {
        token_hash: row.text("token_hash")?,
        labeler_id: row.text("session_labeler")?.into(),
        role: row.name("session_role", Role::parse)?,
        credential: row.text("credential")?,
        used: row.int("used")?,
        expires: row.int("expires")?,
        created: row.int("session_created")?,
    };
    let person = labeler_of(&row, "p")?.ok_or_else(|| not_found("labeler", session.labeler_id.as_str()))?;
    let key = match row.opt_text("id")? {
        None => None,
        Some(_) => Some((people::api_key(&row)?, labeler_of(&row, "l")?)),
    };
    Ok(Some(OpenSession { session, person, link_is_live: row.flag("link_is_live")?, key }))
}
