//! Erasing a person's data on request, in one transaction. The labeler's row stays without a name, so that the records
//! of others that refer to it stay valid.

use super::locks::PLACES;
use super::rows::{Conn, args};
use super::{Page, Result, StoreError, batches, conversations, judgments, key_maps, people, prompts, responses};
use crate::domain::*;

/// What to do with the judgments of a person whose data is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Erase {
    /// Rankings are kept with an anonymous author; written comments are removed.
    Anonymise,
    /// Judgments and demonstrations are removed too.
    Remove,
}

/// Numbers of removed or anonymized records.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Erased {
    pub judgments: u64,
    pub demonstrations: u64,
    pub feedback_events: u64,
    pub sessions: u64,
    pub keys: u64,
    pub invites: u64,
    pub links: u64,
    /// Sets that they made and that nobody else judged.
    pub sets: u64,
}

/// Data stored about a person besides judgments and audit entries.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct PersonalData {
    /// (prompt, text, when)
    pub demonstrations: Vec<(PromptId, String, Micros)>,
    /// (created, expires)
    pub sessions: Vec<(Micros, Micros)>,
    pub feedback_events: Vec<FeedbackEvent>,
    /// (id, state) of sets held or submitted.
    pub assignments: Vec<(SetId, AssignmentState)>,
    /// (set, what was shown, when)
    pub reveals: Vec<(SetId, Knowledge, Micros)>,
    /// (set, its prompt, when) of sets that they made.
    pub sets: Vec<(SetId, PromptId, Micros)>,
    /// (id, sets of its turns, when) of conversations.
    pub conversations: Vec<(ConversationId, Vec<SetId>, Micros)>,
    /// Prompts that they submitted.
    pub prompts: Vec<(PromptId, Vec<Message>)>,
    /// (set, when) of sets that they settled.
    pub resolutions: Vec<(SetId, Micros)>,
    /// (language, text, when) of guidelines that they wrote.
    pub guidelines: Vec<(String, String, Micros)>,
    /// (version, name, when) of rubrics that they stored.
    pub rubrics: Vec<(String, String, Micros)>,
    /// (version, when) of rubrics that they activated; null for none.
    pub rubric_activations: Vec<(Option<String>, Micros)>,
    /// (id, kind, name, note) of jobs that they queued.
    pub jobs: Vec<(JobId, String, Option<String>, Option<String>)>,
    /// (provider, name there, when) of systems that sign them in.
    pub identities: Vec<(String, String, Micros)>,
    /// (project, judgments a day, when) of projects that they are a member of; null for their own quota.
    pub projects: Vec<(ProjectId, Option<i64>, Micros)>,
    /// (action, key) of the labeling page's keys that they changed.
    pub key_map: Vec<(String, String)>,
    /// (name, when) of settings whose present value is theirs.
    pub settings: Vec<(String, Micros)>,
}

/// `actor_hash` is the person's pseudonym in feedback events.
pub(super) async fn erase(
    conn: &mut Conn,
    id: &LabelerId,
    how: Erase,
    actor_hash: &str,
    now: Micros,
) -> Result<Erased> {
    conn.serialize(PLACES).await?;
    let labeler = people::get_labeler(conn, id).await?;
    if ["admin", "import"].contains(&labeler.id.as_str()) {
        return Err(StoreError::Conflict("a built-in labeler cannot be erased".into()));
    }
    let me = id.as_str();
    let sessions = conn.run("DELETE FROM sessions WHERE labeler_id = $1", args![me]).await?;
    batches::erase(conn, me).await?;
    responses::erase(conn, me).await?;
    conversations::erase(conn, me).await?;
    // Keys are kept for the records of their use, without name and owner, and revoked.
    let keys = conn
        .run(
            "UPDATE api_keys SET name = 'erased', labeler_id = NULL, revoked = $2 WHERE labeler_id = $1",
            args![me, true],
        )
        .await?;
    let invites = conn
        .run("UPDATE invites SET name = NULL, note = NULL WHERE used_by = $1 OR name = $2", args![me, &labeler.name])
        .await?;
    let links = conn.run("DELETE FROM sign_in_links WHERE labeler_id = $1", args![me]).await?;
    let mut erased = Erased { sessions, keys, invites, links, ..Erased::default() };
    conn.run(
        "DELETE FROM assignments WHERE labeler_id = $1 AND state IN ('expired', 'released')
                AND id NOT IN (SELECT assignment_id FROM judgments WHERE assignment_id IS NOT NULL)",
        args![me],
    )
    .await?;
    match how {
        Erase::Anonymise => {
            erased.judgments =
                conn.run("UPDATE judgments SET rationale = NULL WHERE labeler_id = $1", args![me]).await?;
            conn.run(
                "UPDATE judgment_flags SET note = NULL
                 WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
                args![me],
            )
            .await?;
            conn.run(
                "UPDATE judgment_spans SET note = NULL
                 WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
                args![me],
            )
            .await?;
            // Tags are words of the person; numbers, yes and no stay with the ranking.
            conn.run(
                "DELETE FROM judgment_ratings WHERE CAST(value AS TEXT) LIKE '[%'
                 AND judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
                args![me],
            )
            .await?;
            erased.demonstrations =
                conn.run("UPDATE demonstrations SET labeler_id = NULL WHERE labeler_id = $1", args![me]).await?;
            erased.feedback_events = conn
                .run("UPDATE feedback_events SET actor_hash = NULL WHERE actor_hash = $1", args![actor_hash])
                .await?;
        }
        Erase::Remove => remove(conn, me, actor_hash, &mut erased).await?,
    }
    for sql in [
        "DELETE FROM prompt_submissions WHERE labeler_id = $1",
        "UPDATE comparison_sets SET made_by = NULL WHERE made_by = $1",
        "UPDATE jobs SET created_by = NULL WHERE created_by = $1",
        "UPDATE settings SET updated_by = 'erased' WHERE updated_by = $1",
        "DELETE FROM identities WHERE labeler_id = $1",
        "DELETE FROM project_members WHERE labeler_id = $1",
        "DELETE FROM key_maps WHERE labeler_id = $1",
    ] {
        conn.run(sql, args![me]).await?;
    }
    let judgments = if how == Erase::Remove { "remove" } else { "anonymise" };
    conn.run(
        "INSERT INTO erasures (labeler_id, judgments, created) VALUES ($1, $2, $3)
         ON CONFLICT (labeler_id) DO UPDATE SET created = excluded.created,
             judgments = CASE WHEN erasures.judgments = 'remove' THEN 'remove' ELSE excluded.judgments END",
        args![me, judgments, now],
    )
    .await?;
    conn.run(
        "UPDATE labelers SET name = $2, active = $3, daily_quota = NULL, erased = $4 WHERE id = $1",
        args![me, "erased", false, now],
    )
    .await?;
    Ok(erased)
}

async fn remove(conn: &mut Conn, me: &str, actor_hash: &str, erased: &mut Erased) -> Result<()> {
    let sets = conn.all("SELECT DISTINCT set_id FROM judgments WHERE labeler_id = $1", args![me]).await?;
    conn.run("DELETE FROM resolutions WHERE reviewer_id = $1", args![me]).await?;
    for sql in [
        "DELETE FROM judgment_items WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
        "DELETE FROM judgment_flags WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
        "DELETE FROM judgment_ratings WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
        "DELETE FROM judgment_spans WHERE judgment_id IN (SELECT id FROM judgments WHERE labeler_id = $1)",
    ] {
        conn.run(sql, args![me]).await?;
    }
    // One statement: revisions refer to each other, and are checked at its end.
    erased.judgments = conn.run("DELETE FROM judgments WHERE labeler_id = $1", args![me]).await?;
    conn.run("DELETE FROM assignments WHERE labeler_id = $1", args![me]).await?;
    conn.run("DELETE FROM reveals WHERE labeler_id = $1", args![me]).await?;
    let written = conn.all("SELECT completion_id FROM demonstrations WHERE labeler_id = $1", args![me]).await?;
    erased.demonstrations = conn.run("DELETE FROM demonstrations WHERE labeler_id = $1", args![me]).await?;
    erased.feedback_events = conn.run("DELETE FROM feedback_events WHERE actor_hash = $1", args![actor_hash]).await?;
    for row in &written {
        remove_completion(conn, &row.text("completion_id")?).await?;
    }
    for row in &sets {
        judgments::refresh_status(conn, &row.text("set_id")?.into()).await?;
    }
    remove_sets(conn, me, erased).await?;
    let submitted = conn
        .all("SELECT prompt_id FROM prompt_submissions WHERE labeler_id = $1 ORDER BY prompt_id", args![me])
        .await?;
    conn.run("DELETE FROM prompt_submissions WHERE labeler_id = $1", args![me]).await?;
    for row in &submitted {
        remove_prompt(conn, &row.text("prompt_id")?).await?;
    }
    Ok(())
}

/// A text that others have judged or given feedback on is kept.
async fn remove_completion(conn: &mut Conn, id: &str) -> Result<()> {
    conn.run(
        "DELETE FROM completions WHERE id = $1
           AND NOT EXISTS (SELECT 1 FROM set_items WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM judgment_items WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM judgment_flags WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM judgment_ratings WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM judgment_spans WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM conversation_turns WHERE continued_id = $1)
           AND NOT EXISTS (SELECT 1 FROM feedback_events WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM demonstrations WHERE completion_id = $1)
           AND NOT EXISTS (SELECT 1 FROM completions WHERE parent_completion_id = $1)",
        args![id],
    )
    .await?;
    Ok(())
}

/// Removes sets that only this person made and used, with their completions.
async fn remove_sets(conn: &mut Conn, me: &str, erased: &mut Erased) -> Result<()> {
    let sets = conn
        .all(
            "SELECT s.id FROM comparison_sets s WHERE s.made_by = $1
               AND NOT EXISTS (SELECT 1 FROM judgments j WHERE j.set_id = s.id)
               AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.set_id = s.id)
               AND NOT EXISTS (SELECT 1 FROM gold_items g WHERE g.set_id = s.id)
               AND NOT EXISTS (SELECT 1 FROM resolutions r WHERE r.set_id = s.id)",
            args![me],
        )
        .await?;
    erased.sets = sets.len() as u64;
    for row in &sets {
        let set = row.text("id")?;
        let items = conn.all("SELECT completion_id FROM set_items WHERE set_id = $1", args![&set]).await?;
        for sql in [
            "DELETE FROM reveals WHERE set_id = $1",
            "DELETE FROM model_judgment_items
             WHERE judgment_id IN (SELECT id FROM model_judgments WHERE set_id = $1)",
            "DELETE FROM model_judgments WHERE set_id = $1",
            "DELETE FROM set_items WHERE set_id = $1",
            "DELETE FROM comparison_sets WHERE id = $1",
        ] {
            conn.run(sql, args![&set]).await?;
        }
        for item in &items {
            remove_completion(conn, &item.text("completion_id")?).await?;
        }
    }
    Ok(())
}

/// Removes a prompt of the labeling page or the API that nothing refers to any more, and the samples of training jobs
/// for it.
async fn remove_prompt(conn: &mut Conn, id: &str) -> Result<()> {
    let messages = conn.one("SELECT messages FROM prompts WHERE id = $1", args![id]).await?;
    let gone = conn
        .run(
            "DELETE FROM prompts WHERE id = $1 AND source IN ('page', 'api')
               AND NOT EXISTS (SELECT 1 FROM completions WHERE prompt_id = $1)
               AND NOT EXISTS (SELECT 1 FROM comparison_sets WHERE prompt_id = $1)
               AND NOT EXISTS (SELECT 1 FROM demonstrations WHERE prompt_id = $1)
               AND NOT EXISTS (SELECT 1 FROM prompt_submissions WHERE prompt_id = $1)",
            args![id],
        )
        .await?;
    if let Some(row) = messages.filter(|_| gone == 1) {
        for message in row.json::<Vec<Message>>("messages")? {
            remove_samples(conn, &message.content).await?;
        }
    }
    Ok(())
}

/// Removes samples of training jobs for a prompt.
async fn remove_samples(conn: &mut Conn, text: &str) -> Result<()> {
    // The text as JSON, without the quotes.
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let Some(inside) = quoted.get(1..quoted.len().saturating_sub(1)).filter(|inside| !inside.is_empty()) else {
        return Ok(());
    };
    let find = if conn.is_postgres() { "strpos(CAST(data AS TEXT), $1)" } else { "instr(data, $1)" };
    let sql = format!("DELETE FROM job_events WHERE kind = 'sample' AND {find} > 0 RETURNING seq");
    conn.all_built(sql, args![inside]).await?;
    Ok(())
}

pub(super) async fn personal_data(conn: &mut Conn, id: &LabelerId, actor_hash: &str) -> Result<PersonalData> {
    let me = id.as_str();
    let mut data = PersonalData::default();
    let rows = conn
        .all(
            "SELECT d.prompt_id, c.text, d.created FROM demonstrations d JOIN completions c ON c.id = d.completion_id
             WHERE d.labeler_id = $1 ORDER BY d.created, c.id",
            args![me],
        )
        .await?;
    for row in &rows {
        data.demonstrations.push((row.text("prompt_id")?.into(), row.text("text")?, row.int("created")?));
    }
    let rows =
        conn.all("SELECT created, expires FROM sessions WHERE labeler_id = $1 ORDER BY created", args![me]).await?;
    for row in &rows {
        data.sessions.push((row.int("created")?, row.int("expires")?));
    }
    let rows = conn.all("SELECT * FROM feedback_events WHERE actor_hash = $1 ORDER BY id", args![actor_hash]).await?;
    for row in &rows {
        data.feedback_events.push(prompts::feedback(row)?);
    }
    let rows = conn.all("SELECT set_id, state FROM assignments WHERE labeler_id = $1 ORDER BY id", args![me]).await?;
    for row in &rows {
        data.assignments.push((row.text("set_id")?.into(), row.name("state", AssignmentState::parse)?));
    }
    let rows =
        conn.all("SELECT * FROM reveals WHERE labeler_id = $1 ORDER BY created, set_id, what", args![me]).await?;
    for row in &rows {
        let what = row.name("what", Knowledge::parse)?;
        data.reveals.push((row.text("set_id")?.into(), what, row.int("created")?));
    }
    let rows = conn
        .all(
            "SELECT id, messages FROM prompts p
             WHERE EXISTS (SELECT 1 FROM prompt_submissions x WHERE x.prompt_id = p.id AND x.labeler_id = $1)
             ORDER BY id",
            args![me],
        )
        .await?;
    for row in &rows {
        data.prompts.push((row.text("id")?.into(), row.json("messages")?));
    }
    let sql = "SELECT id, prompt_id, created FROM comparison_sets WHERE made_by = $1 ORDER BY id";
    for row in &conn.all(sql, args![me]).await? {
        data.sets.push((row.text("id")?.into(), row.text("prompt_id")?.into(), row.int("created")?));
    }
    let everything = Page { after: None, limit: i64::MAX };
    for conversation in conversations::list(conn, id, &everything).await? {
        let sets = conversation.turns.into_iter().map(|turn| turn.set_id).collect();
        data.conversations.push((conversation.id, sets, conversation.created));
    }
    let rows = conn
        .all("SELECT set_id, created FROM resolutions WHERE reviewer_id = $1 ORDER BY created, set_id", args![me])
        .await?;
    for row in &rows {
        data.resolutions.push((row.text("set_id")?.into(), row.int("created")?));
    }
    let rows = conn
        .all("SELECT lang, text, created FROM guideline_versions WHERE created_by = $1 ORDER BY id", args![me])
        .await?;
    for row in &rows {
        data.guidelines.push((row.text("lang")?, row.text("text")?, row.int("created")?));
    }
    let sql = "SELECT version, definition, created FROM rubrics WHERE created_by = $1 ORDER BY created, version";
    for row in &conn.all(sql, args![me]).await? {
        let definition: RubricDefinition = row.json("definition")?;
        data.rubrics.push((row.text("version")?, definition.name, row.int("created")?));
    }
    let sql = "SELECT version, created FROM rubric_activations WHERE created_by = $1 ORDER BY created, id";
    for row in &conn.all(sql, args![me]).await? {
        data.rubric_activations.push((row.opt_text("version")?, row.int("created")?));
    }
    let rows = conn.all("SELECT id, kind, name, note FROM jobs WHERE created_by = $1 ORDER BY id", args![me]).await?;
    for row in &rows {
        data.jobs.push((row.text("id")?.into(), row.text("kind")?, row.opt_text("name")?, row.opt_text("note")?));
    }
    let sql = "SELECT provider, subject, created FROM identities WHERE labeler_id = $1 ORDER BY created, subject";
    for row in &conn.all(sql, args![me]).await? {
        data.identities.push((row.text("provider")?, row.text("subject")?, row.int("created")?));
    }
    let sql = "SELECT project_id, daily_quota, created FROM project_members WHERE labeler_id = $1 ORDER BY project_id";
    for row in &conn.all(sql, args![me]).await? {
        data.projects.push((row.text("project_id")?.into(), row.opt_int("daily_quota")?, row.int("created")?));
    }
    data.key_map.extend(key_maps::get(conn, id).await?.unwrap_or_default());
    let rows = conn.all("SELECT name, updated FROM settings WHERE updated_by = $1 ORDER BY name", args![me]).await?;
    for row in &rows {
        data.settings.push((row.text("name")?, row.int("updated")?));
    }
    Ok(data)
}
