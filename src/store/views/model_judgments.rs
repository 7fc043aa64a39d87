//! Language models as labelers, and their rankings of sets.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::ModelJudgments;
use crate::store::*;

impl ModelJudgments<'_> {
    /// Stores a model as a labeler, or its name when the model is known.
    pub async fn put_labeler(self, labeler: ModelLabeler) -> Result<()> {
        write!(self.0, |tx| model_judgments::put_labeler(tx, &labeler))
    }

    /// All models that are labelers, in the order in which they were added.
    pub async fn labelers(self) -> Result<Vec<ModelLabeler>> {
        read!(self.0, |c| model_judgments::labelers(c))
    }

    /// The newest sets that a model is to rank and has not ranked by these criteria.
    pub async fn to_judge(self, wanted: &ToJudge) -> Result<Vec<SetId>> {
        read!(self.0, |c| model_judgments::to_judge(c, wanted))
    }

    /// Stores rankings, all or none, and returns their number. A set that no longer exists, and one that the model has
    /// ranked by these criteria, are left out. `Conflict` for a ranking that does not name every completion of its set
    /// once.
    pub async fn append(self, judgments: Vec<ModelJudgment>) -> Result<u64> {
        write!(self.0, |tx| model_judgments::append(tx, &judgments))
    }

    /// Rankings of one set, in the order in which they were stored.
    pub async fn of_set(self, set: &SetId) -> Result<Vec<ModelJudgment>> {
        read!(self.0, |c| model_judgments::of_set(c, set))
    }

    /// Rankings in the order in which they were stored.
    pub async fn all(self, filter: &JudgedFilter) -> Result<Vec<ModelJudgment>> {
        read!(self.0, |c| model_judgments::all(c, filter))
    }
}
