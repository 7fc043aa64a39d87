//! From messages and examples to the text a model reads.

pub mod chat;

pub use chat::{ChatError, ChatTemplate, Rendered};
