//! Training machinery: optimizer, checkpoints, arguments, and the recipes' own guarantees.

mod args;
mod checkpoint;
mod gradients;
mod optim;
mod real;
mod recipes;
