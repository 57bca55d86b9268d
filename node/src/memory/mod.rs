//! What a node keeps in memory and nowhere else: keys, opened share keys, and the right to serve. The types need no node.

pub mod absences;
pub mod alarms;
pub mod checked;
pub mod dealer;
pub mod dial_misses;
pub mod holder;
pub mod keyring;
pub mod lease;
