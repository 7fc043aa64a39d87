//! HTTP seen from a client: the router over the mock generator and a SQLite store in a temporary
//! directory, called without a socket.

mod access;
mod attention;
mod batches;
mod callers;
mod choices;
pub mod client;
mod completions;
pub mod contract;
mod dialects;
mod encoders;
mod equal_texts;
mod evidence;
mod fake_upstream;
mod floods;
mod forms;
mod hostile;
mod identity;
mod input;
mod labeling;
mod limits;
mod live;
mod logs;
mod markdown;
mod messages;
mod names;
mod parameters;
mod published;
mod publishing;
mod replicas;
mod sockets;
mod static_files;
mod structured;
mod tools;
mod traces;
mod upstream;
mod webui;
