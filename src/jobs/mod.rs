//! Training jobs: queued in the store, run in child processes of this binary, watched over pipes.
//!
//! A panic, an out-of-memory kill or a device abort in training cannot touch serving: the parent holds
//! no tensor, the child holds no database. `queue` checks and names what to do, `materialise` freezes the
//! data into files, `supervise` claims and decides, `executors` run attempts here or elsewhere, `process` owns a child
//! process, `child` is its other side, `travel` brings checkpoints from and to the artifact store, `publish` turns the
//! output into a model version, `remote` asks reward services for a recipe.

pub mod child;
pub mod estimate;
pub mod executors;
pub mod leftovers;
pub mod materialise;
mod process;
mod publish;
pub mod queue;
pub mod remote;
mod spans;
mod supervise;
mod travel;
pub mod wire;

pub use process::{Launch, is_passed_on};
pub use supervise::{Supervisor, SupervisorConfig};
