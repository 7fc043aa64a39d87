//! Training jobs: queued in the store, run in child processes of this binary, supervised over pipes.
//!
//! A panic, an out-of-memory kill or a device abort in training cannot affect serving: the parent holds no tensors, the
//! child has no database. `queue` checks a job's arguments, `available` whether its data exists, `learned` reads what may
//! be learned from, `materialise` freezes it into files, `supervise` claims jobs and decides how they end, `executors` run
//! attempts on this machine or at a place, `process` owns a child process, `child` is the code in it, `checkpoints` moves checkpoints to and from the artifact store, `publish` turns
//! the output into a model version, and `remote`, `judges` and `upstream` are the clients of reward services, of judges,
//! and of the servers that generate rollouts.

mod asking;
pub mod available;
mod checkpoints;
pub mod child;
pub mod estimate;
pub mod executors;
pub mod judges;
mod judging;
mod lacking;
pub mod learned;
mod lease;
pub mod leftovers;
mod line_file;
pub mod materialise;
mod process;
mod publish;
pub mod queue;
pub mod remote;
mod settings;
mod spans;
mod supervise;
pub mod upstream;
pub mod wire;

pub use process::{Launch, is_passed_on};
pub use settings::SupervisorConfig;
pub use supervise::Supervisor;
