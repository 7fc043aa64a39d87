//! From messages and examples to the text a model reads, and to its ids.

pub mod chat;
pub mod cloze;
pub mod few_shot;
pub mod instruction;
mod jinja;
mod jinja_bounds;
mod jinja_source;
pub mod label_template;
pub mod texts;

pub use chat::{ChatError, ChatTemplate, Rendered};
pub use cloze::{Cloze, ClozeError};
pub use few_shot::{Example, FewShot};
pub use instruction::{Template, instruction};
pub use label_template::{Gap, LabelTemplate, LabelTemplateError, Shots};
pub use texts::{Answers, Texts};
