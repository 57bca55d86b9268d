//! How a node renews the lease that lets it serve, and how an operator seals the node.

pub mod renewal;
pub mod seal;
