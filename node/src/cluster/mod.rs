//! The leader's loop, operations, roster updates, status and alarms.

pub mod alarms;
pub mod leader;
pub mod orders;
pub mod replica;
pub mod roster_update;
pub mod status;
