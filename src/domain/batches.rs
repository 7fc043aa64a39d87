//! What clients of the API leave here: files, batches of requests that are read from them, and responses.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Micros;

name_enum!(
    /// What a file is for.
    FilePurpose {
        /// Requests, one on a line.
        Batch = "batch",
        /// What a batch wrote.
        BatchOutput = "batch_output",
    }
);

name_enum!(
    /// How far a batch has come.
    BatchState {
        /// Checked, and waiting for a server to take it.
        Queued = "validating",
        Running = "in_progress",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
        Done = "completed",
        /// It could not be begun, or had to be given up; its errors say why.
        Failed = "failed",
        /// Its time ended before all requests were answered.
        Expired = "expired",
    }
);

impl BatchState {
    /// Whether nothing happens to the batch any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done | Self::Failed | Self::Expired)
    }
}

/// A file of a key or person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// `file-` and a ULID.
    pub id: String,
    /// A key's id, `configured` for the configured admin key, or `person:` and an id.
    pub owner: String,
    pub name: String,
    pub purpose: FilePurpose,
    pub bytes: i64,
    pub created: Micros,
}

/// Why a batch could not be begun, or had to be given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BatchFault {
    pub code: String,
    pub message: String,
    /// The field of the line.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<i64>,
}

/// Requests of a file that are answered when nobody else waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `batch_` and a ULID.
    pub id: String,
    /// As that of a file.
    pub owner: String,
    pub input_file: String,
    /// The path that every line asks for.
    pub endpoint: String,
    pub state: BatchState,
    /// An object of the client's, or null.
    pub metadata: Value,
    pub faults: Vec<BatchFault>,
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    pub created: Micros,
    pub began: Option<Micros>,
    pub cancelling: Option<Micros>,
    pub ended: Option<Micros>,
    pub expires: Micros,
    pub output_file: Option<String>,
    pub error_file: Option<String>,
}

/// An answer of the Responses API with the conversation that it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptResponse {
    pub id: String,
    /// As that of a file; `None` where nobody said who they were.
    pub owner: Option<String>,
    /// The messages of the conversation, the answer included, as chat takes them.
    pub messages: Vec<Value>,
    /// The response as it was returned.
    pub response: Value,
    pub created: Micros,
}

/// The answer to one line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchResult {
    /// The line of the input file, from 1.
    pub line: i64,
    /// It belongs to the file of errors.
    pub failed: bool,
    /// A line of JSON.
    pub text: String,
}
