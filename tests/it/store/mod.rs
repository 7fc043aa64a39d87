//! The store seen from outside: one conformance suite over every backend, and what is special to each.

pub mod backend;
pub mod conformance;
mod evidence;
mod feedback;
pub mod fixture;
mod groups;
mod judging;
mod batches;
mod labeling;
mod dumps;
mod postgres;
mod queue;
mod requests;
mod settings;
pub mod integrity;
mod sqlite;
mod workers;
