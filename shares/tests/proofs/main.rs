//! What the cryptography promises, one test per promise.
//!
//! `vectors` and `ciphertexts` fix the formats to the byte, for ever. The others break one rule at a time and expect
//! the refusal. All randomness comes from seeds in the tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ciphertexts;
mod kit;
mod locks;
mod sealing;
mod vectors;
