//! The replicated state of Quorate: the only crate that knows openraft and RocksDB.
