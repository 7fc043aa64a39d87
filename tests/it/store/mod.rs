//! The store seen from outside: one conformance suite over every backend, and what is special to each.

pub mod backend;
pub mod conformance;
mod evidence;
mod feedback;
pub mod fixture;
mod groups;
mod judging;
mod kept;
mod labeling;
mod moves;
mod postgres;
mod queue;
mod requests;
mod rubrics;
mod settings;
pub mod sound;
mod sqlite;
mod workers;
