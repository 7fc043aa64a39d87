//! The queue, people, data sets and the own page over HTTP; and two hundred labelers at once.

mod data;
mod imports;
mod load;
mod people;
mod queue;
