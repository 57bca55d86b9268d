//! Contexts: there is one byte form, and its pairs give the same bytes again.
#![no_main]

use quorate_shares::context::Context;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(context) = Context::parse(bytes) {
        assert_eq!(context.as_bytes(), bytes);
        assert_eq!(Context::new(context.iter()).expect("names that were in order").as_bytes(), bytes);
    }
});
