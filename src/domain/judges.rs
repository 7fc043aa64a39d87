//! Language models as labelers, and their rankings of sets.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CompletionId, JudgmentId, LabelerId, Micros, SetId};

name_enum!(
    /// Whether a labeler is a person or a language model.
    LabelerKind { Human = "human", Model = "model" }
);

name_enum!(
    /// The labelers whose rankings a data set contains.
    #[derive(Default)]
    LabelersUsed {
        /// People only.
        #[default]
        Human = "human",
        /// Language models that rank as labelers (jobs of kind `judge`) only.
        Model = "model",
        /// People and language models.
        All = "all",
    }
);

impl LabelersUsed {
    pub fn is_human(&self) -> bool {
        *self == Self::Human
    }

    /// The kinds of labelers, people first.
    pub fn kinds(self) -> &'static [LabelerKind] {
        match self {
            Self::Human => &[LabelerKind::Human],
            Self::Model => &[LabelerKind::Model],
            Self::All => &[LabelerKind::Human, LabelerKind::Model],
        }
    }
}

name_enum!(
    /// The sets that a judge ranks. Sets with known answers and retired sets are never among them.
    SetsToJudge {
        /// Sets of the queue.
        Open = "open",
        /// Sets that at least one person has ranked.
        Ranked = "ranked",
        /// Both.
        All = "all",
    }
);

/// A language model that ranks sets as a labeler. It has no key and cannot sign in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLabeler {
    pub id: LabelerId,
    pub name: String,
    pub created: Micros,
}

/// A language model's ranking of a set. It fills no place of the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelJudgment {
    pub id: JudgmentId,
    pub set_id: SetId,
    pub labeler_id: LabelerId,
    /// What the model was told about good answers.
    pub criteria: String,
    /// 0 to 1: the mean over the pairs of completions of 1 − |2p − 1|, where p is the probability that the first is
    /// better; 1 for a pair on which the two orders of showing it disagree.
    pub doubt: f64,
    /// Each completion of the set with its tier; 0 is the best.
    pub items: Vec<(CompletionId, i64)>,
    pub created: Micros,
}
