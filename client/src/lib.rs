//! The wire protocol of Quorate and its Rust client.

pub mod conn;
pub mod frame;
pub mod identity;
