//! Arguments that did not exist when a checkpoint was written: a resumed run uses the behaviour of that time, not
//! today's defaults.

use std::path::Path;

use serde_json::{Map, Value};

use super::{RecipeArgs, parse};
use crate::train::ArgsError;
use crate::train::checkpoint::CheckpointDir;

/// The value of every argument that is missing in a checkpoint.
fn missing<T: RecipeArgs>() -> Map<String, Value> {
    let mut values = match serde_json::to_value(T::default()) {
        Ok(Value::Object(values)) => values,
        _ => Map::new(),
    };
    for (name, value) in T::EARLIER_DEFAULTS {
        values.insert((*name).to_owned(), serde_json::from_str(value).unwrap_or(Value::Null));
    }
    values
}

/// The arguments of a checkpoint, completed by the behaviour of the time before missing ones existed.
pub fn with_earlier_defaults<T: RecipeArgs>(args: &Value) -> Value {
    let mut all = missing::<T>();
    if let Value::Object(known) = args {
        all.extend(known.clone());
    }
    Value::Object(all)
}

/// Parses arguments. If the run resumes from a checkpoint in which some arguments are missing, those that are not given
/// get the values of the time before they existed.
///
/// # Errors
/// Those of `parse`.
pub fn parse_for_run<T: RecipeArgs>(value: &Value) -> Result<T, ArgsError> {
    let args: T = parse(value)?;
    let resumes = value["resume"].as_bool().unwrap_or(false);
    let Some(dir) = value["checkpoint_dir"].as_str().filter(|_| resumes && !T::EARLIER_DEFAULTS.is_empty()) else {
        return Ok(args);
    };
    let Some(known) = CheckpointDir::newest_state(Path::new(dir)) else { return Ok(args) };
    let (known, mut all) = (&known["identity"]["args"], value.clone());
    let mut older = false;
    for (name, before) in T::EARLIER_DEFAULTS {
        if known.is_object() && known.get(name).is_none() && value.get(name).is_none() {
            all[*name] = serde_json::from_str(before).unwrap_or(Value::Null);
            older = true;
        }
    }
    if older { parse(&all) } else { Ok(args) }
}
