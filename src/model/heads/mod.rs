//! Heads on a backbone: classifiers and reward models, and the backbone that both use.

pub mod classifier;
pub mod reward;
pub mod trunk;
