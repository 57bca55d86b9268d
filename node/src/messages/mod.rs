//! The messages between nodes, as types. [`crate::peers`] carries them.

pub mod caller;
pub mod peer;
