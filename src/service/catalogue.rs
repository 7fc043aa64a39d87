//! The models that can be pulled by name, with the resources of this machine.

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
    /// Memory that is available to a new process, bytes; null when it is not known.
    pub available_memory_bytes: Option<u64>,
}

/// A model of the catalogue with its memory needs, and whether it is installed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CatalogueEntry {
    #[serde(flatten)]
    pub model: Known,
    /// Bytes by the number of parameters, without caches and activations.
    pub needs: Needs,
    pub pulled: bool,
}

/// The catalogue, with the models under `data_dir` marked as installed.
pub fn catalogue(data_dir: &Path) -> Catalogue {
    let installed = pull::list(data_dir);
    let entry = |known: &Known| CatalogueEntry {
        model: known.clone(),
        needs: known.needs(),
        pulled: installed.iter().any(|model| model.name == known.name),
    };
    Catalogue { data: KNOWN.iter().map(entry).collect(), available_memory_bytes: available_memory() }
}
