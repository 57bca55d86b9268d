//! The wire protocol of Quorate and its Rust client.
