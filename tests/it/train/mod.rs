//! Training machinery: optimizer, checkpoints, arguments, and the recipes' own guarantees.

mod checkpoint;
mod optim;
