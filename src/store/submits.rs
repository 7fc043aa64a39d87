//! Storing a judgment: facts about its set, what the transaction reads, and the script that writes it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::judgments;
use super::leases::assignment;
use super::projects::{ProjectQuota, judged_elsewhere};
use super::rows::{Arg, Conn, Row, args, not_found, without_nul};
use super::rubrics::{active_rubric, rubric};
use super::rules::{self, Decision, RevisedJudgment, Standing};
use super::settings::guidelines_of;
use super::turns::Place;
use super::{Result, StoreError, SubmitJudgment, Submitted, keys, prompts, sets};
use crate::domain::*;

/// Facts about a set before a judgment of it. They do not change while the set is in the queue, except who may judge
/// it, which the transaction checks again.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub set: ComparisonSet,
    pub assignment: Option<Assignment>,
    /// Whose request made the set.
    pub made_by: Option<LabelerId>,
    /// Why the expected answer of a calibration set is right.
    pub explanation: Option<String>,
    /// The expected tiers, best first; empty for ordinary sets.
    pub expected: Vec<(CompletionId, i64)>,
    /// The author of each completion: the version's name, or the origin.
    pub authors: BTreeMap<CompletionId, Author>,
    pub daily_quota: Option<i64>,
    /// The labeler's quota in the set's project, if they have one there.
    pub project_quota: Option<ProjectQuota>,
    /// The stored guidelines of the requested language.
    pub guidelines: Option<String>,
    /// The rubric of the requested version, or the active one.
    pub rubric: Option<Rubric>,
    /// Set and labeler of the judgment that is revised, if it exists.
    pub former: Option<(SetId, LabelerId)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    pub name: String,
    pub is_model: bool,
}

macro_rules! question_of {
    ($which:literal) => {
        concat!(
            "SELECT s.*, i.completion_id, c.origin, m.name AS model, g.expected_tier, l.daily_quota,
                 pm.daily_quota AS project_quota,
                 CASE WHEN i.position = 0 AND pm.daily_quota > 0 THEN ",
            judged_elsewhere!("$2", "s.project_id", "$6"),
            " ELSE 0 END AS judged_elsewhere,
                 f.set_id AS former_set, f.labeler_id AS former_labeler,
                 a.id AS held_id, a.labeler_id AS held_by, a.state AS held_state, a.lease_token,
                 a.expires_at, a.order_seed,
                 CASE WHEN i.position = 0 THEN
                     ",
            guidelines_of!("$4", "s.project_id"),
            " END AS guidelines,
                 CASE WHEN i.position = 0 THEN u.version END AS rubric_version,
                 CASE WHEN i.position = 0 THEN u.definition END AS rubric
             FROM ",
            $which,
            " JOIN set_items i ON i.set_id = s.id
             JOIN completions c ON c.id = i.completion_id
             LEFT JOIN model_versions m ON m.id = c.model_version_id
             LEFT JOIN gold_items g ON g.set_id = i.set_id AND g.completion_id = i.completion_id
             LEFT JOIN labelers l ON l.id = $2
             LEFT JOIN project_members pm ON pm.project_id = s.project_id AND pm.labeler_id = $2
             LEFT JOIN judgments f ON f.id = $3
             LEFT JOIN rubrics u ON u.version = COALESCE($5, ",
            active_rubric!("version", "s.project_id"),
            ")
             WHERE s.id IS NOT NULL ORDER BY i.position"
        )
    };
}

pub(super) async fn question(
    conn: &mut Conn,
    place: &Place,
    labeler: &LabelerId,
    former: Option<&JudgmentId>,
    lang: Option<&str>,
    rubric_version: Option<&str>,
    since: Micros,
) -> Result<Question> {
    let former = former.map(JudgmentId::as_str);
    let (rows, missing) = match place {
        Place::Assignment(id) => {
            let sql = question_of!("assignments a JOIN comparison_sets s ON s.id = a.set_id AND a.id = $1");
            (
                conn.all(sql, args![id.as_str(), labeler.as_str(), former, lang, rubric_version, since]).await?,
                not_found("assignment", id.as_str()),
            )
        }
        Place::Set(id, held) => {
            let sql =
                question_of!("(SELECT * FROM comparison_sets WHERE id = $1) s LEFT JOIN assignments a ON a.id = $7");
            let held = held.as_ref().map(AssignmentId::as_str);
            let args = args![id.as_str(), labeler.as_str(), former, lang, rubric_version, since, held];
            (conn.all(sql, args).await?, not_found("comparison set", id.as_str()))
        }
    };
    let first = rows.first().ok_or(missing)?;
    let mut completion_ids = Vec::with_capacity(rows.len());
    let (mut authors, mut expected) = (BTreeMap::new(), Vec::new());
    for row in &rows {
        let id: CompletionId = row.text("completion_id")?.into();
        if let Some(tier) = row.opt_int("expected_tier")? {
            expected.push((id.clone(), tier));
        }
        let model = row.opt_text("model")?;
        let author = Author { is_model: model.is_some(), name: model.map_or_else(|| row.text("origin"), Ok)? };
        authors.insert(id.clone(), author);
        completion_ids.push(id);
    }
    expected.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    let assignment = match first.opt_text("held_id")? {
        None => None,
        Some(id) => Some(Assignment {
            id: id.into(),
            set_id: first.text("id")?.into(),
            labeler_id: first.text("held_by")?.into(),
            state: first.name("held_state", AssignmentState::parse)?,
            lease_token: first.text("lease_token")?,
            expires_at: first.int("expires_at")?,
            order_seed: first.int("order_seed")?.cast_unsigned(),
        }),
    };
    let former = match (first.opt_text("former_set")?, first.opt_text("former_labeler")?) {
        (Some(set), Some(labeler)) => Some((set.into(), labeler.into())),
        _ => None,
    };
    Ok(Question {
        set: sets::set(first, completion_ids)?,
        assignment,
        made_by: first.opt_text("made_by")?.map(Into::into),
        explanation: first.opt_text("explanation")?,
        expected,
        authors,
        daily_quota: first.opt_int("daily_quota")?,
        project_quota: ProjectQuota::of(first)?,
        guidelines: first.opt_text("guidelines")?,
        rubric: rubric(first)?,
        former,
    })
}

// ---------------------------------------------------------------- inside the transaction

/// Everything that decides about a judgment of the set `s`, in one row. `$ids` gives a set's completions as JSON, and
/// `$texts` the texts that were stored with the judgment `r`, which have its time. The other parameters are SQL expressions
/// of the judgment's facts. The judgments `r` (with its idempotency key) and `f` (that it revises) and the assignment `a`
/// are joined by `$from`.
macro_rules! standing_of {
    (ids = $ids:literal, texts = $texts:literal, now = $now:literal, set = $set:literal, labeler = $labeler:literal,
     since = $since:literal, $from:expr) => {
        concat!(
            "SELECT s.status, s.target_overlap, s.prompt_id, (SELECT ",
            $ids,
            " FROM set_items i WHERE i.set_id = s.id) AS completion_ids,
               r.id AS replay_id, r.set_id AS replay_set, r.labeler_id AS replay_labeler, (SELECT ",
            $texts,
            " FROM demonstrations d JOIN completions c ON c.id = d.completion_id
                 WHERE d.created = r.created AND d.labeler_id = r.labeler_id AND d.prompt_id = s.prompt_id)
                   AS replay_texts,
               f.id AS former_id, f.set_id AS former_set, f.labeler_id AS former_labeler,
               f.assignment_id AS former_assignment, f.revision AS former_revision,
               a.id, a.set_id, a.labeler_id, a.state, a.lease_token, a.expires_at, a.order_seed, ",
            $crate::store::leases::held!($labeler, $now),
            " AS holds, ",
            $crate::store::leases::taken_by_others!($labeler, $now),
            " AS taken,
               (SELECT COUNT(*) FROM judgments w WHERE w.labeler_id = ",
            $labeler,
            " AND w.created >= ",
            $since,
            " AND ",
            $crate::store::judgments::work_done!(),
            ") AS today,
               (SELECT MAX(o.revision) FROM judgments o WHERE o.set_id = ",
            $set,
            " AND o.labeler_id = ",
            $labeler,
            ") AS revision,
               EXISTS (SELECT 1 FROM reveals v WHERE v.set_id = ",
            $set,
            " AND v.labeler_id = ",
            $labeler,
            " AND v.what = 'answer') AS shown_answer,
               EXISTS (SELECT 1 FROM reveals v WHERE v.set_id = ",
            $set,
            " AND v.labeler_id = ",
            $labeler,
            " AND v.what = 'authors') AS shown_authors,
               EXISTS (SELECT 1 FROM set_items x JOIN set_items y ON y.completion_id = x.completion_id
                   JOIN reveals v ON v.set_id = y.set_id AND v.labeler_id = ",
            $labeler,
            " AND v.what = 'authors' WHERE x.set_id = ",
            $set,
            ") AS knows_authors,
               (SELECT COUNT(*) FROM judgments j WHERE j.set_id = ",
            $set,
            " AND j.labeler_id <> ",
            $labeler,
            " AND j.outcome <> 'skip' AND ",
            $crate::store::judgments::current!(),
            ") AS others,
               (SELECT j.outcome FROM judgments j WHERE j.set_id = ",
            $set,
            " AND j.labeler_id = ",
            $labeler,
            " AND ",
            $crate::store::judgments::current!(),
            ") AS own,
               EXISTS (SELECT 1 FROM resolutions u WHERE u.set_id = ",
            $set,
            " AND u.reviewer_id = ",
            $labeler,
            ") AS settles",
            $from
        )
    };
}
pub(super) use standing_of;

const STANDING: &str = standing_of!(
    ids = "json_group_array(i.completion_id)",
    texts = "json_group_array(json_array(c.parent_completion_id, c.text))",
    now = "$1",
    set = "$2",
    labeler = "$3",
    since = "$7",
    " FROM comparison_sets s
      LEFT JOIN judgments r ON r.idempotency_key = $4
      LEFT JOIN judgments f ON f.id = $6
      LEFT JOIN assignments a ON a.id = CASE WHEN $6 IS NULL THEN $5 ELSE f.assignment_id END
      WHERE s.id = $2"
);

fn standing(row: &Row) -> Result<Standing> {
    let former = match row.opt_text("former_id")? {
        None => None,
        Some(_) => Some(RevisedJudgment {
            set_id: row.text("former_set")?.into(),
            labeler_id: row.text("former_labeler")?.into(),
            assignment_id: row.opt_text("former_assignment")?.map(Into::into),
            revision: row.int("former_revision")?,
        }),
    };
    let assignment = match row.opt_text("id")? {
        None => None,
        Some(_) => Some(assignment(row)?),
    };
    let mut revealed = Vec::new();
    for (column, what) in [("shown_answer", Knowledge::Answer), ("shown_authors", Knowledge::Authors)] {
        if row.flag(column)? {
            revealed.push(what);
        }
    }
    Ok(Standing {
        status: row.name("status", SetStatus::parse)?,
        overlap: row.int("target_overlap")?,
        completion_ids: row.opt_json("completion_ids")?.unwrap_or_default(),
        former,
        assignment,
        holds: row.flag("holds")?,
        taken: row.int("taken")?,
        today: row.int("today")?,
        revision: row.opt_int("revision")?,
        revealed,
        knows_authors: row.flag("knows_authors")?,
        others: row.int("others")?,
        own: row.opt_name("own", Outcome::parse)?,
        settles: row.flag("settles")?,
    })
}

/// Stores a judgment on SQLite, or returns the one with its idempotency key. [`super::many_submits`] does it on
/// PostgreSQL.
pub(super) async fn submit(conn: &mut Conn, submit: &SubmitJudgment) -> Result<Submitted> {
    let given = &submit.judgment;
    let args = args![
        submit.now,
        given.set_id.as_str(),
        given.labeler_id.as_str(),
        &given.idempotency_key,
        given.assignment_id.as_ref().map(AssignmentId::as_str),
        given.supersedes_id.as_ref().map(JudgmentId::as_str),
        submit.quota.map(|(since, _)| since)
    ];
    let row = conn.one(STANDING, args).await?.ok_or_else(|| not_found("comparison set", given.set_id.as_str()))?;
    match consider(&row, submit, false)? {
        Considered::Replay(earlier) => earlier.replayed(conn, submit, false).await,
        Considered::New(new) => {
            write(conn, &new, submit.now).await?;
            Ok(new.submitted())
        }
    }
}

/// What is to be done about a submitted judgment.
pub(super) enum Considered {
    /// Its idempotency key is that of a stored judgment of the same set and labeler.
    Replay(Earlier),
    New(Box<NewJudgment>),
}

/// A judgment that was stored under an idempotency key.
pub(super) struct Earlier {
    id: JudgmentId,
    /// The texts that the labeler wrote with it.
    texts: Texts,
    /// What has been revealed to the labeler about the set.
    revealed: Vec<Knowledge>,
}

/// A judgment to store, with its effects.
pub(super) struct NewJudgment {
    pub decision: Decision,
    /// Texts that the labeler wrote with it, each of which becomes a demonstration.
    pub texts: Vec<Completion>,
    /// What had been revealed to the labeler about the set before.
    revealed: Vec<Knowledge>,
}

/// Decides by a row of `standing_of!`.
///
/// # Errors
/// `KeyReused` for a key of another set or labeler; `Conflict`, `LeaseLost` or `NotFound` by the rules.
pub(super) fn consider(row: &Row, submit: &SubmitJudgment, postgres: bool) -> Result<Considered> {
    let (found, given) = (standing(row)?, &submit.judgment);
    if let Some(id) = row.opt_text("replay_id")? {
        if (row.text("replay_set")?.as_str(), row.text("replay_labeler")?.as_str())
            != (given.set_id.as_str(), given.labeler_id.as_str())
        {
            return Err(StoreError::KeyReused(OTHER_JUDGMENT));
        }
        let mut texts: Texts = row.opt_json("replay_texts")?.unwrap_or_default();
        texts.sort();
        return Ok(Considered::Replay(Earlier { id: id.into(), texts, revealed: found.revealed }));
    }
    let mut decision = rules::decide(&found, submit)?;
    as_kept(&mut decision.judgment, postgres);
    let prompt_id: PromptId = row.text("prompt_id")?.into();
    let texts = submit.ideal_answer.iter().chain(&submit.corrections).cloned();
    let texts = texts.map(|c| Completion { prompt_id: prompt_id.clone(), text: without_nul(c.text), ..c }).collect();
    Ok(Considered::New(Box::new(NewJudgment { decision, texts, revealed: found.revealed })))
}

impl Earlier {
    /// The result of a repeated submission.
    ///
    /// # Errors
    /// `KeyReused` if the stored judgment says something else.
    pub(super) async fn replayed(self, conn: &mut Conn, submit: &SubmitJudgment, postgres: bool) -> Result<Submitted> {
        let stored = judgments::get(conn, &self.id).await?;
        let mut given = submit.judgment.clone();
        as_kept(&mut given, postgres);
        if !says_the_same(&given, &stored) || self.texts != texts_of(submit) {
            return Err(StoreError::KeyReused(OTHER_JUDGMENT));
        }
        Ok(Submitted { judgment: stored, replayed: true, revealed: self.revealed })
    }
}

/// What a refused key was used for.
const OTHER_JUDGMENT: &str = "another judgment";

/// Whether two judgments of one set by one labeler say the same. Times, versions of guidelines and rubric, and the
/// judgment that is revised do not matter: the server fills some of them in when a request does not have them.
fn says_the_same(a: &Judgment, b: &Judgment) -> bool {
    let items = |j: &Judgment| {
        let mut items: Vec<_> = j.items.iter().map(|i| (i.completion_id.clone(), i.tier, i.rating)).collect();
        items.sort();
        items
    };
    let marks = |j: &Judgment| {
        let mut marks: Vec<_> =
            j.spans.iter().map(|s| (s.completion_id.clone(), s.start, s.end, s.note.clone())).collect();
        marks.sort();
        marks
    };
    (a.outcome, a.strength, &a.rationale, &a.flags) == (b.outcome, b.strength, &b.rationale, &b.flags)
        && a.ratings == b.ratings
        && items(a) == items(b)
        && marks(a) == marks(b)
}

/// The texts that a labeler wrote with a judgment, each with the completion that it corrects, sorted.
type Texts = Vec<(Option<CompletionId>, String)>;

fn texts_of(submit: &SubmitJudgment) -> Texts {
    let texts = submit.ideal_answer.iter().chain(&submit.corrections);
    let mut texts: Texts = texts.map(|c| (c.parent_completion_id.clone(), without_nul(c.text.clone()))).collect();
    texts.sort();
    texts
}

impl NewJudgment {
    /// The result of the submission after the judgment was stored.
    pub(super) fn submitted(self) -> Submitted {
        let (mut judgment, mut revealed) = (self.decision.judgment, self.revealed);
        revealed.extend(&self.decision.reveals);
        judgment.items.sort_by(|a, b| (a.shown_position, &a.completion_id).cmp(&(b.shown_position, &b.completion_id)));
        Submitted { judgment, replayed: false, revealed }
    }
}

/// The texts as they are stored, so that the response equals them: neither Postgres nor JSON in SQLite, which flags
/// and spans use, can hold U+0000.
fn as_kept(j: &mut Judgment, postgres: bool) {
    let kept = |text: &mut String| *text = without_nul(std::mem::take(text));
    if postgres {
        kept(&mut j.idempotency_key);
        j.rationale.iter_mut().for_each(kept);
        j.guideline_version.iter_mut().for_each(kept);
    }
    for flag in &mut j.flags {
        kept(&mut flag.code);
        flag.note.iter_mut().for_each(kept);
    }
    j.spans.iter_mut().filter_map(|span| span.note.as_mut()).for_each(kept);
}

const WRITE: &str = "
    INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength,
        rationale, active_ms, wall_ms, guideline_version, idempotency_key, created, knowledge, rubric_version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $23);
    INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position, rating)
    SELECT $1, e.value ->> 0, CAST(e.value ->> 1 AS BIGINT), CAST(e.value ->> 2 AS BIGINT),
        CAST(e.value ->> 3 AS BIGINT) FROM json_each($16) AS e;
    INSERT INTO judgment_flags (judgment_id, position, completion_id, code, note)
    SELECT $1, CAST(e.value ->> 0 AS BIGINT), e.value ->> 1, e.value ->> 2, e.value ->> 3
    FROM json_each($17) AS e;
    INSERT INTO judgment_ratings (judgment_id, completion_id, dimension, value)
    SELECT $1, e.value ->> 0, e.value ->> 1, e.value -> 2 FROM json_each($24) AS e;
    INSERT INTO judgment_spans (judgment_id, completion_id, start_char, end_char, note)
    SELECT $1, e.value ->> 0, CAST(e.value ->> 1 AS BIGINT), CAST(e.value ->> 2 AS BIGINT), e.value ->> 3
    FROM json_each($25) AS e;
    UPDATE assignments SET state = $19 WHERE id = $18;
    INSERT INTO reveals (set_id, labeler_id, what, created)
    SELECT $3, $4, e.value ->> 0, $21 FROM json_each($20) AS e WHERE $3 IS NOT NULL ON CONFLICT DO NOTHING;
    INSERT INTO completions (id, prompt_id, model_version_id, origin, parent_completion_id, text, token_ids, logprobs,
        sampling, seed, finish_reason, request_id, reward, created)
    SELECT e.value ->> 'id', e.value ->> 'prompt_id', NULL, e.value ->> 'origin', e.value ->> 'parent',
        e.value ->> 'text', unhex(e.value ->> 'token_ids'), unhex(e.value ->> 'logprobs'), e.value -> 'sampling', NULL,
        NULL, NULL, NULL, CAST(e.value ->> 'created' AS BIGINT) FROM json_each($26) AS e;
    INSERT INTO demonstrations (prompt_id, completion_id, labeler_id, created, text_key)
    SELECT e.value ->> 'prompt_id', e.value ->> 'id', $4, $21, e.value ->> 'text_key' FROM json_each($26) AS e;
    UPDATE comparison_sets SET status = $22 WHERE id = $3 AND $22 IS NOT NULL AND status <> 'retired'";

/// The lists of a judgment as arrays of rows in JSON.
pub(super) struct Lists {
    pub items: Value,
    pub flags: Value,
    pub ratings: Value,
    pub spans: Value,
    pub reveals: Value,
}

pub(super) fn lists(decision: &Decision) -> Lists {
    let j = &decision.judgment;
    let items = j.items.iter().map(|i| json!([i.completion_id, i.tier, i.shown_position, i.rating]));
    let flags = (0i64..).zip(&j.flags).map(|(n, f)| json!([n, f.completion_id, f.code, f.note]));
    let ratings = j.ratings.iter().map(|r| json!([r.completion_id, r.dimension, r.value]));
    let spans = j.spans.iter().map(|s| json!([s.completion_id, s.start, s.end, s.note]));
    let reveals = decision.reveals.iter().map(|what| json!([what.as_str()]));
    Lists {
        items: items.collect(),
        flags: flags.collect(),
        ratings: ratings.collect(),
        spans: spans.collect(),
        reveals: reveals.collect(),
    }
}

/// Texts that the labeler wrote, as a JSON list of completions with their bytes in hexadecimal.
pub(super) fn written(texts: &[Completion]) -> Value {
    let one = |c: &Completion| {
        json!({
            "id": c.id,
            "prompt_id": c.prompt_id,
            "origin": c.origin.as_str(),
            "parent": c.parent_completion_id,
            "text": c.text,
            "token_ids": hex::encode(prompts::pack(&c.token_ids, u32::to_le_bytes)),
            "logprobs": hex::encode(prompts::pack(&c.logprobs, f32::to_le_bytes)),
            "sampling": c.sampling,
            "created": c.created,
            "text_key": keys::text_key(&c.text),
        })
    };
    texts.iter().map(one).collect()
}

/// Writes a judgment with its effects, as one script.
async fn write(conn: &mut Conn, new: &NewJudgment, now: Micros) -> Result<()> {
    let decision = &new.decision;
    let j = &decision.judgment;
    let lists = lists(decision);
    let args: Vec<Arg> = args![
        j.id.as_str(),
        j.assignment_id.as_ref().map(AssignmentId::as_str),
        j.set_id.as_str(),
        j.labeler_id.as_str(),
        j.revision,
        j.supersedes_id.as_ref().map(JudgmentId::as_str),
        j.outcome.as_str(),
        j.strength.map(Strength::as_str),
        &j.rationale,
        j.active_ms,
        j.wall_ms,
        &j.guideline_version,
        &j.idempotency_key,
        j.created,
        j.knowledge.as_str(),
        lists.items,
        lists.flags,
        decision.place.as_ref().map(|(id, _)| id.as_str()),
        decision.place.as_ref().map(|(_, state)| state.as_str()),
        lists.reveals,
        now,
        decision.status.map(SetStatus::as_str),
        &j.rubric_version,
        lists.ratings,
        lists.spans,
        written(&new.texts)
    ];
    conn.run(WRITE, args).await.map(drop)
}
