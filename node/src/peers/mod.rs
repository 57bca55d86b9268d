//! How nodes talk to each other: messages, sessions, Raft over sessions, and what a node believes of what it hears.

pub mod dial;
pub mod propose;
pub mod raft_link;
pub mod revocation;
pub mod roster_sync;
pub mod session;
