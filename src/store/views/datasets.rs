//! Versions of data sets.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Datasets;
use crate::store::*;

impl Datasets<'_> {
    /// Stores a data set's version. `Conflict` when its name and version exist.
    pub async fn put(self, dataset: DatasetVersion) -> Result<()> {
        write!(self.0, |tx| models::put_dataset(tx, &dataset))
    }

    /// All versions of all data sets, newest first.
    pub async fn list(self) -> Result<Vec<DatasetVersion>> {
        read!(self.0, |c| models::list_datasets(c))
    }

    /// By id or name.
    pub async fn get(self, id_or_name: &str) -> Result<DatasetVersion> {
        read!(self.0, |c| models::get_dataset(c, id_or_name))
    }
}
