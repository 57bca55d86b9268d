//! How the leader leads, how the members follow, and what they say of themselves.

pub mod alarms;
pub mod follow;
pub mod members;
pub mod operate;
pub mod replica;
pub mod status;
