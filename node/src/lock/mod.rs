//! How a node is unlocked, and how its lock is renewed.

pub mod absence;
pub mod pin;
pub mod renewal;
pub mod unlock;
