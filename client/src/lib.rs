//! The wire protocol of Quorate and its Rust client.

pub mod error;
pub mod wire;

pub mod cluster_file;
pub mod conn;
pub mod frame;
pub mod identity;
