//! Estimates a job's memory and time before it is queued, from the named models' sizes and the stored data. Also fills
//! in the defaults that depend on a model's size.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::learned::{FeedbackPages, Rankings, learned_demonstrations, learned_prompts};
use super::queue::{EnqueueError, JobArgs, LORA_ABOVE, resolve, takes};
use crate::data::{Thumbed, thumbs};
use crate::domain::{JobState, Message, ModelKind, user_turns};
use crate::model::{ModelConfig, describe, presets};
use crate::store::{Page, Store, StoreError, find_version};
use crate::train::Recipe;
use crate::train::assumption::{self, Assumption};
use crate::train::estimate::{DataSize, PlannedRun, Seconds, available_memory, need, seconds};
use crate::train::fit::percentile_99;

/// Response of `POST /admin/jobs/estimate`.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Estimate {
    /// Peak memory of the training process.
    pub memory_bytes: u64,
    /// null when the amount of data is not known.
    pub seconds: Option<Seconds>,
    /// How the figures were obtained, in English.
    pub basis: String,
    /// The same as data.
    pub assumptions: Vec<Assumption>,
    /// Optimizer steps (RL: iterations); null when the amount of data is not known.
    pub steps: Option<u64>,
    /// Whether that much memory is available now; null when the system does not report it.
    pub fits: Option<bool>,
    pub available_memory_bytes: Option<u64>,
}

const DEFAULT_RANK: u64 = 8;
/// Recipes that can train through adapters whatever their model is.
const WITH_ADAPTERS: &[&str] =
    &["sft", "reward", "dpo", "simpo", "orpo", "kto", "ppo", "reinforce", "rloo", "grpo", "online_dpo", "raft"];
/// Number of earlier runs whose speed is considered.
const EARLIER: i64 = 200;
const RATES: usize = 5;
/// Characters of a token, on average, in English text. Used for data that is not tokenised yet.
const CHARACTERS_PER_TOKEN: f64 = 4.0;
/// Tokens that a chat template adds around a prompt.
const TEMPLATE_TOKENS: f64 = 16.0;

async fn config_of(
    store: &Store,
    data_dir: &Path,
    args: &Value,
    field: &str,
) -> Result<Option<ModelConfig>, StoreError> {
    let Some(name) = args.get(field).and_then(Value::as_str) else { return Ok(None) };
    let Some(version) = find_version(store, name).await? else { return Ok(None) };
    let path = data_dir.join(&version.artifact_uri);
    let read = tokio::task::spawn_blocking(move || describe(&path).ok().map(|found| found.config));
    Ok(read.await.ok().flatten())
}

/// Fills in arguments that were left out: adapters of rank 8 for models above `LORA_ABOVE`.
/// `"lora": null` trains all parameters.
pub async fn fill_defaults(
    store: &Store,
    data_dir: &Path,
    kind: &str,
    args: &mut Map<String, Value>,
) -> Result<(), StoreError> {
    if !WITH_ADAPTERS.contains(&kind) || args.contains_key("lora") {
        return Ok(());
    }
    let mut named = json!({"model": args.get("model").cloned()});
    if !args.contains_key("model") {
        named["model"] = json!(store.models().active(ModelKind::Policy).await?.map(|version| version.name));
    }
    let large = config_of(store, data_dir, &named, "model").await?.filter(|c| presets::parameters(c) > LORA_ABOVE);
    if large.is_some() {
        args.insert("lora".into(), json!({"rank": DEFAULT_RANK, "alpha": 2 * DEFAULT_RANK}));
    }
    Ok(())
}

/// Estimates a job.
///
/// # Errors
/// Arguments that `enqueue` would refuse, and errors of the store.
pub async fn estimate(
    store: &Store,
    recipes: &[Recipe],
    data_dir: &Path,
    kind: &str,
    args: Value,
    learn_from_requests: bool,
) -> Result<Estimate, EnqueueError> {
    let (recipe, args, mut checked) = resolve(store, recipes, kind, args).await?;
    checked.filter.without_requests |= !learn_from_requests;
    let model = config_of(store, data_dir, &args, "model").await?.filter(|_| kind != super::queue::EXTERNAL);
    let available = available_memory();
    let Some(model) = model else {
        // A new model, or files that are elsewhere.
        let basis = match kind {
            crate::train::JUDGE => Assumption::JudgeAnswers,
            super::queue::EXTERNAL => Assumption::OtherProgram,
            _ => Assumption::UnknownModel,
        };
        return Ok(Estimate {
            memory_bytes: 0,
            seconds: None,
            basis: basis.to_string(),
            assumptions: vec![basis],
            steps: None,
            fits: None,
            available_memory_bytes: available,
        });
    };
    let reward = config_of(store, data_dir, &args, "reward_model").await?;
    let gold = config_of(store, data_dir, &args, "gold_reward_model").await?;
    let judge = config_of(store, data_dir, &args, "judge_model").await?;
    let data = data_size(store, recipe, &checked).await?;
    let planned = PlannedRun {
        recipe: kind,
        args: &args,
        model: &model,
        reward_model: reward.as_ref(),
        gold_reward_model: gold.as_ref(),
        judge_model: judge.as_ref(),
        data,
    };
    let needed = need(&planned);
    let rates = earlier_rates(store, data_dir, kind).await?;
    let parameters = presets::parameters(&model) as f64;
    let (time, from) = {
        let needed = needed.clone();
        let timed = tokio::task::spawn_blocking(move || seconds(&needed, parameters, &rates));
        timed.await.ok().flatten().unzip()
    };
    let assumptions: Vec<Assumption> = needed.assumptions.into_iter().chain(from).collect();
    Ok(Estimate {
        memory_bytes: needed.memory_bytes,
        seconds: time,
        basis: assumption::text(&assumptions),
        assumptions,
        steps: needed.steps,
        fits: available.map(|free| needed.memory_bytes <= free),
        available_memory_bytes: available,
    })
}

/// Lengths of sequences in characters, prompts included.
#[derive(Default)]
struct Lengths {
    rows: usize,
    characters: Vec<usize>,
}

impl Lengths {
    fn size(mut self) -> DataSize {
        let tokens = |characters: f64| characters / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS;
        self.characters.sort_unstable();
        let sequences = self.characters.len().max(1) as f64;
        let all: usize = self.characters.iter().sum();
        let longest = percentile_99(&self.characters).unwrap_or(0);
        DataSize {
            rows: self.rows as u64,
            sequences_per_row: self.characters.len() as f64 / self.rows.max(1) as f64,
            tokens: tokens(all as f64 / sequences),
            longest: tokens(longest as f64),
        }
    }
}

/// Number and lengths of the sequences that the job would train on; `None` for corpora and files.
async fn data_size(store: &Store, recipe: &Recipe, args: &JobArgs) -> Result<Option<DataSize>, StoreError> {
    let schema = (recipe.schema)();
    let of = |messages: &[Message]| -> usize { messages.iter().map(|m| m.content.chars().count()).sum() };
    let given = |field: &str| args.recipe.get(field).is_some_and(|v| !v.is_null());
    let mut found = Lengths::default();
    if takes(&schema, "comparisons") {
        let mut pages = Rankings::new(store, &args.filter).await?;
        while let Some(page) = pages.next().await? {
            found.rows += page.len();
            for set in &page {
                let prompt = of(&set.prompt.messages());
                found.characters.extend(set.completions.iter().map(|c| c.text.chars().count() + prompt));
            }
        }
        return Ok(Some(found.size()));
    }
    if takes(&schema, "feedback") {
        let length = |t: &Thumbed| t.completion.chars().count() + of(&t.prompt.messages());
        let mut pages = FeedbackPages::new(store, &args.filter, args.filter.as_of);
        while let Some(page) = pages.next().await? {
            found.characters.extend(thumbs(&page.records()).0.iter().map(length));
        }
        found.rows = found.characters.len();
        return Ok(Some(found.size()));
    }
    if takes(&schema, "prompts") {
        let is_whole = args.recipe.get("turns").is_some_and(|turns| turns == "all");
        let whole = is_whole.then(|| response_length(&schema, &args.recipe));
        let mut after = None;
        while let Some(learned) = learned_prompts(store, &mut after, args.filter.without_requests).await? {
            found.characters.extend(learned.iter().map(|p| match whole {
                Some(response) => characters_before_last_answer(&p.messages, response),
                None => of(&p.messages),
            }));
        }
        found.rows = found.characters.len();
        return Ok(Some(found.size()));
    }
    if takes(&schema, "demonstrations") && !given("mixture") {
        let mut after = None;
        while let Some(page) = learned_demonstrations(store, &mut after, args.filter.without_requests).await? {
            found.characters.extend(page.iter().map(|(p, answer)| answer.text.chars().count() + of(&p.messages)));
        }
        found.rows = found.characters.len();
        return Ok(Some(found.size()));
    }
    Ok(None)
}

/// The maximum length of an answer in tokens.
fn response_length(schema: &Value, args: &Map<String, Value>) -> f64 {
    let default = schema.pointer("/properties/response_length/default");
    args.get("response_length").or(default).and_then(Value::as_f64).unwrap_or(0.0)
}

/// Characters of a conversation before its last answer, if the policy writes every answer with `response` tokens.
fn characters_before_last_answer(messages: &[Message], response: f64) -> usize {
    let turns = user_turns(messages);
    let written: usize = turns.iter().flatten().map(|m| m.content.chars().count()).sum();
    let answers = (turns.len() - 1) as f64 * (response + TEMPLATE_TOKENS) * CHARACTERS_PER_TOKEN;
    written + answers as usize
}

/// Tokens per second of the latest runs of a recipe, with the sizes of their models.
async fn earlier_rates(store: &Store, data_dir: &Path, kind: &str) -> Result<Vec<(f64, f64)>, StoreError> {
    let done = store.jobs().list(Page { after: None, limit: EARLIER }, Some(JobState::Succeeded)).await?;
    let mut rates = Vec::new();
    for job in done.iter().filter(|job| job.kind == kind).take(RATES) {
        let Some(config) = config_of(store, data_dir, &job.args, "model").await? else { continue };
        let mut seen: Vec<f64> = store
            .jobs()
            .metrics(&job.id, &["tokens_per_second".to_owned()])
            .await?
            .into_iter()
            .map(|metric| metric.value)
            .collect();
        seen.sort_by(f64::total_cmp);
        if let Some(median) = seen.get(seen.len() / 2) {
            rates.push((*median, presets::parameters(&config) as f64));
        }
    }
    Ok(rates)
}
