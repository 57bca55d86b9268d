//! Ciphertexts in text and binary: each form is written in one way, and both hold the same.
#![no_main]

use quorate_shares::envelope::Ciphertext;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(read) = Ciphertext::parse_binary(bytes) {
        assert_eq!(read.to_binary(), bytes);
        let text = Ciphertext::parse_text(&read.to_text()).expect("our own text");
        assert_eq!(text.to_binary(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(read) = Ciphertext::parse_text(text) {
        assert_eq!(read.to_text(), text);
        Ciphertext::parse_binary(&read.to_binary()).expect("our own bytes");
    }
});
