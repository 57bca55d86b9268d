//! How a master key is split into shares, sealed to the holders, sent, and rebuilt.

pub mod master;
pub mod quorum;
pub mod seal;
pub mod split;
pub mod transit;
