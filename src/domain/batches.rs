//! Objects that clients of the API store: files, batches of requests in them, and responses.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Micros;

name_enum!(
    /// The purpose of a file.
    FilePurpose {
        /// Requests, one on a line.
        Batch = "batch",
        /// The output of a batch.
        BatchOutput = "batch_output",
    }
);

name_enum!(
    /// The state of a batch.
    BatchState {
        /// Validated, and queued for a server.
        Queued = "validating",
        Running = "in_progress",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
        Done = "completed",
        /// It could not start or could not be completed; its errors have the reason.
        Failed = "failed",
        /// It expired before all requests were answered.
        Expired = "expired",
    }
);

impl BatchState {
    /// Whether the state is final.
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

/// Why a batch could not start or could not be completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BatchFault {
    pub code: String,
    pub message: String,
    /// The field of the line.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<i64>,
}

/// Requests of a file, answered at lower priority than other requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `batch_` and a ULID.
    pub id: String,
    /// The owner, as of a file.
    pub owner: String,
    pub input_file: String,
    /// The path of every request.
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

/// A response of the Responses API with its conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptResponse {
    pub id: String,
    /// The owner, as of a file; `None` for anonymous requests.
    pub owner: Option<String>,
    /// The messages of the conversation, including the answer, in the format of chat requests.
    pub messages: Vec<Value>,
    /// The response as it was returned.
    pub response: Value,
    pub created: Micros,
}

/// The result of one line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchResult {
    /// The line of the input file, from 1.
    pub line: i64,
    /// Whether it is written to the error file.
    pub failed: bool,
    /// The line, JSON.
    pub text: String,
}
