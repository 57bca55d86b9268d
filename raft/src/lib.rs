//! The replicated state of Quorate: the only crate that knows openraft and RocksDB.

pub mod command;
pub mod refusal;
pub mod state;
pub mod rows;
pub mod plan;
