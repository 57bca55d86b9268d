//! Batch headers, share records and locks: each has one byte form.
#![no_main]

use quorate_shares::lock::Lock;
use quorate_shares::seal::{BatchHeader, ShareRecord};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = BatchHeader::parse(bytes) {
        assert_eq!(header.encode(), bytes);
    }
    if let Ok(record) = ShareRecord::parse(bytes) {
        assert_eq!(record.encode(), bytes);
    }
    if let Ok(lock) = Lock::parse(bytes) {
        assert_eq!(lock.encode(), bytes);
    }
});
