//! How a node is unlocked, and how its lock is renewed.

pub mod absence;
pub mod held;
pub mod pin;
pub mod renewal;
pub mod unlock;
