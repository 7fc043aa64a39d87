//! What correct means: objectives, operations, models and generation against reference values.

mod attention_maps;
mod choice_eval;
mod classifiers;
mod device_adapters;
mod device_encoders;
mod device_formats;
mod device_loading;
mod device_scoring;
mod device_training;
mod eval;
pub(crate) mod formats;
mod further;
mod importance;
mod models;
mod objectives;
mod objectives_gradients;
mod ops;
mod oracle;
mod sampling;
mod sim;
mod smollm2;
mod tokenizer_memory;
mod transformers;
mod variants;
