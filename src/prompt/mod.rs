//! Rendering of messages and examples to a model's text and token ids.

pub mod answer;
pub mod chat;
pub mod conversation;
pub mod instruction;
mod jinja;
mod jinja_bounds;
mod jinja_source;
pub mod label_template;
mod reasoning_ids;
pub mod texts;
pub mod turns;

pub use answer::Reasoning;
pub use chat::{ChatError, ChatTemplate, Rendered};
pub use conversation::{Conversation, ToolCall, Turn};
pub use instruction::{Template, instruction};
pub use label_template::{Gap, LabelTemplate, LabelTemplateError, Shots};
pub use texts::{Answers, Texts};
pub use turns::{ConversationIds, NextTurn, continued};
