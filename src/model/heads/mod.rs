//! Heads on a backbone: classifiers and reward models, and the backbone as both see it.

pub mod classifier;
pub mod reward;
pub mod trunk;
