//! A language model as a judge. Training uses this trait: the judge is a model loaded here (`own`), or one that another
//! server runs, whose client the caller of a recipe passes.

mod own;

use anyhow::Result;

pub use self::own::OwnJudge;

/// A language model that answers questions with one of a few texts.
pub trait Judge: Send + Sync {
    /// For each question the probability of each choice, in their order. The choices of a question add up to at most 1: the
    /// rest is on other answers. Blocks until all answers are there.
    ///
    /// # Errors
    /// A model that cannot be asked, or whose answers say nothing of the choices.
    fn masses(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>>;
}

/// A question in the parts that it is made of: where it is too long, the conversation loses its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub before: String,
    pub conversation: String,
    pub after: String,
}

impl Question {
    pub fn text(&self) -> String {
        [self.before.as_str(), &self.conversation, &self.after].concat()
    }
}
