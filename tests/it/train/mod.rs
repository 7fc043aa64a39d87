//! Training machinery: optimizer, checkpoints, arguments, and the recipes' own guarantees.

mod args;
mod cards;
mod checkpoint;
mod command_line;
mod devices;
mod families;
mod family;
mod fast;
mod final_answer;
mod fit;
mod gradients;
mod group;
mod guards;
mod instructgpt;
mod kill;
mod losses;
mod optim;
mod options;
mod packing;
mod parity;
mod passes;
mod peft;
mod preferences;
mod real;
pub mod recipes;
mod silent_bugs;
mod without_files;
