//! How nodes talk to each other: messages, sessions, Raft over sessions, and what a node believes of what it hears.

pub mod dial;
pub mod link;
pub mod proposal;
pub mod revocation;
pub mod rosters;
pub mod session;
