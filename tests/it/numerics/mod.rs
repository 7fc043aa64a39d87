//! What correct means: objectives, operations, models and generation against reference values.

mod objectives;
mod objectives_gradients;
mod models;
mod ops;
mod smollm2;
