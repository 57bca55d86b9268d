//! What a node keeps in memory and nowhere else: keys, share keys at work, and the right to serve. Types without a node.

pub mod absences;
pub mod alarms;
pub mod checked;
pub mod dealer;
pub mod holder;
pub mod keyring;
pub mod lease;
