//! `instructd eval`: measures a model on a file.

use anyhow::{Context, Result, bail};

use super::args::Given;
use super::locate;
use super::settings::Settings;
use crate::eval::place::Place;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    settings: Settings,
}

/// (kind of evaluation, argument of its file); `choice` has a list of systems instead.
const MEASURED_ON: &[(&str, &str)] =
    &[("perplexity", "text"), ("classifier", "labelled"), ("reward", "comparisons"), ("scores", "completions")];

/// # Errors
/// A missing kind, or a missing file for it; the message has an example.
fn check(args: &serde_json::Value) -> Result<()> {
    let given = |name: &str| args.get(name).is_some_and(|v| !v.is_null());
    if !given("kind") {
        bail!(
            "kind: which evaluation? There are perplexity, choice, classifier, reward, scores; for instance `instructd \
             eval --set kind=perplexity --set text=FILE`"
        );
    }
    let kind = args["kind"].as_str().unwrap_or_default();
    if let Some((_, field)) = MEASURED_ON.iter().find(|(name, field)| *name == kind && !given(field)) {
        bail!("{field}: the evaluation {kind} needs a file: --set {field}=FILE");
    }
    Ok(())
}

/// Takes the arguments that say where models are computed, which every kind has.
fn take_place(args: &mut serde_json::Value) -> Result<Place> {
    let taken = args.as_object_mut().map(|args| {
        let named = ["device", "precision"].into_iter().filter_map(|name| Some((name.to_owned(), args.remove(name)?)));
        named.filter(|(_, value)| !value.is_null()).collect::<serde_json::Map<_, _>>()
    });
    serde_path_to_error::deserialize(serde_json::Value::Object(taken.unwrap_or_default()))
        .context("the evaluation's arguments")
}

/// Measures a model on a file and prints the figures as JSON.
///
/// # Errors
/// Arguments that are refused, files that cannot be read, a model of the wrong kind.
pub fn run(args: Args) -> Result<()> {
    let config = &args.settings.load()?;
    let mut args = args.given.read()?;
    check(&args)?;
    let names_model = args.get("model").is_some_and(|v| !v.is_null()) || args.get("systems").is_some();
    if !names_model {
        let (name, path) = locate::default_model(config)?;
        eprintln!("model: {name} (none was given)");
        args["model"] = serde_json::json!(path);
    }
    locate::put_paths(&mut args, config)?;
    let place = take_place(&mut args)?;
    let args = serde_path_to_error::deserialize(&args).context("the evaluation's arguments")?;
    let result = crate::eval::run::run_at(&args, place)?;
    if let crate::eval::run::EvalResult::Choice(table) = &result {
        eprint!("{}", table.markdown);
    }
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
