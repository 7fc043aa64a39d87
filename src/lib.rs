//! instructd closes the InstructGPT loop in one process: serve → rank → reward model → PPO → serve.
//!
//! Modules in reading order. Data flows one way:
//!
//! ```text
//! HTTP → service → { store, engine, jobs }        train, engine → generation → model → ops
//! jobs → { store, train }      train → { objective, generation, data, prompt, model }
//! ```
//!
//! Architecture invariants (held by `tests/it/tidy.rs`):
//! - `sqlx::` appears only in `store` and `app`; no other room knows SQL.
//! - `axum::` appears only in `http` and `app`; no handler type leaks further in.
//! - `candle` never appears in `http`, `service` or `store`; tensors stay below the engine.
//! - The clock and random numbers are passed in, never taken from the air, in `store`,
//!   `objective`, `generation` and `train`.

pub mod app;
pub mod backup;
pub mod cli;
pub mod cli_args;
pub mod cli_family;
pub mod cli_models;
pub mod cli_retention;
pub mod cli_tokenizer;
pub mod config;
pub mod domain;
pub mod instructgpt;
pub mod models_cli;
pub mod private;

pub mod http;
pub mod service;
pub mod store;

pub mod artifacts;
pub mod engine;
pub mod erased;
pub mod generation;
pub mod gpu;
pub mod hub;
pub mod jobs;

pub mod eval;
pub mod objective;
pub mod train;

pub mod data;
pub mod prompt;
pub mod tokenizer;

pub mod model;
pub mod ops;
