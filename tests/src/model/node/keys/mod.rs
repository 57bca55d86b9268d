//! How a key comes into the cluster, into memory, and to new holders.

pub(super) mod deal;
pub(super) mod reconstruct;
pub(super) mod reshare;
pub(super) mod verify;
