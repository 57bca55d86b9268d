//! How a key comes into memory, and into the cluster.

pub mod deal;
pub mod reconstruct;
