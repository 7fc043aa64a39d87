//! What must survive: the real binary killed, stopped, cut off from its database and out of disk space.

mod disk;
mod disk_uses;
mod in_flight;
mod kill;
mod outage;
mod poison;
pub mod server;
mod stop;
mod webhooks;
