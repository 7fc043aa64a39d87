//! Evaluation: numbers about models that need no gradient.

pub mod classify;
pub mod preference;
pub mod quality;
pub mod run;
