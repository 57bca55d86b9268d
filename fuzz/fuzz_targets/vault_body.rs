//! The body of a vault: a body that is read is written again byte for byte.
#![no_main]

use quorate_node::vault::Vault;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(vault) = Vault::parse(bytes) {
        assert_eq!(&*vault.encode().expect("it fitted before"), bytes);
    }
});
