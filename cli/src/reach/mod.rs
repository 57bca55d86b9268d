//! How a command reaches the daemon of this machine, or the cluster.

pub(crate) mod cluster;
pub(crate) mod daemon;
