//! Damage to a database behind the program's back: a value that is no longer what was written.
//!
//! The keys of rows are in plain and the values are sealed. So an attacker who can write on a disk can damage a chosen row,
//! but cannot make a valid one. The damage goes through RocksDB, whose own checksums then agree with it: what is tested is
//! that the seal notices.

use std::path::Path;

use rocksdb::{DB, IteratorMode, Options, WriteOptions};

use crate::base::error::Error;

/// Flips the last bit of the last value whose key `chosen` likes, in the database of a node that is not running. Returns
/// the key in hexadecimal.
///
/// # Errors
/// If the database does not open, or has no such value.
pub fn flip(data: &Path, family: &str, chosen: impl Fn(&[u8]) -> bool) -> Result<String, Error> {
    let failed = |reason: String| Error::Directory { path: data.to_owned(), reason };
    let path = data.join("state").join("raft");
    let db =
        DB::open_cf(&Options::default(), path, ["log", "state", "meta"]).map_err(|error| failed(error.to_string()))?;
    let handle = db.cf_handle(family).ok_or_else(|| failed(format!("no column family {family}")))?;
    for row in db.iterator_cf(handle, IteratorMode::End) {
        let (key, mut value) = row.map_err(|error| failed(error.to_string()))?;
        if chosen(&key) {
            *value.last_mut().ok_or_else(|| failed("an empty value".to_owned()))? ^= 1;
            let mut durable = WriteOptions::default();
            durable.set_sync(true);
            db.put_cf_opt(handle, &key, value, &durable).map_err(|error| failed(error.to_string()))?;
            return Ok(key.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    Err(failed("no such value".to_owned()))
}
