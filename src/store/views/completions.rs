//! Completions of prompts, by models and people.

use std::collections::HashSet;

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Completions;
use crate::store::*;

impl Completions<'_> {
    /// Stores completions in one transaction.
    pub async fn put(self, completions: Vec<Completion>) -> Result<()> {
        write!(self.0, |tx| async move {
            for completion in &completions {
                prompts::put_completion(tx, completion, None).await?;
            }
            Ok(())
        })
    }

    /// One completion. `NotFound` when there is none with this id.
    pub async fn get(self, id: &CompletionId) -> Result<Completion> {
        read!(self.0, |c| prompts::get_completion(c, id))
    }

    /// The completions of a prompt, oldest first.
    pub async fn list(self, prompt_id: &PromptId) -> Result<Vec<Completion>> {
        read!(self.0, |c| prompts::list_completions(c, prompt_id))
    }

    /// Stores a reward model's score.
    pub async fn set_reward(self, id: &CompletionId, reward: f64) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| prompts::set_reward(tx, &id, reward))
    }

    /// Stores completions with the prompt that they answer; `served` names the route of the request, if there was one.
    pub async fn put_answers(self, prompt: Prompt, completions: Vec<Completion>, served: Option<&str>) -> Result<()> {
        write!(self.0, served = served.map(str::to_owned) => |tx| privacy::put_answers(tx, &prompt, completions, served.as_deref()))
    }

    /// The completions of a prompt that answered requests.
    pub async fn served(self, id: &PromptId) -> Result<HashSet<CompletionId>> {
        read!(self.0, |c| privacy::served_completions(c, id))
    }
}
