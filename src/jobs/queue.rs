//! A job's arguments: the recipe's, with names of model versions in place of paths, and the job's own. They are checked
//! when the job is queued and resolved to paths when it runs.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::JudgeConfig;
use crate::domain::*;
use crate::store::{RankedFilter, Store, StoreError, find_version, unknown_version};
use crate::train::args::named_judges;
use crate::train::args::roles::{self, Needed};
use crate::train::{ArgsError, JUDGE, Recipe};

/// Arguments of the job, not of the recipe.
pub const JOB_ARGS: &[&str] = &["publish_as", "filter", "gold_judgments"];
/// Parameters above which a job trains its model through LoRA adapters unless its arguments say otherwise: with
/// gradients and moments, 50 million trained parameters take 1.2 GB besides the activations.
pub const LORA_ABOVE: u64 = 50_000_000;
/// Stands in for paths, which are not known yet, when arguments are validated.
const PLACEHOLDER: &str = "set-by-the-job";

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The message lists the known recipes.
    #[error("{0}")]
    UnknownKind(String),
    /// `field` is relative to the job's `args`.
    #[error("{0}")]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A job's arguments, split into the job's own and the recipe's.
#[derive(Clone, Debug, PartialEq)]
pub struct JobArgs {
    /// Name of the new model version; `None` = derived from parent, recipe and job id.
    pub publish_as: Option<String>,
    /// Which judgments the comparisons file holds.
    pub filter: RankedFilter,
    /// Evaluate the policy against the rankings of held-out prompts during training.
    pub gold_judgments: bool,
    pub recipe: Map<String, Value>,
}

fn refuse(field: &str, message: impl Into<String>) -> ArgsError {
    ArgsError { field: field.to_owned(), message: message.into() }
}

/// The recipe that runs another training program.
pub const EXTERNAL: &str = "external";

/// The trainer that a job of kind `external` names.
pub fn trainer_of<'a>(kind: &str, args: &'a Value) -> Option<&'a str> {
    args.get("trainer").and_then(Value::as_str).filter(|_| kind == EXTERNAL)
}

/// The command of the trainer that a job names; empty where it names none of these.
pub(super) fn command_of(known: &BTreeMap<String, Vec<String>>, kind: &str, args: &Value) -> Vec<String> {
    trainer_of(kind, args).and_then(|name| known.get(name).cloned()).unwrap_or_default()
}

/// Those of the configuration's judges that a job's arguments name.
pub(super) fn judges_of(known: &BTreeMap<String, JudgeConfig>, args: &Value) -> BTreeMap<String, JudgeConfig> {
    let found = |(_, name): (&str, String)| known.get(&name).cloned().map(|config| (name, config));
    named_judges(args).into_iter().filter_map(found).collect()
}

/// Whether the recipe does not read the data `field`. Only `external` declares what it reads.
pub fn leaves_out(schema: &Value, args: &Map<String, Value>, field: &str) -> bool {
    if !takes(schema, "data") {
        return false;
    }
    let named = args.get("data").unwrap_or(&schema["properties"]["data"]["default"]);
    !named.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == field))
}

/// Whether the recipe requires a model version; other recipes create a new model unless they are given one.
pub fn needs_model(schema: &Value) -> bool {
    schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == "model"))
}

/// The file names in `args[field]`, a string or a list of strings.
///
/// # Errors
/// A value that is not a plain file name.
pub(super) fn file_names(args: &Map<String, Value>, field: &str) -> Result<Vec<String>, ArgsError> {
    let names: Option<Vec<String>> = match args.get(field) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(name)) => Some(vec![name.clone()]),
        Some(Value::Array(names)) => names.iter().map(|n| n.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    names
        .filter(|names| names.iter().all(|name| is_file_name(name)))
        .ok_or_else(|| refuse(field, "must name a file in the server's corpora directory, without a path"))
}

pub fn takes(schema: &Value, field: &str) -> bool {
    schema["properties"].get(field).is_some()
}

/// Whether a job with these arguments needs a file of data.
pub(super) fn wants(needed: Needed, args: &Map<String, Value>, gold_judgments: bool) -> bool {
    needed.by(args, |asked| asked == "gold_judgments" && gold_judgments)
}

/// Splits the arguments and has the recipe validate its part. Does not read the store.
///
/// # Errors
/// Names the field: a path in the request, an unknown key, a value out of range.
pub fn check(recipe: &Recipe, args: &Value) -> Result<JobArgs, ArgsError> {
    let Value::Object(given) = args else { return Err(refuse("args", "must be an object")) };
    let mut own = given.clone();
    if let Some(path) = own.keys().find(|name| roles::is_set_by_job(name)) {
        return Err(refuse(path, "is set by the job; leave it out"));
    }
    let publish_as = match own.shift_remove("publish_as") {
        Some(Value::String(_)) if recipe.name == JUDGE => {
            return Err(refuse("publish_as", "must be left out: the job trains no model"));
        }
        None | Some(Value::Null) => None,
        Some(Value::String(name)) if is_model_name(&name) => Some(name),
        Some(_) => {
            return Err(refuse("publish_as", "must be a name like 'my-model.1': a-z, 0-9, '.', '_', '-', at most 64"));
        }
    };
    let filter = match own.shift_remove("filter") {
        None | Some(Value::Null) => RankedFilter::default(),
        Some(filter) => serde_json::from_value(filter).map_err(|e| refuse("filter", e.to_string()))?,
    };
    let schema = (recipe.schema)();
    for field in roles::corpora().filter(|field| takes(&schema, field)) {
        file_names(&own, field)?;
    }
    let gold_judgments = match own.shift_remove("gold_judgments") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) if takes(&schema, "gold_comparisons") => true,
        Some(_) => {
            return Err(refuse("gold_judgments", "must be true or false, and the recipe must learn from samples"));
        }
    };
    let mut complete = own.clone();
    complete.insert("output_dir".to_owned(), PLACEHOLDER.into());
    for (field, needed) in roles::data().filter(|(field, _)| takes(&schema, field)) {
        if !needed.is_optional() || wants(needed, &own, gold_judgments) {
            complete.insert(field.to_owned(), PLACEHOLDER.into());
        }
    }
    (recipe.validate)(&Value::Object(complete))?;
    Ok(JobArgs { publish_as, filter, gold_judgments, recipe: own })
}

/// The JSON Schema of a job's arguments: the recipe's without the paths, and the job's own.
pub fn job_schema(recipe: &Recipe) -> Value {
    let mut schema = (recipe.schema)();
    let filtered = takes(&schema, "comparisons") || takes(&schema, "feedback");
    let samples = takes(&schema, "gold_comparisons");
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| !roles::is_set_by_job(name));
        for field in roles::corpora() {
            if let Some(text) = properties.get_mut(field).and_then(|p| p.get_mut("description")) {
                *text =
                    format!("{} Names of files in the server's corpora directory.", text.as_str().unwrap_or_default())
                        .into();
            }
        }
        if recipe.name != JUDGE {
            properties.insert(
                "publish_as".into(),
                json!({"type": ["string", "null"], "default": null, "description": "Name of the new model version."}),
            );
        }
        if let Some(text) = properties.get_mut("lora").and_then(|p| p.get_mut("description")) {
            let above = LORA_ABOVE / 1_000_000;
            *text = format!(
                "{} When it is left out, models above {above} million parameters are trained with rank 8.",
                text.as_str().unwrap_or_default()
            )
            .into();
        }
        if samples {
            properties.insert(
                "gold_judgments".into(),
                json!({"type": "boolean", "default": false,
                       "description": "Evaluate the policy against the rankings of held-out prompts, and stop when it moves away from them."}),
            );
        }
        if filtered {
            properties.insert(
                "filter".into(),
                json!({"type": ["object", "null"], "default": null,
                       "description": "Which judgments to use: split, labeler_id, set_kind, as_of, tag, labelers."}),
            );
        }
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        // The model defaults to the active one.
        required.retain(|name| !name.as_str().is_some_and(|n| roles::is_set_by_job(n) || n == "model"));
    }
    schema
}

/// Whether `args[field]` is null or empty, which means none. Only a field that is left out takes its default, the
/// active version.
fn is_none(args: &Map<String, Value>, field: &str) -> bool {
    match args.get(field) {
        Some(Value::Null) => true,
        Some(Value::String(text)) => text.trim().is_empty(),
        _ => false,
    }
}

/// Refuses a held-out reward model that is also the training reward: it would not measure overoptimization.
async fn check_gold(store: &Store, args: &Map<String, Value>) -> Result<(), EnqueueError> {
    let named = |field: &str| args.get(field).and_then(Value::as_str).map(str::to_owned);
    let (Some(reward), Some(gold)) = (named("reward_model"), named("gold_reward_model")) else { return Ok(()) };
    let (Some(reward), Some(gold)) = (find_version(store, &reward).await?, find_version(store, &gold).await?) else {
        return Ok(());
    };
    let hashed = reward.sha256.len() == 64;
    let same =
        reward.id == gold.id || reward.artifact_uri == gold.artifact_uri || (hashed && reward.sha256 == gold.sha256);
    if !same {
        return Ok(());
    }
    let alias =
        if reward.name == gold.name { String::new() } else { format!(" ('{}' has the same weights)", gold.name) };
    let message = format!(
        "'{}' is the reward model that the policy is trained on{alias}; name another one, or none",
        reward.name
    );
    Err(refuse("gold_reward_model", message).into())
}

/// Puts a version's name into `args[field]`: the one given by name or id, else the active one.
async fn name_model(
    store: &Store,
    args: &mut Map<String, Value>,
    field: &str,
    kind: ModelKind,
) -> Result<(), EnqueueError> {
    let version = match args.get(field) {
        None => store
            .models()
            .active(kind)
            .await?
            .ok_or_else(|| refuse(field, format!("no {kind} model is active; name a model version")))?,
        Some(Value::String(name)) => match find_version(store, name).await? {
            Some(found) => found,
            None => {
                let kind = (kind == ModelKind::Reward).then_some(kind);
                return Err(refuse(field, unknown_version(store, name, kind, &[]).await?).into());
            }
        },
        Some(_) => return Err(refuse(field, "must be the name of a model version").into()),
    };
    if version.state == ModelState::Retired {
        return Err(refuse(field, format!("'{}' is retired", version.name)).into());
    }
    if version.stage == STAGE_UPSTREAM {
        let message = format!(
            "'{}' is served by an upstream server and has no weights on this server; name a version that has",
            version.name
        );
        return Err(refuse(field, message).into());
    }
    // A policy may begin from a version of any kind.
    if (kind == ModelKind::Reward || field != "model") && version.kind != kind {
        return Err(refuse(field, format!("'{}' is a {} model, not a {kind} model", version.name, version.kind)).into());
    }
    args.insert(field.to_owned(), version.name.into());
    Ok(())
}

/// A job to be queued.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: String,
    pub args: Value,
    pub unique_key: Option<String>,
    pub priority: i64,
    pub notes: JobNotes,
    pub now: Micros,
}

/// The recipe, and the arguments with every model named: one that is left out is the active one, one that is empty is
/// none.
///
/// # Errors
/// `UnknownKind`, or `Args` naming the field.
pub async fn resolve<'r>(
    store: &Store,
    recipes: &'r [Recipe],
    kind: &str,
    args: Value,
) -> Result<(&'r Recipe, Value, JobArgs), EnqueueError> {
    let Some(recipe) = recipes.iter().find(|r| r.name == kind) else {
        let known: Vec<&str> = recipes.iter().map(|r| r.name).collect();
        return Err(EnqueueError::UnknownKind(unknown_name("recipe", kind, &known)));
    };
    let Value::Object(mut args) = args else { return Err(refuse("args", "must be an object").into()) };
    let schema = (recipe.schema)();
    let given = |args: &Map<String, Value>, field: &str| args.get(field).is_some_and(|v| !v.is_null());
    // An empty field means none, which is an error for a required model.
    let (model, reward) = (is_none(&args, "model"), is_none(&args, "reward_model"));
    for (field, _) in roles::models() {
        if is_none(&args, field) {
            args.shift_remove(field);
        }
    }
    if model && needs_model(&schema) {
        return Err(refuse("model", "is empty: name a model version, or leave the field out for the active one").into());
    }
    if needs_model(&schema) || given(&args, "model") {
        name_model(store, &mut args, "model", ModelKind::Policy).await?;
    }
    // A recipe that can be rewarded by a rule requires a rule or a reward model; other recipes use a reward model only
    // if one is named.
    let needs_reward = takes(&schema, "reward") && !(reward || given(&args, "reward"));
    if takes(&schema, "reward_model") && (given(&args, "reward_model") || needs_reward) {
        name_model(store, &mut args, "reward_model", ModelKind::Reward).await?;
    }
    for (field, kind) in [("gold_reward_model", ModelKind::Reward), ("judge_model", ModelKind::Policy)] {
        if given(&args, field) {
            name_model(store, &mut args, field, kind).await?;
        }
    }
    check_gold(store, &args).await?;
    let args = Value::Object(args);
    let checked = check(recipe, &args)?;
    Ok((recipe, args, checked))
}

/// Validates the arguments and queues the job. A model that is left out is the active one; an empty one is none.
///
/// # Errors
/// `UnknownKind`, `Args` naming the field, or the store's `Conflict` when the unique key is taken.
pub async fn enqueue(store: &Store, recipes: &[Recipe], request: Request) -> Result<Job, EnqueueError> {
    let (_, args, checked) = resolve(store, recipes, &request.kind, request.args).await?;
    if let Some(name) = &checked.publish_as
        && store.models().find(name).await?.is_some()
    {
        return Err(refuse("publish_as", format!("a model version '{name}' exists already")).into());
    }
    let job = Job {
        id: JobId::new(),
        kind: request.kind,
        args,
        state: JobState::Queued,
        unique_key: request.unique_key,
        priority: request.priority,
        attempt: 0,
        max_attempts: 10,
        crash_count: 0,
        lease_owner: None,
        lease_expires: None,
        cancel_requested: false,
        checkpoint_uri: None,
        external_ref: None,
        progress: None,
        result: None,
        error: None,
        notes: request.notes,
        created: request.now,
        started: None,
        finished: None,
    };
    Ok(store.jobs().enqueue(job).await?)
}
