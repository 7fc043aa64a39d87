//! Tests of one room; see the files beside this one.
