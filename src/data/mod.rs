//! Judgments, demonstrations and prompts as files: reading and writing JSONL and Parquet, pairs from rankings, text
//! corpora. No SQL and no tensors: these formats are shared by the store's rows and a job's files.

pub mod corpus;
pub mod dedup;
pub mod documents;
mod error;
mod fields;
mod files;
mod formats;
pub mod from_feedback;
mod hh;
pub mod labelled;
pub mod limits;
mod lines;
pub mod mixture;
mod oasst;
pub mod parquet;
pub mod preferences;
pub mod records;
pub mod source;
mod split;
mod thumbs;

pub use crate::domain::PromptInput;
pub use error::{DataError, LineError};
pub use files::{read_comparisons, read_demonstrations, read_prompts};
pub use formats::{MAX_COMPLETIONS, Parsed, export, import, import_lines};
pub use oasst::Forest;
pub use preferences::{Pair, pairs};
pub use records::{Comparison, Format, PromptRecord, RankedText, Record, Written};
pub use split::{content_hash, split_of};
pub use thumbs::{Thumbed, read_feedback, thumbs};
