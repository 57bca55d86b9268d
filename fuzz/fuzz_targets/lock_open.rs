//! LockOpen requests and replies: each has one byte form.
#![no_main]

use quorate_shares::lock::{LockOpenReply, LockOpenRequest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = LockOpenRequest::parse(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(reply) = LockOpenReply::parse(bytes) {
        assert_eq!(reply.encode(), bytes);
    }
});
