//! Arguments of `train`, `instructgpt` and `eval` on the command line: from a JSON file, from flags and from `--set
//! KEY=VALUE`. Missing ones are filled from the database or the sample data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::{block_on, locate};
use crate::config::Config;
use crate::domain::{ModelKind, unknown_name};
use crate::jobs::materialise::write_stored;
use crate::jobs::queue::{leaves_out, needs_model, takes};
use crate::train::Recipe;
use crate::train::args::roles;

/// How arguments are given.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Given {
    /// JSON file with the arguments; flags and --set go over it.
    #[arg(long, value_name = "FILE")]
    pub args: Option<PathBuf>,
    /// One argument, such as `epochs=2` or `lora.rank=4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A name (builtin, pulled or published), a directory, a .gguf file or OWNER/NAME of the hub.
    #[arg(long)]
    pub model: Option<String>,
}

/// Files of data on the command line.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Data {
    /// JSONL of rankings.
    #[arg(long, value_name = "FILE")]
    pub comparisons: Option<PathBuf>,
    /// JSONL of demonstrations.
    #[arg(long, value_name = "FILE")]
    pub demonstrations: Option<PathBuf>,
    /// JSONL of prompts.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
}

impl Given {
    /// File, then `--set`, then flags.
    ///
    /// # Errors
    /// A file that is not a JSON object; `--set` without `=`, or with a key inside of a value that is not an object.
    pub fn read(&self) -> Result<Value> {
        let mut args = match &self.args {
            None => json!({}),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?
            }
        };
        ensure!(args.is_object(), "the arguments must be a JSON object");
        for pair in &self.set {
            set(&mut args, pair)?;
        }
        if let Some(model) = &self.model {
            args["model"] = json!(model);
        }
        Ok(args)
    }
}

impl Data {
    /// Puts the flags into the arguments.
    pub fn put(&self, args: &mut Value) {
        let files =
            [("comparisons", &self.comparisons), ("demonstrations", &self.demonstrations), ("prompts", &self.prompts)];
        for (field, path) in files {
            if let Some(path) = path {
                args[field] = json!(path);
            }
        }
    }
}

/// Puts one `key=value` in. The value is JSON where it can be read as such, else text; dots lead into objects.
fn set(args: &mut Value, pair: &str) -> Result<()> {
    let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
        bail!("--set {pair}: write it as KEY=VALUE, such as `--set epochs=2` or `--set lora.rank=4`");
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    let mut at = args;
    let mut parts = key.trim().split('.').peekable();
    while let Some(part) = parts.next() {
        ensure!(!part.is_empty(), "--set {pair}: the key has an empty part");
        if at.is_null() {
            *at = json!({});
        }
        let Some(object) = at.as_object_mut() else {
            bail!("--set {pair}: the value before `{part}` is not an object")
        };
        if parts.peek().is_none() {
            object.insert(part.to_owned(), value);
            return Ok(());
        }
        at = object.entry(part).or_insert(Value::Null);
    }
    Ok(())
}

/// The recipe of this name.
///
/// # Errors
/// An unknown name, with the known recipes and similar names.
pub fn recipe(name: &str) -> Result<&'static Recipe> {
    let recipes = crate::train::recipes();
    let known: Vec<&str> = recipes.iter().map(|r| r.name).collect();
    recipes.iter().find(|r| r.name == name).ok_or_else(|| anyhow!("{}", unknown_name("recipe", name, &known)))
}

/// Every argument of a recipe with its default and help text.
pub fn explain(recipe: &Recipe) -> String {
    use std::fmt::Write as _;
    let schema = (recipe.schema)();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = format!("{}: {}\n\n", recipe.name, recipe.about);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let default = match property.get("default") {
            _ if required.contains(&name.as_str()) => String::new(),
            None | Some(Value::Null) => " (none)".to_owned(),
            Some(value) => format!(" ({value})"),
        };
        let about = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {name}{default}\n      {about}");
    }
    out
}

/// The first of `NAME`, `NAME-2`, … that does not exist.
fn fresh(name: &str) -> PathBuf {
    let free = |path: &Path| !path.exists() && !files_of(path).exists();
    let mut path = PathBuf::from(name);
    let mut number = 2;
    while !free(&path) {
        path = PathBuf::from(format!("{name}-{number}"));
        number += 1;
    }
    path
}

/// Directory of the data files of a run.
fn files_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

/// Completes a recipe's arguments: the model, the output directory, data and reward model. Prints the chosen values on
/// standard error.
///
/// # Errors
/// A missing reward; a database that cannot be opened; files that cannot be written.
pub fn complete(recipe: &Recipe, args: &mut Value, config: &Config) -> Result<()> {
    let schema = (recipe.schema)();
    let is_given = |args: &Value, field: &str| args.get(field).is_some_and(|v| !v.is_null() && v.as_str() != Some(""));
    if takes(&schema, "reward_model") && !is_given(args, "reward_model") && !is_given(args, "reward") {
        let Some((name, path)) = block_on(locate::active(config, ModelKind::Reward))? else {
            bail!(
                "reward_model: is required, and the database has no active one. Train one first with `instructd train \
                 reward` and name its directory: --set reward_model=out/reward; or give a rule: \
                 --set 'reward={{\"kind\": \"length\", \"target\": 20}}'"
            );
        };
        note("reward_model", &name);
        args["reward_model"] = json!(path);
    }
    if needs_model(&schema) && !is_given(args, "model") {
        let (name, path) = locate::default_model(config)?;
        note("model", &name);
        args["model"] = json!(path);
    }
    if !is_given(args, "output_dir") {
        let path = fresh(&format!("out/{}", recipe.name));
        note("output_dir", &path.display().to_string());
        args["output_dir"] = json!(path);
    }
    let dir = files_of(Path::new(args["output_dir"].as_str().unwrap_or("out")));
    let mut given = args.as_object().cloned().unwrap_or_default();
    given.retain(|name, _| is_given(args, name));
    for (field, needed) in roles::data().filter(|(_, needed)| !needed.is_optional()) {
        let wanted = takes(&schema, field) && needed.by(&given, |_| false) && !leaves_out(&schema, &given, field);
        if wanted && !is_given(args, field) {
            args[field] = json!(data(field, &dir, config)?);
        }
    }
    Ok(())
}

/// The arguments with a placeholder for every one that `complete` fills, so that errors in the others are found before
/// a model is looked for.
pub fn with_placeholders(recipe: &Recipe, args: &Value) -> Value {
    let (schema, mut all) = ((recipe.schema)(), args.clone());
    let has_reward = args.get("reward").is_some_and(|v| !v.is_null());
    for field in ["model", "output_dir", "comparisons", "demonstrations", "feedback", "prompts", "reward_model"] {
        let unwanted = match field {
            "model" => !needs_model(&schema),
            "reward_model" => has_reward,
            _ => false,
        };
        let missing = all.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if missing && !unwanted && takes(&schema, field) {
            all[field] = json!("chosen-later");
        }
    }
    all
}

fn note(field: &str, value: &str) {
    eprintln!("{field}: {value} (none was given)");
}

/// Writes data of the database, or else of the sample, as a file in `dir`. Demonstrations and prompts can be derived
/// from rankings.
///
/// # Errors
/// A database that cannot be opened; a file that cannot be written.
pub fn data(field: &str, dir: &Path, config: &Config) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join(format!("{field}.jsonl"));
    let rankings = dir.join("comparisons.jsonl");
    let learns = config.privacy.learn_from_requests;
    let stored = block_on(async {
        let Some(store) = locate::data_store(config).await? else { return Ok(None) };
        let mut found = write_stored(store.as_ref(), field, &path, learns).await?.map(|n| (n, true));
        if found.is_none() && !matches!(field, "comparisons" | "feedback") {
            found = write_stored(store.as_ref(), "comparisons", &rankings, learns).await?.map(|n| (n, false));
        }
        store.close().await;
        anyhow::Ok(found)
    })?;
    let source = match stored {
        Some((n, true)) => {
            note(field, &format!("{n} of the database"));
            return Ok(path);
        }
        Some((n, false)) => format!("{n} rankings of the database"),
        None if field == "feedback" => bail!(
            "feedback: is required, and the database has no thumbs. Give a file of {{\"prompt\", \"completion\", \
             \"label\"}}: --set feedback=FILE"
        ),
        None => {
            std::fs::write(&rankings, crate::service::sample::rankings())
                .with_context(|| format!("writing {}", rankings.display()))?;
            "the sample rankings (the database has none)".to_owned()
        }
    };
    match field {
        "comparisons" => note(field, &source),
        "demonstrations" => {
            let n = crate::instructgpt::demonstrations(None, Some(rankings.as_path()), &path)?;
            note(field, &format!("the {n} best answers of {source}"));
        }
        _ => {
            let n = crate::instructgpt::prompts(None, &rankings, &path)?;
            note(field, &format!("the {n} prompts of {source}"));
        }
    }
    Ok(path)
}

/// The pipeline's arguments with a placeholder for every one that `complete_pipeline` fills.
pub fn pipeline_with_placeholders(args: &Value) -> Value {
    let mut all = args.clone();
    let has = |field: &str| args.get(field).is_some_and(|v| !v.is_null() && v.as_str() != Some(""));
    for field in ["model", "work_dir", "comparisons"] {
        if !(has(field) || field == "comparisons" && has("collect")) {
            all[field] = json!("chosen-later");
        }
    }
    all
}

/// Completes the pipeline's arguments.
///
/// # Errors
/// As `complete`.
pub fn complete_pipeline(args: &mut Value, config: &Config) -> Result<()> {
    let is_given = |args: &Value, field: &str| args.get(field).is_some_and(|v| !v.is_null() && v.as_str() != Some(""));
    if is_given(args, "model") {
        let name = args["model"].as_str().context("model: must be a string")?.to_owned();
        args["model"] = json!(locate::find(&name, config).context("model")?);
    } else {
        let (name, path) = locate::default_model(config)?;
        note("model", &name);
        args["model"] = json!(path);
    }
    if !is_given(args, "work_dir") {
        // The same directory each time, so that a further run continues there.
        note("work_dir", "out/instructgpt");
        args["work_dir"] = json!("out/instructgpt");
    }
    if !is_given(args, "comparisons") && !is_given(args, "collect") {
        let dir = files_of(Path::new(args["work_dir"].as_str().unwrap_or("out")));
        // Further runs use the data that the first run wrote.
        let before = dir.join("comparisons.jsonl");
        args["comparisons"] = json!(if before.is_file() { before } else { data("comparisons", &dir, config)? });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[&str]) -> Result<Value> {
        Given { set: pairs.iter().map(|p| (*p).to_owned()).collect(), ..Given::default() }.read()
    }

    #[test]
    fn values_are_json_or_text() {
        let args =
            given(&["epochs=2", "lora.rank=4", "lora.targets=[\"q_proj\"]", "device=cpu", "a=b=c", "x=", "n=null"]);
        let wanted = json!({"epochs": 2, "lora": {"rank": 4, "targets": ["q_proj"]}, "device": "cpu", "a": "b=c",
                            "x": "", "n": null});
        assert_eq!(args.expect("arguments"), wanted);
        for wrong in ["epochs", "=2", "a..b=1"] {
            let error = given(&[wrong]).expect_err("refused").to_string();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(given(&["a=1", "a.b=2"]).is_err(), "a number holds no fields");
    }

    #[test]
    fn recipes_are_named_with_what_there_is() {
        let error = recipe("stf").err().expect("refused").to_string();
        assert!(error.contains("did you mean 'sft'") && error.contains("reward"), "{error}");
        assert!(explain(recipe("sft").expect("a recipe")).contains("epochs (1)"));
    }
}
