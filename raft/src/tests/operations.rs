//! Operations, step by step as a leader takes them: epochs open and end, members join and leave.

mod cluster;
mod epochs;
mod joining;
mod leaving;
mod members;
mod scripts;
mod told;
