//! How a node becomes a member: founding a cluster, and joining a running one.

pub mod begin;
pub mod founding;
pub mod inviter;
pub mod joiner;
pub mod registry;
pub mod terms;
