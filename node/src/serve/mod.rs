//! Doors: where questions of clients, members and the owner of the machine arrive. Bytes in, bytes out; no rule.

pub mod listen;
pub mod local;
