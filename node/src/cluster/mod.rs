//! How the leader leads, how the members follow, and what they say of themselves.

pub mod alarms;
pub mod leader;
pub mod orders;
pub mod replica;
pub mod roster_update;
pub mod status;
