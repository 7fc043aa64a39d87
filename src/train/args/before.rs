//! Arguments that are younger than a checkpoint: a run that resumes goes on with what the checkpoint was made with,
//! whatever the defaults are today.

use std::path::Path;

use serde_json::{Map, Value};

use super::{RecipeArgs, parse};
use crate::train::ArgsError;
use crate::train::checkpoint::CheckpointDir;

/// The value of every argument in a checkpoint that does not know it.
fn unsaid<T: RecipeArgs>() -> Map<String, Value> {
    let mut values = match serde_json::to_value(T::default()) {
        Ok(Value::Object(values)) => values,
        _ => Map::new(),
    };
    for (name, value) in T::BEFORE {
        values.insert((*name).to_owned(), serde_json::from_str(value).unwrap_or(Value::Null));
    }
    values
}

/// Completes the arguments that a checkpoint was made with: those it does not know had the values of before they
/// existed.
pub fn made_with<T: RecipeArgs>(args: &Value) -> Value {
    let mut all = unsaid::<T>();
    if let Value::Object(known) = args {
        all.extend(known.clone());
    }
    Value::Object(all)
}

/// As `parse`. Where the run resumes from a checkpoint that is older than some arguments, those that are not given take
/// the values of before they existed.
///
/// # Errors
/// As `parse`.
pub fn parse_for_run<T: RecipeArgs>(value: &Value) -> Result<T, ArgsError> {
    let args: T = parse(value)?;
    let resumes = value["resume"].as_bool().unwrap_or(false);
    let Some(dir) = value["checkpoint_dir"].as_str().filter(|_| resumes && !T::BEFORE.is_empty()) else {
        return Ok(args);
    };
    let Some(known) = CheckpointDir::newest_state(Path::new(dir)) else { return Ok(args) };
    let (known, mut all) = (&known["identity"]["args"], value.clone());
    let mut older = false;
    for (name, before) in T::BEFORE {
        if known.is_object() && known.get(name).is_none() && value.get(name).is_none() {
            all[*name] = serde_json::from_str(before).unwrap_or(Value::Null);
            older = true;
        }
    }
    if older { parse(&all) } else { Ok(args) }
}
