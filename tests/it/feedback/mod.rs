//! The queue, people, data sets and the own page over HTTP; and two hundred labelers at once.

mod access_rules;
mod columns;
mod conversations;
mod data;
mod draws;
mod imports;
mod knowledge;
mod lists;
mod load;
mod people;
pub mod queue;
mod rubrics;
mod statements;
mod tournament;
