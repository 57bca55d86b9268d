//! How a node comes in: founding a cluster, and joining one that runs.

pub mod founding;
pub mod inviter;
pub mod joiner;
pub mod registry;
pub mod terms;
