//! What the leader does, what an operator orders, and what every node does with a new roster.

pub(super) mod leader;
pub(super) mod orders;
pub(super) mod roster_update;
