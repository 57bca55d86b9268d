//! How a node is unlocked, how its lock is renewed, and what it holds for the locks of its peers.

pub mod absence;
pub mod held;
pub mod pin;
pub mod renewal;
pub mod unlock;
