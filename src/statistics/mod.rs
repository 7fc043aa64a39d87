//! Figures over numbers and texts that training and evaluation share: pure functions, without models.

pub mod diversity;
pub mod interval;
pub mod logistic;
