//! Lists for the pages: sets and judgments with their prompts, filtered and paged in SQL, each page in a fixed number
//! of statements; names of entities by their ids.

use std::collections::HashMap;

use super::rows::{Arg, Conn, Row, args, not_found, placeholders};
use super::searches::Table;
use super::*;

/// Filter of a list of sets. Empty = all.
#[derive(Clone, Debug, Default)]
pub struct SetFilter {
    pub project: Option<ProjectId>,
    pub status: Option<SetStatus>,
    pub kind: Option<SetKind>,
    pub policy: Option<String>,
    /// Text in the prompt.
    pub text: Option<String>,
    /// Only sets judged by this labeler.
    pub labeler_id: Option<LabelerId>,
    /// Only sets on which two people order some pair of answers differently.
    pub disputed: bool,
    /// Only open sets that no active labeler can judge any more.
    pub stuck: bool,
}

/// A set as a list shows it.
#[derive(Clone, Debug)]
pub struct SetRow {
    pub set: ComparisonSet,
    pub messages: Vec<Message>,
    /// Number of people who judged, and of those who skipped.
    pub judged: i64,
    pub skipped: i64,
    /// Current leases.
    pub held: i64,
    /// Number of answers that end at the length limit.
    pub cut_off: i64,
}

/// Filter of a list of judgments. Empty = all; superseded ones are never listed.
#[derive(Clone, Debug, Default)]
pub struct JudgmentFilter {
    pub labeler_id: Option<LabelerId>,
    pub set_id: Option<SetId>,
    pub kind: Option<SetKind>,
    pub outcome: Option<Outcome>,
    /// Text in the prompt or in the rationale.
    pub text: Option<String>,
    /// Only sets of this project.
    pub project: Option<ProjectId>,
}

/// A judgment as a list shows it.
#[derive(Clone, Debug)]
pub struct JudgmentRow {
    pub id: JudgmentId,
    pub set_id: SetId,
    pub kind: SetKind,
    pub labeler_id: LabelerId,
    pub labeler: String,
    pub revision: i64,
    pub outcome: Outcome,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    /// Active time, ms; 0 when it is not known.
    pub active_ms: i64,
    pub created: Micros,
    pub messages: Vec<Message>,
    /// (completion, tier, shown position), in shown order.
    pub items: Vec<(CompletionId, i64, i64)>,
}

/// Kind and name of the entity with an id.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Named {
    /// `labeler`, `model`, `key`, `invite`, `dataset`, `job`, `draw` or `set`.
    pub kind: String,
    /// The name, the kind of a job, the policy of a draw.
    pub name: String,
    /// For sets: the prompt.
    #[serde(skip)]
    pub messages: Vec<Message>,
}

/// The judgment `j` is not superseded by a later revision.
const LATEST: &str = "NOT EXISTS (SELECT 1 FROM judgments n WHERE n.supersedes_id = j.id)";

/// `text` as a pattern for LIKE that finds it anywhere, with `\` as the escape character.
fn pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// Whether a message of the prompt `p` matches the pattern `$n`. Only contents are searched: the names of roles are in
/// every prompt. SQLite's LIKE ignores the case of ASCII letters, ILIKE of all.
fn prompt_holds(conn: &Conn, n: usize) -> String {
    if conn.is_postgres() {
        format!(
            "EXISTS (SELECT 1 FROM jsonb_array_elements(p.messages) AS m (body)
                 WHERE m.body ->> 'content' ILIKE ${n} ESCAPE '\\')"
        )
    } else {
        format!(
            "EXISTS (SELECT 1 FROM json_each(p.messages) AS m
                 WHERE json_extract(m.value, '$.content') LIKE ${n} ESCAPE '\\')"
        )
    }
}

/// The conditions that apply, joined by AND. Those that do not would hide from the database which index fits, and their
/// tables would be read in vain.
fn conditions<const N: usize>(all: [(bool, &str); N]) -> String {
    let applying = all.into_iter().filter(|(applies, _)| *applies).map(|(_, condition)| condition);
    std::iter::once("1 = 1").chain(applying).collect::<Vec<_>>().join(" AND ")
}

async fn total(conn: &mut Conn, sql: String, args: Vec<Arg>) -> Result<i64> {
    conn.all_built(sql, args).await?.first().map_or(Ok(0), |row| row.int("n"))
}

/// Rows of a table by the id they belong to.
async fn by_id<T>(
    conn: &mut Conn,
    sql: &str,
    ids: &[String],
    key: &str,
    value: impl Fn(&Row) -> Result<T>,
) -> Result<HashMap<String, Vec<T>>> {
    let mut found: HashMap<String, Vec<T>> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let sql = sql.replace("{ids}", &placeholders(1, ids.len()));
    for row in &conn.all_built(sql, ids.iter().map(Arg::from).collect()).await? {
        found.entry(row.text(key)?).or_default().push(value(row)?);
    }
    Ok(found)
}

// ---------------------------------------------------------------- sets

const PROMPT_OF_SET: &str = "JOIN prompts p ON p.id = s.prompt_id";

/// Two people whose current rankings order a pair of the answers of `s` differently. With the offset PostgreSQL looks at the
/// sets of a part one by one; without, it joins all judgments first.
const DISPUTED: &str = "EXISTS (SELECT 1 FROM judgments j
    JOIN judgments k ON k.set_id = j.set_id AND k.labeler_id > j.labeler_id AND k.outcome = 'ranked'
    JOIN judgment_items ja ON ja.judgment_id = j.id
    JOIN judgment_items jb ON jb.judgment_id = j.id AND jb.completion_id > ja.completion_id
    JOIN judgment_items ka ON ka.judgment_id = k.id AND ka.completion_id = ja.completion_id
    JOIN judgment_items kb ON kb.judgment_id = k.id AND kb.completion_id = jb.completion_id
    WHERE j.set_id = s.id AND j.outcome = 'ranked'
      AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.supersedes_id = j.id OR n.supersedes_id = k.id)
      AND CASE WHEN ja.tier < jb.tier THEN -1 WHEN ja.tier > jb.tier THEN 1 ELSE 0 END
          <> CASE WHEN ka.tier < kb.tier THEN -1 WHEN ka.tier > kb.tier THEN 1 ELSE 0 END
    LIMIT 1 OFFSET 0)";

impl SetFilter {
    /// Whether no index answers the filter, so that sets have to be looked at one by one.
    pub fn is_search(&self) -> bool {
        self.text.is_some() || self.disputed
    }

    /// The conditions on the set `s` and its prompt `p`, for the arguments of [`Self::args`].
    fn conditions(&self, conn: &Conn) -> String {
        conditions([
            (self.status.is_some(), "s.status = $2"),
            (self.kind.is_some(), "s.kind = $3"),
            (self.policy.is_some(), "s.selection_policy = $4"),
            (self.text.is_some(), &prompt_holds(conn, 5)),
            (
                self.labeler_id.is_some(),
                "EXISTS (SELECT 1 FROM judgments j WHERE j.set_id = s.id AND j.labeler_id = $6)",
            ),
            (self.project.is_some(), "s.project_id = $7"),
            (self.disputed, DISPUTED),
            (self.stuck, &format!("({})", leases::STUCK)),
        ])
    }

    fn args(&self, now: Micros) -> Vec<Arg> {
        args![
            now,
            self.status.map(SetStatus::as_str),
            self.kind.map(SetKind::as_str),
            self.policy.as_deref(),
            self.text.as_deref().map(pattern).as_deref(),
            self.labeler_id.as_ref().map(LabelerId::as_str),
            self.project.as_ref().map(ProjectId::as_str)
        ]
    }
}

pub(super) async fn sets_page(
    conn: &mut Conn,
    filter: &SetFilter,
    page: &Page,
    now: Micros,
) -> Result<(Vec<SetRow>, i64)> {
    let prompts = if filter.text.is_some() { PROMPT_OF_SET } else { "" };
    let fits = filter.conditions(conn);
    let sql = format!("SELECT COUNT(*) AS n FROM comparison_sets s {prompts} WHERE {fits}");
    let total = total(conn, sql, filter.args(now)).await?;
    Ok((set_rows(conn, filter, page, None, now).await?, total))
}

pub(super) async fn search_sets(
    conn: &mut Conn,
    filter: &SetFilter,
    part: &Part,
    now: Micros,
) -> Result<(Vec<SetRow>, Option<PartEnd>)> {
    let end = searches::end(conn, Table::Sets, part).await?;
    let page = Page { after: part.after.clone(), limit: part.limit };
    Ok((set_rows(conn, filter, &page, end.as_ref(), now).await?, end))
}

/// The sets of a page that are not older than `end`.
async fn set_rows(
    conn: &mut Conn,
    filter: &SetFilter,
    page: &Page,
    end: Option<&PartEnd>,
    now: Micros,
) -> Result<Vec<SetRow>> {
    let fits = filter.conditions(conn);
    let mut paged = filter.args(now);
    paged.extend(args![&page.after, page.limit, end.map(|end| end.id.as_str())]);
    let rows = conn
        .all_built(
            format!(
                "SELECT s.*, p.messages AS messages,
                        (SELECT COUNT(*) FROM judgments j WHERE j.set_id = s.id AND j.outcome <> 'skip' AND {LATEST})
                            AS judged,
                        (SELECT COUNT(*) FROM judgments j WHERE j.set_id = s.id AND j.outcome = 'skip' AND {LATEST})
                            AS skipped,
                        (SELECT COUNT(*) FROM assignments a WHERE a.set_id = s.id AND a.state = 'leased'
                            AND a.expires_at > $1) AS held,
                        (SELECT COUNT(*) FROM set_items i JOIN completions c ON c.id = i.completion_id
                            WHERE i.set_id = s.id AND c.finish_reason = 'length') AS cut_off
                 FROM comparison_sets s {PROMPT_OF_SET}
                 WHERE {fits} AND s.id < COALESCE($8, '~') AND s.id >= COALESCE($10, '')
                 ORDER BY s.id DESC LIMIT $9"
            ),
            paged,
        )
        .await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Result<Vec<_>>>()?;
    let mut items = by_id(
        conn,
        "SELECT set_id, completion_id FROM set_items WHERE set_id IN ({ids}) ORDER BY set_id, position",
        &ids,
        "set_id",
        |row| row.text("completion_id").map(CompletionId::from),
    )
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for (row, id) in rows.iter().zip(&ids) {
        found.push(SetRow {
            set: sets::set(row, items.remove(id).unwrap_or_default())?,
            messages: row.json("messages")?,
            judged: row.int("judged")?,
            skipped: row.int("skipped")?,
            held: row.int("held")?,
            cut_off: row.int("cut_off")?,
        });
    }
    Ok(found)
}

pub(super) async fn set_prompts(conn: &mut Conn, ids: &[SetId]) -> Result<HashMap<SetId, Vec<Message>>> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let sql = "SELECT s.id, p.messages FROM comparison_sets s JOIN prompts p ON p.id = s.prompt_id
               WHERE s.id IN ({ids})";
    let found = by_id(conn, sql, &ids, "id", |row| row.json("messages")).await?;
    Ok(found.into_iter().filter_map(|(id, messages)| Some((id.into(), messages.into_iter().next()?))).collect())
}

pub(super) async fn retire_sets(conn: &mut Conn, ids: &[SetId]) -> Result<()> {
    for id in ids {
        let changed =
            conn.run("UPDATE comparison_sets SET status = 'retired' WHERE id = $1", args![id.as_str()]).await?;
        if changed == 0 {
            return Err(not_found("comparison set", id.as_str()));
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- judgments

impl JudgmentFilter {
    /// Whether no index answers the filter, so that judgments have to be looked at one by one.
    pub fn is_search(&self) -> bool {
        self.text.is_some()
    }

    /// The conditions on the judgment `j`, its set `s` and the prompt `p`, for the arguments of [`Self::args`].
    fn conditions(&self, conn: &Conn) -> String {
        let holds = prompt_holds(conn, 5);
        let like = if conn.is_postgres() { "ILIKE" } else { "LIKE" };
        conditions([
            (self.labeler_id.is_some(), "j.labeler_id = $1"),
            (self.set_id.is_some(), "j.set_id = $2"),
            (self.kind.is_some(), "s.kind = $3"),
            (self.outcome.is_some(), "j.outcome = $4"),
            (self.text.is_some(), &format!("(j.rationale {like} $5 ESCAPE '\\' OR {holds})")),
            (self.project.is_some(), "s.project_id = $6"),
        ])
    }

    fn args(&self) -> Vec<Arg> {
        args![
            self.labeler_id.as_ref().map(LabelerId::as_str),
            self.set_id.as_ref().map(SetId::as_str),
            self.kind.map(SetKind::as_str),
            self.outcome.map(Outcome::as_str),
            self.text.as_deref().map(pattern).as_deref(),
            self.project.as_ref().map(ProjectId::as_str)
        ]
    }
}

const SET_OF_JUDGMENT: &str = "JOIN comparison_sets s ON s.id = j.set_id";

pub(super) async fn judgments_page(
    conn: &mut Conn,
    filter: &JudgmentFilter,
    page: &Page,
) -> Result<(Vec<JudgmentRow>, i64)> {
    let fits = filter.conditions(conn);
    let joined = match filter {
        JudgmentFilter { text: Some(_), .. } => format!("{SET_OF_JUDGMENT} {PROMPT_OF_SET}"),
        JudgmentFilter { kind: Some(_), .. } | JudgmentFilter { project: Some(_), .. } => SET_OF_JUDGMENT.to_owned(),
        _ => String::new(),
    };
    // A judgment and the one that supersedes it have one set and one labeler, so that a filter finds both or neither,
    // unless it looks at what was said.
    let (count, latest) = match filter.outcome.is_some() || filter.text.is_some() {
        true => ("COUNT(*)", LATEST),
        false => ("COUNT(*) - COUNT(j.supersedes_id)", "1 = 1"),
    };
    let sql = format!("SELECT {count} AS n FROM judgments j {joined} WHERE {fits} AND {latest}");
    let total = total(conn, sql, filter.args()).await?;
    Ok((judgment_rows(conn, filter, page, None).await?, total))
}

pub(super) async fn search_judgments(
    conn: &mut Conn,
    filter: &JudgmentFilter,
    part: &Part,
) -> Result<(Vec<JudgmentRow>, Option<PartEnd>)> {
    let end = searches::end(conn, Table::Judgments, part).await?;
    let page = Page { after: part.after.clone(), limit: part.limit };
    Ok((judgment_rows(conn, filter, &page, end.as_ref()).await?, end))
}

/// The current judgments of a page that are not older than `end`.
async fn judgment_rows(
    conn: &mut Conn,
    filter: &JudgmentFilter,
    page: &Page,
    end: Option<&PartEnd>,
) -> Result<Vec<JudgmentRow>> {
    let fits = filter.conditions(conn);
    let mut paged = filter.args();
    paged.extend(args![&page.after, page.limit, end.map(|end| end.id.as_str())]);
    let rows = conn
        .all_built(
            format!(
                "SELECT j.id, j.set_id, j.labeler_id, j.revision, j.outcome, j.strength, j.rationale, j.active_ms,
                        j.created, s.kind, l.name AS labeler, p.messages
                 FROM judgments j {SET_OF_JUDGMENT} {PROMPT_OF_SET} JOIN labelers l ON l.id = j.labeler_id
                 WHERE {fits} AND {LATEST} AND j.id < COALESCE($7, '~') AND j.id >= COALESCE($9, '')
                 ORDER BY j.id DESC LIMIT $8"
            ),
            paged,
        )
        .await?;
    let ids = rows.iter().map(|row| row.text("id")).collect::<Result<Vec<_>>>()?;
    let mut items = by_id(
        conn,
        "SELECT judgment_id, completion_id, tier, shown_position FROM judgment_items WHERE judgment_id IN ({ids})
         ORDER BY judgment_id, shown_position, completion_id",
        &ids,
        "judgment_id",
        |row| Ok((row.text("completion_id")?.into(), row.int("tier")?, row.int("shown_position")?)),
    )
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for (row, id) in rows.iter().zip(ids) {
        found.push(JudgmentRow {
            items: items.remove(&id).unwrap_or_default(),
            id: id.into(),
            set_id: row.text("set_id")?.into(),
            kind: row.name("kind", SetKind::parse)?,
            labeler_id: row.text("labeler_id")?.into(),
            labeler: row.text("labeler")?,
            revision: row.int("revision")?,
            outcome: row.name("outcome", Outcome::parse)?,
            strength: row.opt_name("strength", Strength::parse)?,
            rationale: row.opt_text("rationale")?,
            active_ms: row.int("active_ms")?,
            created: row.int("created")?,
            messages: row.json("messages")?,
        });
    }
    Ok(found)
}

// ---------------------------------------------------------------- names

pub(super) async fn names_of(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, Named>> {
    let policy = if conn.is_postgres() { "request ->> 'policy'" } else { "json_extract(request, '$.policy')" };
    let sql = format!(
        "SELECT 'labeler' AS kind, id, name FROM labelers WHERE id IN ({{ids}})
         UNION ALL SELECT 'model', id, name FROM model_versions WHERE id IN ({{ids}})
         UNION ALL SELECT 'key', id, name FROM api_keys WHERE id IN ({{ids}})
         UNION ALL SELECT 'invite', id, COALESCE(note, '') FROM invites WHERE id IN ({{ids}})
         UNION ALL SELECT 'dataset', id, COALESCE(name, '') FROM dataset_versions WHERE id IN ({{ids}})
         UNION ALL SELECT 'job', id, kind FROM jobs WHERE id IN ({{ids}})
         UNION ALL SELECT 'draw', id, COALESCE({policy}, '') FROM set_draws WHERE id IN ({{ids}})"
    );
    let named = |row: &Row| Ok(Named { kind: row.text("kind")?, name: row.text("name")?, messages: Vec::new() });
    let found = by_id(conn, &sql, ids, "id", named).await?;
    let mut names: HashMap<String, Named> =
        found.into_iter().filter_map(|(id, named)| Some((id, named.into_iter().next()?))).collect();
    let sets: Vec<SetId> = ids.iter().filter(|id| !names.contains_key(*id)).map(|id| id.clone().into()).collect();
    for (id, messages) in set_prompts(conn, &sets).await? {
        names.insert(id.to_string(), Named { kind: "set".to_owned(), name: String::new(), messages });
    }
    Ok(names)
}
