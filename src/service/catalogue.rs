//! The models that can be pulled by name, beside what this machine has.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use crate::hub::catalogue::{KNOWN, Known, Needs};
use crate::hub::pull;
use crate::train::estimate::available_memory;

/// Every model that can be pulled by name, and the memory of this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Catalogue {
    /// By size.
    pub data: Vec<CatalogueEntry>,
    /// Memory that a new process can have; null where it is not known.
    pub available_memory_bytes: Option<u64>,
}

/// A model of the catalogue with its needs, and whether it is there already.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CatalogueEntry {
    #[serde(flatten)]
    pub model: Known,
    /// Bytes by the number of parameters; caches and activations come on top.
    pub needs: Needs,
    pub pulled: bool,
}

/// The catalogue beside the models under `data_dir`.
pub fn catalogue(data_dir: &Path) -> Catalogue {
    let installed = pull::list(data_dir);
    let entry = |known: &Known| CatalogueEntry {
        model: known.clone(),
        needs: known.needs(),
        pulled: installed.iter().any(|model| model.name == known.name),
    };
    Catalogue { data: KNOWN.iter().map(entry).collect(), available_memory_bytes: available_memory() }
}
