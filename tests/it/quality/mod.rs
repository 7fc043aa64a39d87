//! Figures about human judgments: against other people's programs, and over HTTP.

mod api;
mod figures;
mod judges;
mod large;
mod learned;
