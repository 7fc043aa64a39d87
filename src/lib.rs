//! instructd closes the InstructGPT loop in one process: serve → rank → reward model → PPO → serve.
//!
//! `tests/it/tidy.rs` holds the table of the modules and of the edges that are allowed between them, and
//! ARCHITECTURE.md the diagram made from it. Its further rules:
//! - `sqlx::` appears only in `store`.
//! - `axum::` appears only in `http` and `app`.
//! - `candle` never appears in `http`, `service` or `store`; tensors stay below the engine.
//! - The system clock and random sources are read in named places only; everything else gets times, seeds and ids.

pub mod app;
pub mod cli;

pub mod config;
pub mod domain;

pub mod http;
pub mod service;
pub mod store;

pub mod artifacts;
pub mod engine;
pub mod generation;
pub mod gpu;
pub mod hub;
pub mod jobs;

pub mod eval;
pub mod instructgpt;
pub mod objective;
pub mod statistics;
pub mod train;

pub mod data;
pub mod prompt;
pub mod tokenizer;

pub mod model;
pub use instructd_ops as ops;
