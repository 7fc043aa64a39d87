//! Language models as judges: a model that this process loads (`local`), or one that another server runs, for which the
//! caller of a recipe passes a client.

mod local;

use anyhow::Result;

pub use self::local::LocalJudge;

/// A language model that answers questions with one of a few choices.
pub trait Judge: Send + Sync {
    /// The probability of each choice for each question, `[questions][choices]`. The probabilities of a question add up
    /// to at most 1; the rest belongs to other answers. Blocks until all answers have arrived.
    ///
    /// # Errors
    /// If the model cannot be called, or its answers have no probabilities of the choices.
    fn probabilities(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>>;
}

/// A question in three parts. If it is too long, the beginning of the conversation is cut off.
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
