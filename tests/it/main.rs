//! The one integration-test binary: every room's behaviour seen from outside.

mod api;
mod crash;
mod data;
mod documents;
mod engine;
mod feedback;
mod jobs;
mod loop_closes;
mod many;
mod numerics;
mod properties;
mod quality;
mod store;
mod support;
mod tidy;
mod train;
