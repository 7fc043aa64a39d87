//! The store seen from outside: one conformance suite over every backend, and what is special to each.

pub mod backend;
mod batches;
pub mod conformance;
mod conversations;
mod dumps;
mod evidence;
mod feedback;
pub mod fixture;
mod groups;
pub mod integrity;
mod judging;
mod labeling;
mod model_judgments;
mod pooler;
mod postgres;
mod projects;
mod queue;
mod requests;
mod rubrics;
mod searches;
mod settings;
mod sqlite;
mod webhooks;
mod workers;
