//! What correct means: objectives, model and generation against reference values.

mod objectives;
mod objectives_gradients;
