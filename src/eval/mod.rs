//! Evaluation: metrics of models and of human judgments.

pub mod choice;
pub mod choices;
pub mod classify;
pub mod place;
pub mod quality;
pub mod run;
