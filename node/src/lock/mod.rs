//! How a node is unlocked, and how its lock is kept fresh.

pub mod absence;
pub mod pin;
pub mod renewal;
pub mod unlock;
