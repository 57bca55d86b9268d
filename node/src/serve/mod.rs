//! Doors: where questions of clients, members, strangers and the owner of the machine arrive. A door turns bytes into a
//! request and an answer into bytes. It holds no rule; those stand in [`crate::service`].

pub mod listen;
pub mod local;
pub mod peer;

mod client;
mod stranger;
