//! The integration tests, in one binary.

mod api;
mod crash;
mod data;
mod documents;
mod engine;
mod feedback;
mod file_cycles;
mod hostile;
mod jobs;
mod loop_closes;
mod many;
mod numerics;
mod privacy;
mod properties;
mod quality;
mod store;
mod support;
mod tidy;
mod train;
