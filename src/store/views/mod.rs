//! The store's methods, in views by domain: `store.sets().get(&id)`. Each view is a file; the statements are in the
//! files of the module `store` that the methods name. A read borrows a connection; a write runs in a task of its own,
//! which ends after the commit even when the caller is dropped.

use super::sql::Store;

mod api_keys;
mod audit_log;
mod backups;
mod batches;
mod completions;
mod conversations;
mod datasets;
mod demonstrations;
mod draws;
mod feedback;
mod files;
mod guidelines;
mod invites;
mod jobs;
mod judgments;
mod leases;
mod links;
mod model_judgments;
mod models;
mod people;
mod privacy;
mod prompts;
mod responses;
mod rubrics;
mod sessions;
mod sets;
mod settings;
mod webhooks;

/// One type and one method of [`Store`] for each view.
macro_rules! views {
    ($($(#[$doc:meta])* $method:ident: $view:ident;)+) => {
        $($(#[$doc])* #[derive(Clone, Copy)] pub struct $view<'a>(&'a Store);)+

        impl Store {
            $($(#[$doc])* pub fn $method(&self) -> $view<'_> {
                $view(self)
            })+
        }
    };
}

views! {
    /// Keys of programs and operators, and the tokens charged to them.
    api_keys: ApiKeys;
    /// The audit trail: who changed what, and when.
    audit_log: AuditLog;
    /// Backups of this database.
    backups: Backups;
    /// Batches of requests and their results.
    batches: Batches;
    /// Completions of prompts, by models and people.
    completions: Completions;
    /// Conversations of labelers with the model: comparison sets that follow each other.
    conversations: Conversations;
    /// Versions of data sets.
    datasets: Datasets;
    /// Ideal answers written by people.
    demonstrations: Demonstrations;
    /// Draws of comparison sets, which run in the background.
    draws: Draws;
    /// Feedback events of applications: thumbs, edits, choices.
    feedback: Feedback;
    /// Files of clients: uploaded files, and output files of batches.
    files: Files;
    /// Versions of the guidelines that labelers read.
    guidelines: Guidelines;
    /// Invites, each of which makes one person.
    invites: Invites;
    /// The job queue. Leases use the database's clock. Every change of a job's state appends the event `state` in the
    /// same transaction.
    jobs: Jobs;
    /// Judgments are append-only. The labelers `admin` and `import` exist from the start.
    judgments: Judgments;
    /// Leases of sets. There is at most one current lease for a set and a labeler, and never more current leases,
    /// submitted assignments and rankings by API on a set than its `target_overlap`.
    leases: Leases;
    /// Personal sign-in links.
    links: Links;
    /// Language models as labelers, and their rankings of sets, which count nowhere unless a data set asks for them.
    model_judgments: ModelJudgments;
    /// Versions of models, their activation, use and evidence.
    models: Models;
    /// Labelers and operators.
    people: People;
    /// Personal data and requests: counts, expiry and erasure.
    privacy: Privacy;
    /// Prompts, and which of them sets may be drawn for.
    prompts: Prompts;
    /// Stored responses of the Responses API, which a later request may continue.
    responses: Responses;
    /// Versions of rubrics, by which labelers rate completions, and which of them is active.
    rubrics: Rubrics;
    /// Sessions of browsers.
    sessions: Sessions;
    /// Comparison sets: what labelers rank.
    sets: Sets;
    /// Settings that are changed while the server runs.
    settings: Settings;
    /// Webhooks, what is to be sent to them, and the state of notices.
    webhooks: Webhooks;
}
