//! Several servers and workers on one database: real processes, some of them paused at random.

mod artifacts;
mod checkpoints;
mod fleet;
