//! What holds for every input of some kind: random requests to the scheduler, random text, random names, and
//! damaged files.

mod damage;
mod names;
mod scheduler;
