//! The command line: subcommands only; bodies live in the library.
fn main() {}
