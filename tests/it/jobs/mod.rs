//! Training jobs seen from outside: what may be queued, how children are run, and what they say.

mod child;
mod estimate;
mod fake_ray;
mod fleet;
mod judges;
mod judging;
mod pages;
mod places;
mod queue;
mod real;
mod remote;
mod supervise;

use instructd::domain::*;
use instructd::store::Store;
use serde_json::{Value, json};

use crate::store::fixture;

/// A store with an active policy `base`, and two ranked sets (one held out).
async fn small_world(store: &Store) -> ModelVersion {
    let base = fixture::model("base", ModelKind::Policy);
    store.models().put(base.clone()).await.unwrap();
    store.models().activate(&base.id, fixture::T0).await.unwrap();
    for (split, text) in [(Split::Train, "q1"), (Split::Heldout, "q2")] {
        let mut prompt = fixture::prompt(text);
        prompt.split = split;
        let texts: Vec<_> = ["good", "bad", "worse"].iter().map(|t| fixture::completion(&prompt.id, t)).collect();
        let set = fixture::comparison_set(&prompt.id, &texts, 1);
        let judgment = fixture::judgment(&set, &"import".into(), None, text);
        assert_eq!(fixture::import(store, prompt, texts, set, judgment).await, instructd::store::Imported::New);
    }
    base
}

async fn enqueue(store: &Store, kind: &str, args: Value) -> Result<Job, instructd::jobs::queue::EnqueueError> {
    let request = instructd::jobs::queue::Request {
        kind: kind.into(),
        args,
        unique_key: None,
        priority: 0,
        notes: Default::default(),
        now: fixture::T0,
    };
    instructd::jobs::queue::enqueue(store, instructd::train::job_kinds(), request).await
}

async fn enqueue_reward(store: &Store) -> Job {
    enqueue(store, "reward", json!({"epochs": 2})).await.unwrap()
}
