//! What correct means: objectives, operations, models and generation against reference values.

mod attention_maps;
mod choice_eval;
mod eval;
mod formats;
mod models;
mod objectives;
mod objectives_gradients;
mod ops;
mod smollm2;
