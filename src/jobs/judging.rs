//! Jobs of kind `judge`: the labeler that a judge is, the sets that it is to rank, and the rankings that it wrote.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::lacking::NO_SETS;
use super::line_file::LineFile;
use super::materialise::{PrepareError, version};
use super::settings::SupervisorConfig;
use crate::config::JudgeConfig;
use crate::domain::*;
use crate::store::{Store, StoreError, ToJudge, learns_from_requests};
use crate::train::JUDGE;
use crate::train::args::{self, JudgeSetsArgs};
use crate::train::judging::{RANKINGS, RankedByJudge, SetToRank, rankings};

/// File of the job's directory with the sets.
const SETS: &str = "sets.jsonl";
/// Number of rankings in one transaction.
const AT_ONCE: usize = 200;

/// The labeler of a job of kind `judge`, whose sets are frozen; `None` for other jobs.
pub(super) async fn prepare(
    store: &Store,
    job: &Job,
    args: &mut Map<String, Value>,
    job_dir: &Path,
    config: &SupervisorConfig,
) -> Result<Option<JudgeLabeler>, PrepareError> {
    if job.kind != JUDGE {
        return Ok(None);
    }
    let judge = JudgeLabeler::of(store, args, &config.judges).await?;
    // The current setting: the job may have waited in the queue.
    let learns = learns_from_requests(store, config.learn_from_requests).await?;
    judge.freeze_sets(store, args, job_dir, !learns).await?;
    Ok(Some(judge))
}

/// Whether there is a set for the judge that a job's arguments name.
///
/// # Errors
/// `Job` for a judge that the configuration does not have; errors of the store.
pub(super) async fn has_sets(
    store: &Store,
    args: &Map<String, Value>,
    judges: &BTreeMap<String, JudgeConfig>,
    without_requests: bool,
) -> Result<bool, PrepareError> {
    let (judge, _) = JudgeLabeler::named(store, args, judges).await?;
    let mut complete = args.clone();
    for path in ["sets", "output_dir"] {
        complete.insert(path.into(), "set-by-the-job".into());
    }
    let wanted = ToJudge { limit: 1, ..judge.wanted(&complete, without_requests)? };
    Ok(!store.model_judgments().to_judge(&wanted).await?.is_empty())
}

/// The labeler that a job's judge is: one for each model of the configuration's judges, and one for each model version.
pub(super) struct JudgeLabeler {
    labeler: LabelerId,
    criteria: String,
}

impl JudgeLabeler {
    /// The labeler of the judge that the arguments name; it is created when the judge is used for the first time.
    async fn of(
        store: &Store,
        args: &Map<String, Value>,
        judges: &BTreeMap<String, JudgeConfig>,
    ) -> Result<Self, PrepareError> {
        let (judge, name) = Self::named(store, args, judges).await?;
        let created = store.now().await?;
        store.model_judgments().put_labeler(ModelLabeler { id: judge.labeler.clone(), name, created }).await?;
        Ok(judge)
    }

    /// The judge that the arguments name, and its name.
    async fn named(
        store: &Store,
        args: &Map<String, Value>,
        judges: &BTreeMap<String, JudgeConfig>,
    ) -> Result<(Self, String), PrepareError> {
        let text = |field: &str| args.get(field).and_then(Value::as_str).map(str::to_owned);
        let (identity, name) = match text("host") {
            Some(host) => {
                let config = judges.get(&host).ok_or_else(|| {
                    PrepareError::Job(format!("the configuration has no judge '{host}' ([judges] in config.toml)"))
                })?;
                (format!("host\n{host}\n{}", config.model), format!("{host} ({})", config.model))
            }
            None => {
                let version = version(store, args, "judge_model").await?;
                (format!("version\n{}", version.id), version.name)
            }
        };
        let labeler = LabelerId::from(format!("judge-{}", &hash::of_bytes(&identity)[..20]));
        let criteria = text("criteria").unwrap_or_else(|| JudgeSetsArgs::default().criteria);
        Ok((Self { labeler, criteria: criteria.trim().to_owned() }, name))
    }

    /// The sets that the judge is to rank by complete arguments. The choice does not depend on the models' paths.
    fn wanted(&self, args: &Map<String, Value>, without_requests: bool) -> Result<ToJudge, PrepareError> {
        let parsed: JudgeSetsArgs =
            args::parse(&Value::Object(args.clone())).map_err(|e| PrepareError::Job(e.to_string()))?;
        Ok(ToJudge {
            labeler_id: self.labeler.clone(),
            criteria: self.criteria.clone(),
            which: parsed.which,
            without_requests,
            limit: parsed.max_sets as i64,
        })
    }

    /// Writes the sets that the judge is to rank into the job's directory, without the authors of the completions, and
    /// adds the file to the arguments. A resumed job ranks the sets of its first attempt.
    async fn freeze_sets(
        &self,
        store: &Store,
        args: &mut Map<String, Value>,
        job_dir: &Path,
        without_requests: bool,
    ) -> Result<(), PrepareError> {
        let path = job_dir.join(SETS);
        args.insert("sets".into(), path.display().to_string().into());
        if path.exists() {
            return Ok(());
        }
        let mut complete = args.clone();
        complete.insert("output_dir".into(), job_dir.display().to_string().into());
        let wanted = self.wanted(&complete, without_requests)?;
        let mut file = LineFile::create(&path)?;
        for id in store.model_judgments().to_judge(&wanted).await? {
            let content = match store.sets().content(&id).await {
                // It was removed in the meantime.
                Err(StoreError::NotFound { .. }) => continue,
                content => content?,
            };
            file.push(&SetToRank {
                set_id: id,
                prompt: content.prompt.messages,
                completions: content.completions.into_iter().map(|c| (c.id, c.text)).collect(),
            })?;
        }
        if file.lines() == 0 {
            return Err(PrepareError::Job(NO_SETS.to_owned()));
        }
        file.finish(&path)?;
        Ok(())
    }

    /// Stores the rankings that the job wrote into the directory `dir`, also those of a job that was stopped. Returns the
    /// number of those that were not stored before.
    ///
    /// # Errors
    /// Errors of the store. A file that cannot be read has no rankings.
    pub(super) async fn store_rankings(&self, store: &Store, dir: &Path) -> Result<u64, StoreError> {
        let path = dir.join(RANKINGS);
        let read = tokio::task::spawn_blocking(move || rankings(&path).unwrap_or_default());
        let ranked = read.await.unwrap_or_default();
        let created = store.now().await?;
        let mut stored = 0;
        for chunk in ranked.chunks(AT_ONCE) {
            let judgment = |line: &RankedByJudge| ModelJudgment {
                id: JudgmentId::new(),
                set_id: line.set_id.clone(),
                labeler_id: self.labeler.clone(),
                criteria: self.criteria.clone(),
                doubt: line.doubt,
                items: line.items.clone(),
                created,
            };
            stored += store.model_judgments().append(chunk.iter().map(judgment).collect()).await?;
        }
        Ok(stored)
    }
}
