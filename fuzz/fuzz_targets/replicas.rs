//! The messages between replicas: requests, replies, log entries, chunks of a snapshot and the state in them.
#![no_main]

use quorate_raft::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => fuzzing::message(bytes),
        1 => fuzzing::entry(bytes),
        2 => fuzzing::rows(bytes),
        _ => fuzzing::chunk(bytes),
    }
});
