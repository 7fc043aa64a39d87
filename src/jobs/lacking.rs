//! What to do when the stored data that a job learns from does not exist.

use crate::store::{RankedFilter, Store, StoreError};

pub(super) const NO_SETS: &str = "there are no sets that this judge has not ranked by these criteria";
pub(super) const NO_DEMONSTRATIONS: &str = "there are no demonstrations; write or import some first";

/// The message about missing thumbs; `undecided` completions have as many likes as dislikes.
pub(super) fn no_feedback(filter: &RankedFilter, undecided: usize) -> String {
    match undecided {
        0 if filter.without_requests => "there are no thumbs to learn from; send some with POST /v1/feedback first \
             (those on answers to requests count only with privacy.learn_from_requests)"
            .to_owned(),
        0 => "there are no thumbs to learn from; send some with POST /v1/feedback first".to_owned(),
        n => format!("there are no thumbs to learn from: of {n} completions as many users like as dislike them"),
    }
}

/// The message about missing rankings.
pub(super) fn no_rankings(filter: &RankedFilter) -> String {
    let everything = RankedFilter { without_requests: filter.without_requests, ..RankedFilter::default() };
    match filter.by_rating.as_ref() {
        Some(by) => format!(
            "there are no ratings on {:?} of the rubric {:?} to learn from; rate some completions first",
            by.dimension, by.rubric
        ),
        None if *filter != everything => {
            "there are no rankings to learn from that the job's filter selects; change the \
             filter, or rank some completions first"
                .to_owned()
        }
        None => "there are no rankings to learn from; rank some completions first".to_owned(),
    }
}

/// The message about missing prompts.
///
/// # Errors
/// Errors of the store.
pub(super) async fn no_prompts(store: &Store, without_requests: bool) -> Result<String, StoreError> {
    Ok(match store.prompts().request_counts().await?.prompts {
        n if without_requests && n > 0 => format!(
            "there are no prompts to train on: the {n} stored prompts came in as requests, and the setting \
             privacy.learn_from_requests is off. Add or import prompts, or switch the setting on"
        ),
        _ => "there are no prompts to train on; add or import some first".to_owned(),
    })
}
