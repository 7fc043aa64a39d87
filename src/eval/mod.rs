//! Evaluation: numbers about models that need no gradient.

pub mod choice;
pub mod choices;
pub mod classify;
pub mod quality;
pub mod run;
