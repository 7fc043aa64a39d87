//! From messages and examples to the text a model reads.

pub mod chat;
pub mod texts;

pub use chat::{ChatError, ChatTemplate, Rendered};
pub use texts::Texts;
