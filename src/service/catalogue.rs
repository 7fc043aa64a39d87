//! The models that can be pulled by name, beside what this machine has.

use std::path::Path;

use serde_json::{Value, json};

use crate::hub::catalogue::KNOWN;
use crate::hub::pull;
use crate::train::estimate::available_memory;

/// Every model of the catalogue with its needs, whether it is there already, and the memory of this machine.
pub fn answer(data_dir: &Path) -> Value {
    let installed = pull::list(data_dir);
    let data: Vec<Value> = KNOWN
        .iter()
        .map(|known| {
            let mut about = json!(known);
            about["needs"] = json!(known.needs());
            about["pulled"] = json!(installed.iter().any(|model| model.name == known.name));
            about
        })
        .collect();
    json!({"data": data, "available_memory_bytes": available_memory()})
}
