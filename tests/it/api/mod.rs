//! HTTP seen from a client: the router over the mock generator and a SQLite store in a temporary
//! directory, called without a socket.

mod access;
pub mod client;
mod completions;
mod hostile;
mod input;
mod labeling;
mod publishing;
