//! What is done for the requests of clients, by topic.

pub mod crypto;
pub mod keys;
pub mod membership;
pub mod nodes;
