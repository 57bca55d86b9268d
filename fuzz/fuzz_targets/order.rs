//! Orders: what is read has one byte form, and no random bytes pass for a signature.
#![no_main]

use quorate_shares::order::SignedOrder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(order) = SignedOrder::parse(bytes) {
        assert_eq!(order.as_bytes(), bytes);
        assert!(order.verify().is_err(), "a signature by chance");
    }
});
