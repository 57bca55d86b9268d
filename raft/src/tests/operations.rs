//! Operations, followed step by step as a leader would: epochs that come and go, members that come and leave.

mod cluster;
mod epochs;
mod joining;
mod leaving;
mod members;
mod scripts;
mod told;
