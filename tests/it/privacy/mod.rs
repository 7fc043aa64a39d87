//! Privacy: what people ask is not learned from unless the operator says so, does not stay longer than they say, and
//! leaves no trace where it does not belong.

mod erasure;
mod people;
mod requests;
mod retention;
mod walls;
