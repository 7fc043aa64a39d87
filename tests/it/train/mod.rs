//! Training machinery: optimizer, checkpoints, arguments, and the recipes' own guarantees.

mod args;
mod checkpoint;
mod family;
mod gradients;
mod instructgpt;
mod optim;
mod parity;
mod real;
mod recipes;
