//! What an estimate rests on.

use std::fmt;

use serde::Serialize;

/// One assumption of an estimate. Its `Display` is English; pages have words of their own for each `code`.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Assumption {
    /// Adapters are trained.
    Lora {
        rank: u64,
        trained: u64,
        parameters: u64,
    },
    AllParameters {
        parameters: u64,
    },
    /// Tokens of the longest sequence, as the arguments say.
    MaxLength {
        tokens: u64,
    },
    /// The same, chosen from the lengths of the data.
    MaxLengthOfData {
        tokens: u64,
    },
    MicroBatches {
        tokens: u64,
    },
    /// A reward model is loaded beside the policy.
    RewardModel {
        parameters: u64,
    },
    /// A judge is loaded beside the policy.
    JudgeModel {
        parameters: u64,
    },
    Rows {
        rows: u64,
        tokens: u64,
    },
    /// The data is not known: every sequence is taken to have the greatest length.
    LongestSequences,
    /// A sweep of so many runs, one after the other.
    Runs {
        runs: u64,
    },
    /// The time follows from the speed of earlier runs on this machine.
    EarlierRuns {
        runs: u64,
    },
    /// The time follows from a matrix product that was measured on this machine.
    MeasuredProduct {
        gflops: u64,
    },
    /// Of a judge that answers questions, nothing is estimated.
    JudgeAnswers,
    /// Of another program that trains, nothing is estimated.
    OtherProgram,
    /// The model's files are not on this server, or the job creates the model.
    UnknownModel,
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = |n: u64| n as f64 / 1e6;
        match *self {
            Self::Lora { rank, trained, parameters } => {
                let (trained, all) = (millions(trained), millions(parameters));
                write!(f, "LoRA of rank {rank} ({trained:.1}M of {all:.1}M parameters trained)")
            }
            Self::AllParameters { parameters } => write!(f, "all {:.1}M parameters trained", millions(parameters)),
            Self::MaxLength { tokens } => write!(f, "max_length {tokens} tokens"),
            Self::MaxLengthOfData { tokens } => write!(f, "max_length about {tokens} tokens, from the data"),
            Self::MicroBatches { tokens } => write!(f, "micro-batches of {tokens} tokens"),
            Self::RewardModel { parameters } => write!(f, "a reward model of {:.1}M parameters", millions(parameters)),
            Self::JudgeModel { parameters } => write!(f, "a judge of {:.1}M parameters", millions(parameters)),
            Self::Rows { rows, tokens } => write!(f, "{rows} rows of about {tokens} tokens"),
            Self::LongestSequences => {
                f.write_str("sequences of the greatest length, because the data is not known yet")
            }
            Self::Runs { runs } => write!(f, "{runs} runs, one after the other"),
            Self::EarlierRuns { runs } => {
                let runs = super::fit::count(runs as usize, "earlier run", "earlier runs");
                write!(f, "time from the speed of {runs} of this recipe here")
            }
            Self::MeasuredProduct { gflops } => write!(
                f,
                "time from a matrix product measured here at {gflops} GFLOP/s, as there is no earlier run of this recipe"
            ),
            Self::JudgeAnswers => {
                f.write_str("a judge answers questions and trains nothing; its needs are not estimated")
            }
            Self::OtherProgram => f.write_str("another program trains; its needs are not known to this server"),
            Self::UnknownModel => f.write_str(
                "the model's size is not known: its files are not on this server, or the job creates the model",
            ),
        }
    }
}

/// The assumptions as one English text.
pub fn text(assumptions: &[Assumption]) -> String {
    assumptions.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
