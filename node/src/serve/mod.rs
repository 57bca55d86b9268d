//! Doors: where questions of clients, peers and the operator's own machine arrive.

pub mod admin;
pub mod answer;
pub mod listen;
