//! Evidence for promoting a version (preferences, completions of both versions, earlier activations), and the search of
//! jobs.

use super::Result;
use super::rows::{Conn, args};
use crate::domain::*;

/// Filter of jobs; absent fields match all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFilter {
    pub state: Option<JobState>,
    pub kind: Option<String>,
    /// Looked for in id, recipe, name, note, tags, arguments and result; upper and lower case are the same.
    pub text: Option<String>,
}

/// A promotion or roll-back in the audit trail.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// The version that became active.
    pub to: ModelVersionId,
    /// The version that was active before; not known in entries of older releases.
    pub from: Option<ModelVersionId>,
    pub roll_back: bool,
    pub at: Micros,
}

/// One pair of two versions' completions in one ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct Meeting {
    pub prompt_id: PromptId,
    pub judgment_id: JudgmentId,
    /// Tier 0 is best; equal tiers are a tie.
    pub tier_a: i64,
    pub tier_b: i64,
}

/// The newest completions of two versions for one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedPrompt {
    pub messages: serde_json::Value,
    pub text_a: String,
    pub reward_a: Option<f64>,
    pub finish_a: Option<String>,
    pub text_b: String,
    pub reward_b: Option<f64>,
    pub finish_b: Option<String>,
}

pub(super) async fn samples(conn: &mut Conn, id: &JobId, limit: i64) -> Result<Vec<serde_json::Value>> {
    conn.all(
        "SELECT data FROM job_events WHERE job_id = $1 AND kind = 'sample' ORDER BY seq LIMIT $2",
        args![id.as_str(), limit],
    )
    .await?
    .iter()
    .map(|row| row.json("data"))
    .collect()
}

pub(super) async fn activation_history(conn: &mut Conn) -> Result<Vec<Activation>> {
    let rows = conn
        .all(
            "SELECT action, target, detail, created FROM audit_log WHERE action IN ('promote', 'roll_back')
             ORDER BY id",
            vec![],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let detail: serde_json::Value = row.json("detail")?;
            Ok(Activation {
                to: row.text("target")?.into(),
                from: detail["replaced"].as_str().map(Into::into),
                roll_back: row.text("action")? == "roll_back",
                at: row.int("created")?,
            })
        })
        .collect()
}

pub(super) async fn meetings(conn: &mut Conn, a: &ModelVersionId, b: &ModelVersionId) -> Result<Vec<Meeting>> {
    conn.all(
        "SELECT s.prompt_id, j.id AS judgment_id, ia.tier AS tier_a, ib.tier AS tier_b
         FROM completions ca
         JOIN set_items sa ON sa.completion_id = ca.id
         JOIN comparison_sets s ON s.id = sa.set_id AND s.kind = 'normal'
         JOIN set_items sb ON sb.set_id = s.id
         JOIN completions cb ON cb.id = sb.completion_id AND cb.model_version_id = $2
         JOIN judgments j ON j.set_id = s.id AND j.outcome = 'ranked'
         JOIN judgment_items ia ON ia.judgment_id = j.id AND ia.completion_id = ca.id
         JOIN judgment_items ib ON ib.judgment_id = j.id AND ib.completion_id = cb.id
         WHERE ca.model_version_id = $1 AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.supersedes_id = j.id)
         ORDER BY j.id, ca.id, cb.id",
        args![a.as_str(), b.as_str()],
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Meeting {
            prompt_id: row.text("prompt_id")?.into(),
            judgment_id: row.text("judgment_id")?.into(),
            tier_a: row.int("tier_a")?,
            tier_b: row.int("tier_b")?,
        })
    })
    .collect()
}

pub(super) async fn shared_prompts(
    conn: &mut Conn,
    a: &ModelVersionId,
    b: &ModelVersionId,
    limit: i64,
) -> Result<Vec<SharedPrompt>> {
    conn.all(
        "SELECT p.messages, ca.text AS text_a, ca.reward AS reward_a, ca.finish_reason AS finish_a,
                cb.text AS text_b, cb.reward AS reward_b, cb.finish_reason AS finish_b
         FROM completions ca
         JOIN completions cb ON cb.prompt_id = ca.prompt_id AND cb.model_version_id = $2
         JOIN prompts p ON p.id = ca.prompt_id
         WHERE ca.model_version_id = $1
           AND ca.id = (SELECT MAX(id) FROM completions WHERE prompt_id = ca.prompt_id AND model_version_id = $1)
           AND cb.id = (SELECT MAX(id) FROM completions WHERE prompt_id = ca.prompt_id AND model_version_id = $2)
         ORDER BY ca.id DESC LIMIT $3",
        args![a.as_str(), b.as_str(), limit],
    )
    .await?
    .iter()
    .map(|row| {
        Ok(SharedPrompt {
            messages: row.json("messages")?,
            text_a: row.text("text_a")?,
            reward_a: row.opt_real("reward_a")?,
            finish_a: row.opt_text("finish_a")?,
            text_b: row.text("text_b")?,
            reward_b: row.opt_real("reward_b")?,
            finish_b: row.opt_text("finish_b")?,
        })
    })
    .collect()
}

/// The set `s` has a completion of the version `$1`. PostgreSQL would otherwise join all completions of the version with
/// all items of sets; the limit keeps it at the sets' own items, of which the first is often enough.
macro_rules! has_completion_of {
    () => {
        "EXISTS (SELECT 1 FROM set_items i WHERE i.set_id = s.id
             AND (SELECT c.model_version_id FROM completions c WHERE c.id = i.completion_id) = $1 LIMIT 1 OFFSET 0)"
    };
}

pub(super) async fn sets_of_version(conn: &mut Conn, id: &ModelVersionId) -> Result<(i64, i64)> {
    let sets = conn
        .count(
            concat!(
                "SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.kind = 'normal' AND s.status <> 'retired' AND ",
                has_completion_of!()
            ),
            args![id.as_str()],
        )
        .await?;
    let rankings = conn
        .count(
            concat!(
                "SELECT COUNT(*) AS n FROM judgments j JOIN comparison_sets s ON s.id = j.set_id
                 WHERE s.kind = 'normal' AND j.outcome = 'ranked' AND j.supersedes_id IS NULL AND ",
                has_completion_of!()
            ),
            args![id.as_str()],
        )
        .await?;
    Ok((sets, rankings))
}
