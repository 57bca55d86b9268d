//! Sessions between nodes and what runs over them: Raft, proposals, newer rosters, and attestations of a revocation.

pub mod dial;
pub mod propose;
pub mod raft_link;
pub mod reachability;
pub mod revocation;
pub mod roster_sync;
pub mod session;
