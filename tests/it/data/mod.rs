//! Models, tokenizers and data files: read, written, and refused when damaged.

mod builtin;
mod chat;
pub mod corpora;
pub mod damaged;
mod fixtures;
mod formats;
mod gguf;
mod hub;
pub mod imports;
mod llama_cpp;
mod prompts;
mod published;
mod pull;
mod push;
mod records;
mod roundtrip;
pub mod tokens;
