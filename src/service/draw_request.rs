//! A request for a draw of sets, and its validated form.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use serde::{Deserialize, Serialize};

use crate::engine::ServedModel;
use crate::store::PromptFilter;

/// What to draw.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrawRequest {
    pub policy: SelectionPolicy,
    /// Sets to make, 1 to 10000.
    pub count: usize,
    /// Completions a set, 2 to 9; as configured when absent. Even for `versus`.
    pub n: Option<usize>,
    /// How many people should rank each set.
    pub overlap: Option<i64>,
    /// Which stored prompts to draw for; of the first project when it names none. `disagreement` and `judge` choose among
    /// sets and use only its project, all projects when it names none.
    #[serde(default)]
    pub prompts: PromptFilter,
    /// The policies (names or ids): two for `versus`, 2 to 8 for `tournament`.
    pub versions: Option<Vec<String>>,
    /// For `tournament`: the probability of the whole order at which it ends, 0.5 to 0.999; 0.95 when absent.
    pub certainty: Option<f64>,
    /// For `uncertainty`: prompts answered and scored for each set made, 1 to 64; 4 when absent.
    pub candidates: Option<usize>,
    /// Longest answer, in tokens; as configured (`labeling.max_tokens`) when absent.
    pub max_tokens: Option<usize>,
    /// 0 to 2; as configured (`labeling.temperature`) when absent.
    pub temperature: Option<f32>,
    /// Above 0 and at most 1; as configured (`labeling.top_p`) when absent.
    pub top_p: Option<f32>,
    /// Seed of the choice of prompts and of the samples; random when absent.
    pub seed: Option<u64>,
}

/// How a set's prompt and completions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SelectionPolicy {
    /// Any prompt, samples of the active policy.
    Random,
    /// Of several prompts, those about whose samples the active reward model is least certain.
    Uncertainty,
    /// Two versions answer the same prompt.
    Versus,
    /// Versions meet in pairs until their order is certain. The draw goes on while people rank its sets, and compares the
    /// two neighbours whose order is the least certain.
    Tournament,
    /// Completions that are stored already: imported, or given to users.
    Stored,
    /// Sets that labelers disagreed about get one more judgment.
    Disagreement,
    /// Open sets that a judge doubts, or ranked otherwise than people, come first in the queue; finished ones that it
    /// ranked otherwise than people get one more judgment.
    Judge,
}

impl SelectionPolicy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Uncertainty => "uncertainty",
            Self::Versus => "versus",
            Self::Tournament => "tournament",
            Self::Stored => "stored",
            Self::Disagreement => "disagreement",
            Self::Judge => "judge",
        }
    }
}

/// A validated request.
pub(super) struct DrawPlan {
    pub(super) request: DrawRequest,
    pub(super) n: usize,
    pub(super) seed: u64,
    pub(super) max_tokens: usize,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    /// One entry for one version, two for `versus`, all of a tournament; none where nothing is generated.
    pub(super) models: Vec<Arc<ServedModel>>,
    /// Pieces of text received so far.
    pub(super) pieces: AtomicI64,
}

impl DrawPlan {
    /// The plan of a set in which two versions of a tournament meet.
    pub(super) fn of_pair(&self, (a, b): (usize, usize)) -> Self {
        Self {
            request: self.request.clone(),
            n: self.n,
            seed: self.seed,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            models: vec![self.models[a].clone(), self.models[b].clone()],
            pieces: AtomicI64::new(0),
        }
    }
}
